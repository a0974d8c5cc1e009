"""The model under test: whatever the user has, seen through one protocol."""
