"""The rate at which this machine downloads models, by its last download of some size; no rate is assumed."""

import json

from mint.core.cache import cache_folder
from mint.core.files import write_whole

_LEAST_BYTES = 32 << 20  # a shorter download measures how fast it begins


def record_download(nbytes: int, seconds: float) -> None:
    """Remember the rate of a download, unless it was too short to tell."""
    if nbytes > _LEAST_BYTES:
        path = cache_folder() / "rates" / "download.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps({"bytes_per_second": nbytes / seconds}).encode())


def download_rate() -> float:
    """Bytes per second of the last download; 0 where none was measured."""
    try:
        record = json.loads((cache_folder() / "rates" / "download.json").read_text())
        return float(record["bytes_per_second"])
    except (OSError, ValueError, TypeError, KeyError):
        return 0.0
