"""Yields the calibration inputs of each unit, layer by layer, with all earlier layers already quantized.

A walk runs the model on some tokens one layer at a time. It yields the inputs of the layer's units, takes the weights
that they are stored with, and continues with the layer's output for those. So later layers compensate earlier errors.
Finished layers are dropped and answer from memory (as in `probes/replay.py`): beside the weights outside the layers,
memory is bounded by one layer in float32 and its activations.

That needs layers that are called once each, each on the output of the one before. In other models the inputs of each
layer come from a pass through the whole model: slower, and nothing is dropped.
"""

# B sequences, L tokens, N rows of inputs, C columns

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt
from mlx.nn.layers.base import Module
from mlx.utils import tree_flatten, tree_map

from mint.formats.units import Unit
from mint.kernels.storage import numpy_view
from mint.model.hooks import Hook, hook, hooked, unhooked_after
from mint.model.roles import layer_path
from mint.quality.divergence import Tokens
from mint.quality.forward import logits_of

Rows = npt.NDArray[np.float32]
_Calls = dict[str, list[tuple[mx.array, mx.array | None]]]  # rows and experts of each call of a unit, by path


@dataclass(frozen=True, slots=True)
class Inputs:
    """The inputs of a unit: rows (N, C), and for a stack the experts of each row, (N, K)."""

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
    """A walk through `model` on `tokens` (B, L): iterate over its stages, and `store` every unit of a stage."""

    def __init__(self, model: Module, units: Sequence[Unit], tokens: Tokens) -> None:
        self._model = model
        self._modules: dict[str, Module] = dict(model.named_modules())
        self._tokens = mx.array(tokens)
        tied = not any(unit.role == "head" for unit in units)
        outer = [unit for unit in units if unit.layer < 0]
        # a tied embedding multiplies the last states too
        self._after = tuple(unit for unit in outer if unit.role == "head" or (tied and unit.role == "embedding"))
        self._before = tuple(unit for unit in outer if unit not in self._after)
        self._layers: dict[str, list[Unit]] = defaultdict(list)
        for unit in units:
            if unit.layer >= 0:
                self._layers[layer_path(unit.path)].append(unit)
        self._order = self._called_in_a_row()
        self._passed: list[str] = []
        self._output: Any = None  # of the last passed layer

    @property
    def tied(self) -> tuple[Unit, ...]:
        """Units that the first and the last stage both use: the last rounds them, earlier layers need a weight."""
        return tuple(unit for unit in self._after if unit.role != "head")

    def stages(self, finished: Collection[str] = ()) -> Iterator[Stage]:
        """The stages in the order of the model; inputs are left out if all units are `finished`."""
        inside = tuple(f"{path}." for path in self._layers)
        parameters = dict(tree_flatten(self._model.parameters()))
        mx.eval([array for name, array in parameters.items() if not name.startswith(inside)])
        yield Stage(self._before, {})
        for path in self._order or sorted(self._layers, key=_by_number):
            layer = self._modules[path]
            mx.eval(layer.parameters())  # reading inside of a GPU's work trips Metal's watchdog
            yield self._stage(self._layers[path], path, finished)
            if self._order:
                self._output = self._run({}, path)
                mx.eval(self._output)
                self._passed.append(path)
                layer.update(tree_map(lambda _: mx.zeros(()), layer.parameters()))  # drops them
        yield self._stage(self._after, None, finished)

    def store(self, path: str, weight: mx.array) -> None:
        """Give a unit the weight that it is stored with, in float32."""
        self._modules[path]["weight"] = weight

    def _stage(self, units: Sequence[Unit], layer: str | None, finished: Collection[str]) -> Stage:
        calls: _Calls = {unit.path: [] for unit in units if unit.path not in finished}
        if calls:
            self._run(calls, layer if self._order else None)
        return Stage(tuple(units), _inputs_of({path: noted for path, noted in calls.items() if noted}))

    def _run(self, calls: _Calls, until: str | None) -> Any:
        """Run the model to the end of a layer and return the layer's output, or all of it; all of it lazy.

        The calls of the units in `calls` are noted there.
        """
        answers: dict[str, Hook] = dict.fromkeys(self._passed, lambda *_, **__: self._output)
        if until:
            answers[until] = _stop
        try:
            with hooked(self._modules, answers), unhooked_after(self._modules[path] for path in calls):
                for path, noted in calls.items():
                    module = self._modules[path]
                    name = "as_linear" if hasattr(module, "as_linear") else "__call__"
                    hook(module, partial(_note_inputs, noted), (name,))
                logits_of(self._model, self._tokens)
        except _PassedError as passed:
            return passed.output
        return None

    def _called_in_a_row(self) -> list[str]:
        """The layers in the order of their calls if each is called once, on the output of the one before; else none.

        Nothing is computed.
        """
        order: list[str] = []
        outputs: list[Any] = []
        chained: list[bool] = []

        def note(path: str, method: Any, layer: Module, *arguments: Any, **options: Any) -> Any:
            chained.append(not outputs or (bool(arguments) and arguments[0] is outputs[-1]))
            order.append(path)
            outputs.append(method(layer, *arguments, **options))
            return outputs[-1]

        with hooked(self._modules, {path: partial(note, path) for path in self._layers}):
            logits_of(self._model, self._tokens[:1, :2])
        return order if all(chained) and sorted(order) == sorted(self._layers) else []


class _PassedError(Exception):
    """The last layer of a pass has returned `output`."""

    def __init__(self, output: Any) -> None:
        self.output = output


def _stop(method: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    raise _PassedError(method(*arguments, **options))


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


def _note_inputs(
    noted: list[tuple[mx.array, mx.array | None]],
    method: Any,
    module: Module,
    rows: mx.array,
    *rest: Any,
    **options: Any,
) -> Any:
    """Note the inputs of a module: a matrix, a stack given the experts of each row, or an embedding used as a head."""
    shape = module["weight"].shape
    if rows.shape[-1] == shape[-1]:
        if len(shape) == 2:
            noted.append((rows, None))
        elif len(shape) == 3 and rest and isinstance(rest[0], mx.array):
            noted.append((rows, _routes(rows, rest[0])))
    return method(module, rows, *rest, **options)


def _routes(rows: mx.array, experts: mx.array) -> mx.array:
    """The experts (N, K) of the rows (N, C) in a product with gathered matrices.

    mlx_lm gives rows (..., 1, C) whose leading axes are those of `experts`, or 1 if a row goes to several.
    """
    leading = rows.shape[:-2]
    shared = len(leading) == experts.ndim and leading[-1] == 1 < experts.shape[-1]
    assert rows.shape[-2] == 1 and (shared or leading == experts.shape)
    return experts.reshape(-1, experts.shape[-1] if shared else 1)
