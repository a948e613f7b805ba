"""Studies of the reservoirs family."""
