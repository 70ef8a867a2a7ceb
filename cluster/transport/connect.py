"""From an address to an executor: connect to a running cluster, or start one of this machine alone.

`mint` finds `executing` through the entry point group `mint.executors` and never imports this package by name.
Who answers at the address is found out before Ray is asked, which tries again for a long time and gives no reason.
"""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.head.watch import HeadWatch
from cluster.settings import (
    STORE_BYTES,
    UNWANTED,
    Address,
    checked_tls,
    checked_token,
    make_token,
    parse_address,
    ray_environment,
    tls_place,
    token_place,
)
from mint.core.errors import MintError
from mint.run.executor import Executor

if TYPE_CHECKING:
    from cluster.head.handshake import Head

LOCAL = "local"
INSTALL = "pip install 'mint-mlx[cluster]'"


@contextmanager
def executing(
    address: str,
    model: Path,
    dtype: str = "",
    *,
    share: bool = False,
    on_note: Callable[[str], object] = lambda text: None,
) -> Iterator[tuple[Path, Executor]]:
    """The folder to open `model` from, and the executor of the cluster at `address`, until the block ends.

    Nodes borrow what they lack of a unit's shards from each other where they `share`; `on_note` is told what was
    decided on the way.
    """
    head = None if address == LOCAL else parse_address(address)
    with driving(head), ExitStack() as until_the_end:
        from cluster.transport.driver import Carrier
        from cluster.transport.executor import ClusterExecutor

        watch = until_the_end.enter_context(closing(HeadWatch(head, on_note))) if head else None
        carrier = Carrier(watch=watch)
        until_the_end.callback(carrier.quit)
        executor = until_the_end.enter_context(closing(ClusterExecutor(carrier, model, share=share, on_note=on_note)))
        yield executor.whole_folder(model, dtype), executor


@contextmanager
def driving(address: Address | None, token: Path | None = None) -> "Iterator[Head | None]":
    """Be a driver of the cluster at `address`, or of a new one of this machine alone, until the block ends.

    Yields what the head told; raises `MintError` that names what is in the way.
    """
    with tempfile.TemporaryDirectory(prefix="mint-") as folder:
        for name in UNWANTED:
            os.environ.pop(name, None)
        os.environ.update(settings(address, Path(folder), token))
        try:
            from cluster.head.handshake import knock
            from cluster.transport.survey import connected
        except ImportError as error:
            raise MintError(f"--cluster needs Ray ({error}); install it beside mint: {INSTALL}") from error
        head = None
        if address:
            tls = tls_place() if address.tls else None
            head = knock(address, token=checked_token(token or token_place()), tls=tls)
            head.need_a_node_here()
        with connected(str(address or ""), STORE_BYTES):
            yield head


def settings(address: Address | None, folder: Path, token: Path | None = None) -> dict[str, str]:
    """Ray's environment; a cluster of this machine alone (no address) gets a token of its own in `folder`."""
    if address is None:
        make_token(folder / "token")
        return ray_environment(token=folder / "token", loopback=True)
    tls = checked_tls(tls_place()) if address.tls else None
    return ray_environment(token=checked_token(token or token_place()), loopback=address.is_loopback, tls=tls)
