"""Differences between the classes of a package and the original classes of a model, as far as they are known."""
