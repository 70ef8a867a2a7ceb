"""Safetensors checkpoints: headers, stored weights, and the files of an output folder."""
