"""Predicts the minutes, the memory and the disk of a request before anything long begins."""
