"""One HTML page about analyses, plans and written models, without a network."""
