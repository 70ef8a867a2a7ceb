"""The packages whose classes make module trees: mlx_lm for text, mlx_vlm for text with pictures and sound."""
