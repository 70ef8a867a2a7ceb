"""The queue: jobs, their order and their subscribers."""
