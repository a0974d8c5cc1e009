"""What a model does, by its logits alone: it completes repeats, and it learns in context."""
