"""The attention backends: each a way by which a model shows what its heads attend to."""
