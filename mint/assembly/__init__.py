"""Writes the model that a Plan describes, and verifies it."""
