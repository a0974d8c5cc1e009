"""Charts of a report: each drawn once, as an SVG that has what a script says of it. Standard library only."""
