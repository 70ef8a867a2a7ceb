"""One law, implemented three times: the reference in MLX operations, the fused CPU kernels, the GPU path."""

import os

# where colorama is installed, numba 0.68 would have it write an escape sequence at the end of every program
os.environ.setdefault("NUMBA_DISABLE_ERROR_MESSAGE_HIGHLIGHTING", "1")
