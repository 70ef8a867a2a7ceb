"""Work that the server does in child processes: hub downloads and plans."""
