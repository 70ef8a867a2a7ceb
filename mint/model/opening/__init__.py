"""The first look at a model: what its folder is, what its config means, and what its user must be told."""
