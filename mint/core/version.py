"""The version of MINT, as it stands in every analysis, plan and manifest."""

__version__ = "0.1.0"
