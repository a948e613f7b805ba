"""Studies of the language family."""
