"""GGUF files as a source: a folder in the cache with the same model, its grids of integers kept as they are."""
