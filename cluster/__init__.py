"""MINT over several Macs: executors that run the jobs of `mint` on Ray nodes."""
