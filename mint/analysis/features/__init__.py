"""The features of a weight matrix in the published method. No plan needs them."""
