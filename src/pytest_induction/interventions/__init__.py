"""Edits of what heads of a model do, and measures of what that does to it."""
