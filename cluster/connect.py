"""From an address to an executor: connect to a running cluster, or start one of this machine alone.

`mint` finds `executing` through the entry point group `mint.executors` and never imports this package by name.
Token authentication is always on and always set explicitly: Ray's own default depends on files that happen to exist.
"""

import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mint.errors import MintError
from mint.execute import Executor

LOCAL = "local"
TOKEN_VARIABLE = "RAY_AUTH_TOKEN_PATH"
STORE_BYTES = 200_000_000  # what is on its way, in pieces


@contextmanager
def executing(address: str, model: Path, dtype: str = "") -> Iterator[tuple[Path, Executor]]:
    """The folder to open `model` from, and the executor of the cluster at `address`, until the block ends."""
    with tempfile.TemporaryDirectory(prefix="mint-") as folder:
        os.environ.update(settings(address, Path(folder)))
        try:
            from cluster.carrier import Carrier, connected
            from cluster.execute import ClusterExecutor
        except ImportError as error:
            raise MintError(
                f"--cluster needs Ray ({error}); install it beside mint: pip install 'mint-mlx[cluster]'"
            ) from error
        with connected("" if address == LOCAL else address, STORE_BYTES):
            carrier = Carrier()
            try:
                executor = ClusterExecutor(carrier, model)
                yield executor.whole_folder(model, dtype), executor
            finally:
                carrier.quit()


def settings(address: str, folder: Path) -> dict[str, str]:
    """Ray's environment, which it reads when it is imported; a cluster of one machine gets a token of its own."""
    fixed = {"RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0", "RAY_COLOR_PREFIX": "0"}
    if address == LOCAL:
        token = folder / "token"
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
        return {**fixed, TOKEN_VARIABLE: str(token), "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    given = os.environ.get(TOKEN_VARIABLE, "")
    if not given or not Path(given).is_file():
        raise MintError(
            f"--cluster {address}: no token; needed: the path of the cluster's token file in {TOKEN_VARIABLE} "
            f"(found {given or 'nothing'})"
        )
    if Path(given).stat().st_mode & 0o077:
        raise MintError(f"{given}: others may read this token; needed: chmod 600 {given}")
    return {**fixed, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1"}
