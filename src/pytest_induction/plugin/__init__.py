"""Everything that imports pytest: options, fixtures, gates, reports of a session."""
