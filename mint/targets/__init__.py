"""Devices, loaders and reading speeds that a plan is made for."""
