"""Storage formats of a weight matrix, and every byte of the files they make."""
