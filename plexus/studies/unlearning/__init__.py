"""Studies of the unlearning family."""
