"""Predicts how long a cluster takes (`mint cluster plan`)."""
