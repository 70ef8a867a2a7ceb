"""Executors: where jobs run, and on which kind of device."""
