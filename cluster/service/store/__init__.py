"""Files by digest, room on the disk, and model folders."""
