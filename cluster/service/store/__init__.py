"""The store: files by digest, disk space, and model folders."""
