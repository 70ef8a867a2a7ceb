"""Measures every unit of a Source: the Analysis."""
