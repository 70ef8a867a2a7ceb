"""The executor of a command: this process, or the offer of an installed package."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

from mint.core.errors import MintError
from mint.core.log import log
from mint.core.progress import OnProgress, ignore
from mint.model.config import check_config
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
    each other what one of them lacks; `on_note` gets each decision with its reason. Raises `MintError` when there is
    an address and nothing installed that can work there, or when there is no other machine to share with.
    """
    if share and not address:
        raise MintError("--share: there is one machine; needed: --cluster ADDRESS with it")
    if not address:
        yield locate(model, on_progress, check=check_config), in_process
        return
    offers = metadata.entry_points(group=GROUP)
    if not offers:
        raise MintError(
            f"--cluster {address}: nothing is installed that works elsewhere; needed: pip install 'mint-mlx[cluster]'"
        )
    try:
        folder = locate(model, on_progress, check=check_config)
    except NotOnHubError as error:  # it may be a folder that only nodes have
        log.warning("model.not_found", reason=str(error))
        folder = Path(model)
    with next(iter(offers)).load()(address, folder, dtype, share=share, on_note=on_note) as execution:
        yield execution
