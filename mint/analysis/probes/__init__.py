"""Measures sensitivities: how far the output moves when one unit is quantized."""
