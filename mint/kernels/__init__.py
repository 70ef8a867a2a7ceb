"""One law, implemented three times: the reference in MLX operations, the fused CPU kernels, the GPU path."""
