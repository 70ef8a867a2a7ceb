"""Imported by every room: errors, sizes, journals, logs, progress, memory and the cache folder."""
