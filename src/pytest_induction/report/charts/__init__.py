"""Charts of a report: each a Plotly figure as plain data, and the same as an SVG that needs no script. Standard library only."""
