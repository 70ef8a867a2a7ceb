"""The tables of the service's database, and queries beside the queue."""
