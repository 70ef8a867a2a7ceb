"""Results as plain values: one record a verb, for --json and for the service."""
