"""How checkpoints lie on the disk: one class for each layout, one list of them, and messages made from that list."""
