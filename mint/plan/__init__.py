"""Allocates a budget: from an Analysis to a Plan."""
