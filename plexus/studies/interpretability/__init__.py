"""Studies of the spiking family."""
