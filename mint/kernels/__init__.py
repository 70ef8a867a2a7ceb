"""Three implementations of one law: the reference in MLX operations, the fused CPU kernel, the GPU path."""
