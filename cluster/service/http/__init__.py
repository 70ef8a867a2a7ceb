"""The HTTP API and its security."""
