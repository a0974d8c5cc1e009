"""Models under test: whatever the user has, seen through one protocol. Only this package knows foreign model libraries."""
