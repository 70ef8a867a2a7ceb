"""The queue: jobs, their order and their watchers."""
