"""Connects an executor to a running cluster, or to a new one of this machine alone.

`mint` finds `executing` through the entry point group `mint.executors` and never imports this package by name.
The address is probed before Ray connects, which retries for a long time and gives no reason.
"""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.head.watch import HeadWatch, Patience
from cluster.settings import UNWANTED, Address, Secrets, checked_secrets, make_token, parse_address, ray_environment
from mint.core.errors import MintError
from mint.core.version import install_command

if TYPE_CHECKING:
    from cluster.head.handshake import Head
    from mint.run.executor import Executor

LOCAL = "local"
EXTRA = ("ray", "grpc", "cryptography")  # packages of this extra


@contextmanager
def executing(
    address: str,
    model: Path,
    dtype: str = "",
    loader: str = "",
    *,
    share: bool = False,
    on_note: Callable[[str], object] = lambda text: None,
) -> "Iterator[tuple[Path, Executor]]":
    """The folder to open `model` from, and the executor of the cluster at `address`, until the block ends.

    With `share` nodes borrow missing parts of a unit's shards from each other; `on_note` takes notes for people.
    """
    head = None if address == LOCAL else parse_address(address)
    with driving(head), ExitStack() as until_the_end:
        from cluster.transport.driver import Carrier
        from cluster.transport.executor import ClusterExecutor

        watch = until_the_end.enter_context(closing(HeadWatch(Patience(head), on_note))) if head else None
        carrier = Carrier(watch=watch)
        until_the_end.callback(carrier.quit)
        executor = until_the_end.enter_context(closing(ClusterExecutor(carrier, model, share=share, on_note=on_note)))
        yield executor.whole_folder(model, dtype, loader), executor


@contextmanager
def driving(address: Address | None, token: Path | None = None) -> "Iterator[Head | None]":
    """Be a driver of the cluster at `address`, or of a new one of this machine alone, until the block ends.

    Yields the answer of the head; raises `MintError` that names the obstacle.
    """
    with tempfile.TemporaryDirectory(prefix="mint-") as folder, needing_ray():
        for name in UNWANTED:
            os.environ.pop(name, None)
        os.environ.update(settings(address, Path(folder), token))
        from cluster.head.handshake import knock
        from cluster.transport.survey import connected

        head = knock(address, checked_secrets(address, token)) if address else None
        if head:
            head.need_a_node_here()
        with connected(str(address or "")):
            yield head


@contextmanager
def needing_ray() -> Iterator[None]:
    """Raise `MintError` with the extra to install if Ray or gRPC is missing."""
    try:
        yield
    except ImportError as error:
        if (error.name or "").partition(".")[0] in EXTRA:
            raise MintError(f"a cluster needs {error.name} ({error}); needed: {install_command('cluster')}") from error
        raise


def settings(address: Address | None, folder: Path, token: Path | None = None) -> dict[str, str]:
    """Ray's environment; a cluster of this machine alone (no address) gets a token of its own in `folder`."""
    if address:
        return ray_environment(checked_secrets(address, token), address)
    make_token(folder / "token")
    return ray_environment(Secrets(folder / "token"))
