"""Make heads of a model act otherwise, and measure what that does to it."""
