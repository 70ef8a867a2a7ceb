"""Tables of the service's database, and queries outside of the queue."""
