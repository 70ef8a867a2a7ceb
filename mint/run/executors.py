"""Where the work of a command is done: in this process, or wherever an installed package offers."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

from mint.core.errors import MintError
from mint.core.log import log
from mint.core.progress import OnProgress, ignore
from mint.model.config import read_config
from mint.model.hub_cache import NotOnHubError
from mint.model.locate import locate
from mint.run.executor import Executor, in_process

GROUP = "mint.executors"


@contextmanager
def executing(
    address: str,
    model: Path | str,
    dtype: str = "",
    *,
    share: bool = False,
    on_progress: OnProgress = ignore,
    on_note: Callable[[str], object] = lambda text: None,
) -> Iterator[tuple[Path, Executor]]:
    """The folder to open `model` from and the executor for it: this process without an `address`.

    A model of the hub is downloaded to this machine if need be. `share` lets the machines at that address read from
    each other what one of them lacks; `on_note` is told what was decided on the way, and why. Raises `MintError` when
    there is an address and nothing installed that can work there, or when there is nobody to share with.
    """
    if share and not address:
        raise MintError("--share: there is one machine; needed: --cluster ADDRESS with it")
    if not address:
        yield locate(model, on_progress, check=read_config), in_process
        return
    offers = metadata.entry_points(group=GROUP)
    if not offers:
        raise MintError(
            f"--cluster {address}: nothing is installed that works elsewhere; needed: pip install 'mint-mlx[cluster]'"
        )
    folder = _head_folder(model, on_progress)
    with next(iter(offers)).load()(address, folder, dtype, share=share, on_note=on_note) as place:
        yield place


def _head_folder(model: Path | str, on_progress: OnProgress) -> Path:
    """Where the head has a model, or would have it: what the hub does not know may be a folder that only nodes have."""
    try:
        return locate(model, on_progress, check=read_config)
    except NotOnHubError as error:
        log.warning("model.not_found", reason=str(error))
        return Path(model)
