"""The executor over Ray: actors, messages, results."""
