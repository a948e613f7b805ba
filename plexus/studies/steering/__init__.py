"""Studies of the steering family."""
