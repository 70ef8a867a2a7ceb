"""Yields the calibration inputs of each unit, layer by layer, with all earlier layers already quantized.

A walk runs the model on some tokens one layer at a time. It yields the inputs of the layer's units, takes the weights
that they are stored with, and continues with the layer's output for those. So later layers compensate earlier errors.
Finished layers are dropped and answer from memory (`probes/replay.py`): beside the weights outside the layers, memory
is bounded by one layer in float32, its activations, and what later layers use of earlier ones.

That needs layers that are called once each. In other models the inputs of each layer come from a pass through the
whole model: slower, and nothing is dropped.
"""

# B sequences, L tokens, N rows of inputs, C columns

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt
from mlx.nn.layers.base import Module
from mlx.utils import tree_flatten, tree_map

from mint.analysis.probes.replay import Replay
from mint.core.log import log
from mint.formats.units import Unit
from mint.kernels.storage import numpy_view
from mint.model.hooks import hook, hooked, unhooked_after
from mint.model.passes.logits import logits_of
from mint.model.roles import layer_path
from mint.quality.divergence import Tokens
from mint.quality.forward import sequence_blocks

Rows = npt.NDArray[np.float32]
_Noted = list[tuple[mx.array, mx.array | None]]  # rows and experts of each call of a unit
_Calls = dict[str, _Noted]  # by path


@dataclass(frozen=True, slots=True)
class Inputs:
    """The inputs of a unit: rows (N, C), and for a stack the experts of each row, (N, K), unless all see every row."""

    rows: Rows
    experts: npt.NDArray[np.int64] | None = None

    def of(self, index: int) -> Rows:
        """The rows of one matrix of the stack."""
        return self.rows if self.experts is None else self.rows[(self.experts == index).any(axis=1)]


@dataclass(frozen=True, slots=True)
class Stage:
    """Units that are rounded together, and their inputs; units that multiply nothing have none."""

    units: tuple[Unit, ...]
    inputs: Mapping[str, Inputs]


class Walk:
    """A walk through `model` on `tokens` (B, L): iterate over its stages, and `store` every unit of a stage.

    `judged` (J, L) are the tokens whose `logits` are there at the end, by default `tokens`; L is that of `tokens`.
    """

    def __init__(self, model: Module, units: Sequence[Unit], tokens: Tokens, judged: Tokens | None = None) -> None:
        self._model = model
        self._modules: dict[str, Module] = dict(model.named_modules())
        self._tokens = mx.array(tokens)
        self._layers: dict[str, list[Unit]] = defaultdict(list)
        for unit in units:
            if unit.layer >= 0:
                self._layers[layer_path(unit.path)].append(unit)
        outer = [unit for unit in units if unit.layer < 0]
        calls = self._outer_calls([unit.path for unit in outer])
        self._after = tuple(unit for unit in outer if calls[unit.path].multiplies_after)
        self._between = tuple(unit for unit in outer if unit not in self._after and calls[unit.path].multiplies)
        self._before = tuple(unit for unit in outer if unit not in self._after and unit not in self._between)
        self.tied = tuple(unit for unit in self._after if calls[unit.path].before)
        self._replay = Replay(model, self._layers, self._tokens)
        self._judged = [(self._replay, self._tokens)]
        if judged is not None:
            vocabulary = logits_of(model, self._tokens[:1]).shape[-1]  # lazy: nothing is computed
            blocks = sequence_blocks(judged, vocabulary)
            self._judged = [(self._replay.another(), mx.array(judged[rows])) for rows in blocks]
        self._in_a_row = sorted(self._replay.order) == sorted(self._layers)

    def stages(self, finished: Collection[str] = ()) -> Iterator[Stage]:
        """The stages in the order of the model; inputs are left out if all units are `finished`."""
        inside = tuple(f"{path}." for path in self._layers)
        parameters = dict(tree_flatten(self._model.parameters()))
        mx.eval([array for name, array in parameters.items() if not name.startswith(inside)])
        yield Stage(self._before, {})
        if self._between:
            yield self._stage(self._between, finished)
        if not self._in_a_row:
            nbytes = sum(4 * array.size for array in parameters.values())
            log.warning("model.held_whole", reason="its layers are not called once each", needed_bytes=nbytes)
        for path in self._replay.order if self._in_a_row else sorted(self._layers, key=_by_number):
            layer = self._modules[path]
            mx.eval(layer.parameters())  # reading inside of a GPU's work trips Metal's watchdog
            yield self._stage(self._layers[path], finished, path)
            if self._in_a_row:
                for replay, tokens in dict([(self._replay, self._tokens), *self._judged]).items():
                    with replay.up_to(path, record=True):
                        logits_of(self._model, tokens)
                layer.update(tree_map(lambda _: mx.zeros(()), layer.parameters()))  # drops them
        yield self._stage(self._after, finished)

    def logits(self) -> Iterator[mx.array]:
        """The logits of the judged sequences in blocks (b, L, V), by the stored weights; after the last stage."""
        for replay, tokens in self._judged:
            with replay.before(None):
                yield logits_of(self._model, tokens)

    def store(self, path: str, weight: mx.array) -> None:
        """Give a unit the weight that it is stored with, in float32."""
        self._modules[path]["weight"] = weight

    def _stage(self, units: Sequence[Unit], finished: Collection[str], layer: str = "") -> Stage:
        """The stage of `units`, which are in `layer` or in none; a pass notes their calls."""
        calls: _Calls = {unit.path: [] for unit in units if unit.path not in finished}
        if calls:
            stop = self._replay.up_to(layer) if layer and self._in_a_row else self._replay.before(None)
            with stop, unhooked_after(self._modules[path] for path in calls):
                for path, noted in calls.items():
                    module = self._modules[path]
                    name = "as_linear" if hasattr(module, "as_linear") else "__call__"
                    hook(module, partial(_note_inputs, noted), (name,))
                logits_of(self._model, self._tokens)
        return Stage(tuple(units), _inputs_of({path: noted for path, noted in calls.items() if noted}))

    def _outer_calls(self, paths: Sequence[str]) -> dict[str, "_OuterCalls"]:
        """When the modules at `paths`, which are in no layer, are called; nothing is computed."""
        calls = {path: _OuterCalls() for path in paths}
        entered: list[str] = []

        def enter(path: str, method: Any, *arguments: Any, **options: Any) -> Any:
            entered.append(path)
            return method(*arguments, **options)

        def note(path: str, method: Any, module: Module, *arguments: Any, **options: Any) -> Any:
            multiplies = bool(arguments) and mx.issubdtype(arguments[0].dtype, mx.floating)
            calls[path].note(multiplies=multiplies, after=bool(entered))
            return method(module, *arguments, **options)

        hooks = {path: partial(enter, path) for path in self._layers} | {path: partial(note, path) for path in paths}
        with hooked(self._modules, hooks):
            logits_of(self._model, self._tokens[:1, :2])
        return calls


@dataclass(slots=True)
class _OuterCalls:
    """The calls of a module outside of the layers."""

    before: bool = False  # the first layer
    multiplies: bool = False
    multiplies_after: bool = False

    def note(self, *, multiplies: bool, after: bool) -> None:
        self.before |= not after
        self.multiplies |= multiplies
        self.multiplies_after |= multiplies and after


def _inputs_of(calls: _Calls) -> dict[str, Inputs]:
    """The inputs of units, with one array for units that share them."""
    noted = [call for calls_of_unit in calls.values() for call in calls_of_unit]
    mx.eval([part for call in noted for part in call if part is not None])
    shared = {id(rows): rows for rows, _ in noted}
    flat = {key: numpy_view(rows.astype(mx.float32)).reshape(-1, rows.shape[-1]) for key, rows in shared.items()}
    inputs = {}
    for path, calls_of_unit in calls.items():
        rows = [flat[id(rows)] for rows, _ in calls_of_unit]
        experts = [numpy_view(experts).astype(np.int64) for _, experts in calls_of_unit if experts is not None]
        inputs[path] = Inputs(
            rows[0] if len(rows) == 1 else np.concatenate(rows), np.concatenate(experts) if experts else None
        )
    return inputs


def _by_number(path: str) -> tuple[int, str]:
    last = path.rpartition(".")[2]
    return int(last) if last.isdecimal() else -1, path


def _note_inputs(noted: _Noted, method: Any, module: Module, rows: mx.array, *rest: Any, **options: Any) -> Any:
    """Note the inputs of a module: a matrix, a stack, or an embedding used as a head.

    The rows of a stack's matrices are told from the experts of each row, or else from the axis of matrices. A module
    that uses its weight in another way has no inputs.
    """
    shape = module["weight"].shape
    if rows.shape[-1] == shape[-1] and mx.issubdtype(rows.dtype, mx.floating):
        if len(shape) == 2:
            noted.append((rows, None))
        elif rest and isinstance(rest[0], mx.array):
            if (experts := _routes(rows, rest[0])) is not None:
                noted.append((rows, experts))
        elif not options and not rest and rows.shape[-3:-2] in ((shape[0],), (1,)):
            noted.append((rows, _matrix_of(rows) if rows.shape[-3] > 1 else None))
    return method(module, rows, *rest, **options)


def _routes(rows: mx.array, experts: mx.array) -> mx.array | None:
    """The experts (N, K) of the rows (N, C) in a product with gathered matrices; None for another second argument.

    mlx_lm gives rows (..., 1, C) whose leading axes are those of `experts`, or 1 if a row goes to several.
    """
    leading = rows.shape[:-2]
    shared = len(leading) == experts.ndim and leading[-1] == 1 < experts.shape[-1]
    routed = rows.ndim > 1 and rows.shape[-2] == 1 and (shared or leading == experts.shape)
    if not routed or not mx.issubdtype(experts.dtype, mx.integer):
        return None
    return experts.reshape(-1, experts.shape[-1] if shared else 1)


def _matrix_of(rows: mx.array) -> mx.array:
    """The matrix (N, 1) that each row of (..., E, L, C) is multiplied with: the heads of latent attention."""
    return mx.broadcast_to(mx.arange(rows.shape[-3])[:, None], rows.shape[:-1]).reshape(-1, 1)
