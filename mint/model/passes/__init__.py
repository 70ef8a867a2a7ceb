"""Forward passes of a whole model, and what lazy ones tell about it."""
