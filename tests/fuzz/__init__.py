"""Files that nobody wrote so: what every reader makes of them. `make fuzz` runs many, the tests a slice; see docs/contributing.

Each input is the file of a real kind with one to three mutations, drawn from a seed, so that it can be had again: `mutating` has
the mutations, `seeds` the files, `readers` what reads them, `child` the process they are read in, `__main__` the count.
"""
