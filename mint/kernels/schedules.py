"""The candidates of the searches, as tables that both the compiled kernels and the array operations read."""

from mint.formats.scheme import MXFP4_SCHEME, NVFP4_SCHEME

# by bits: the step between starts, how many starts, and how many passes a descent from the best of them and one beside
# it have. Found on Gaussian and Student-t weights (tools/bench/rounding.py): at 4 bits g64 NRMSE is 9.3 % less; with
# two passes beside 8.6 %, with none from the best 8.9 %, with a third descent 9.7 % for a fifth more time
SCHEDULES = {
    2: (0.09, 4, 2, 3),
    3: (0.065, 4, 2, 3),
    4: (0.045, 4, 2, 3),
    5: (0.02, 3, 2, 3),
    6: (0.01, 3, 2, 3),
    8: (0.004, 3, 2, 3),
}
# bfloat16 has too few bits to store what least squares finds for fine grids
SCHEDULES_BF16 = {**SCHEDULES, 6: (0.008, 3, 2, 2), 8: (0.0035, 3, 0, 1)}

# by kernel number: the scales that are tried, as differences from MLX's byte, and the greatest finite scale
NEIGHBOURS = {MXFP4_SCHEME.kernel: (-1,), NVFP4_SCHEME.kernel: (-2, -1, 1, 2, 3, 4, 5)}
LAST_SCALE = {MXFP4_SCHEME.kernel: 254, NVFP4_SCHEME.kernel: 126}
