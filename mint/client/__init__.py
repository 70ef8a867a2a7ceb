"""Client of a quantization service."""
