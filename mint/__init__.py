"""MINT: give it a language model and a memory budget, get the best MLX model that fits."""

__version__ = "0.1.0"
