"""A lab's shared quantization service: jobs in a database, a process each, models by digest, over HTTP."""
