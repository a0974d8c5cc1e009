"""What kinds of heads a model has: the criteria, and a module for each kind with its scores, verdict and assertion."""
