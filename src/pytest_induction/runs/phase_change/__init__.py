"""What changes in a training, when, how abruptly, and together with what."""
