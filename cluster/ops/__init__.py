"""The `mint cluster` commands: nodes, their health, their start at boot."""
