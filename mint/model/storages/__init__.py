"""Storages: the ways in which a checkpoint stores a weight, told apart by its tensors and decoded exactly."""
