"""Sets that a matrix must end up in."""
