"""How a point of a target is reached."""
