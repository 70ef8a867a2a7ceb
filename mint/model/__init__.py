"""Opens a model: from a folder or a hub id to a Source."""
