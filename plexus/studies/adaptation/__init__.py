"""Studies of the adaptation family."""
