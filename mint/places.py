"""Where the work of a command is done: in this process, or wherever an installed package offers."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path

from mint.errors import MintError
from mint.execute import Executor, in_process

GROUP = "mint.executors"


@contextmanager
def executing(
    address: str,
    model: Path,
    dtype: str = "",
    *,
    share: bool = False,
    on_note: Callable[[str], object] = lambda text: None,
) -> Iterator[tuple[Path, Executor]]:
    """The folder to open `model` from and the executor for it: this process without an `address`.

    `share` lets the machines at that address read from each other what one of them lacks; `on_note` is told what was
    decided on the way, and why. Raises `MintError` when there
    is an address and nothing installed that can work there, or when there is nobody to share with.
    """
    if share and not address:
        raise MintError("--share: there is one machine; needed: --cluster ADDRESS with it")
    if not address:
        yield model, in_process
        return
    offers = entry_points(group=GROUP)
    if not offers:
        raise MintError(
            f"--cluster {address}: nothing is installed that works elsewhere; needed: pip install 'mint-mlx[cluster]'"
        )
    with next(iter(offers)).load()(address, model, dtype, share=share, on_note=on_note) as place:
        yield place
