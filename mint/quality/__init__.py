"""Runs models and measures how close a quantized one is to its original."""
