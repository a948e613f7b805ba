"""Studies of the interpretability family."""
