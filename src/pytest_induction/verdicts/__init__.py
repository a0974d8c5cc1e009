"""From measurements to FORMED, NOT_FORMED or UNDETERMINED. Pure functions over numbers that are already there.

Nothing counts as shown unless its whole interval lies on one side of its threshold, so NaN and too little data show nothing.
"""
