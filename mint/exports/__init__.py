"""A plan in the words of other tools: mlx_lm's converter and llama.cpp's quantizer."""
