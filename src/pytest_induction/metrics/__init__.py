"""Pure tensor mathematics over attention entries and logits. No model, no pytest, no files."""
