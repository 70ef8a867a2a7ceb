"""Decides which node does which work, from events alone: no Ray, no clock, no socket."""
