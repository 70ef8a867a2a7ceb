import subprocess
import sys

import numpy as np

from mint.core.memory import peak_rss_bytes


def test_peak_counts_all_that_this_process_has_held() -> None:
    before = peak_rss_bytes()
    held = np.ones(before // 4, np.float64)  # twice as much
    assert peak_rss_bytes() >= held.nbytes
    del held
    assert peak_rss_bytes() >= 2 * before


def test_peak_leaves_out_the_process_that_started_this_one() -> None:
    held = np.ones(64 << 20, np.float64)
    code = "from mint.core.memory import peak_rss_bytes; print(peak_rss_bytes())"
    answer = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert int(answer) < held.nbytes
