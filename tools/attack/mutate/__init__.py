"""Mutation testing: small changes of a module's code, each of which the fast tests of its room must notice."""
