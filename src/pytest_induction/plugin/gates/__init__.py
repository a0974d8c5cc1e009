"""Ready-made tests of a model, collected when it is named on the command line."""
