"""Tests of models whose weights are on the hub alone."""
