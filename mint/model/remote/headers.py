"""Opens a model by its headers alone, whether it is on this disk or only on the hub."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

from mint.core.progress import OnProgress, ignore
from mint.model.config import check_config
from mint.model.hub_cache import cached
from mint.model.locate import hub_id
from mint.model.source import Source, open_source


@contextmanager
def headers_of(
    model: str, *, dtype: str = "", loader: str = "", requantize: bool = False, on_progress: OnProgress = ignore
) -> Iterator[Source]:
    """The source of a model, opened as `open_source` opens it; its weights may be missing.

    A model of the hub that is not in the cache has no identity, which weights are sampled for.
    """
    id = hub_id(model)
    if id is None or cached(id):
        yield open_source(model, dtype=dtype, loader=loader, requantize=requantize, on_progress=on_progress)
        return
    from mint.model.remote.outline import outlined  # imports what asks a network

    with outlined(id, check=partial(check_config, requantize=requantize)) as folder:
        source = open_source(folder, dtype=dtype, loader=loader, requantize=requantize)
        yield replace(source, identity="")


def missing_bytes(source: Source) -> int:
    """Bytes of the weight files that have to be downloaded; files that are here are links in the folder of headers."""
    if source.identity:
        return 0
    return sum(shard.nbytes for shard in source.shards if not (source.folder / shard.name).is_symlink())
