"""Sequences of token ids whose right answers are known."""
