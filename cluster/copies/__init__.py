"""Copies of a model: which node holds which bytes, and ranges sent from node to node."""
