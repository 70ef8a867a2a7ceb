"""MINT: give it a language model and a memory budget, get the best MLX model that fits."""
