"""Models of the hub whose weights are not on this disk."""
