"""Assigns work to nodes from events alone: no Ray, no clock, no socket."""
