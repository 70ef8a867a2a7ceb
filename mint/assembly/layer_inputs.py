"""Yields the calibration inputs of each unit, layer by layer, with all earlier layers already quantized.

A walk runs the model on some tokens one layer at a time. It hands out the inputs of the layer's units, takes back the
weights that they will have, and goes on with what the layer returns then. So later layers see, and make up for, what
was lost before them. Layers that are passed answer from memory (as in `probes/replay.py`) and are dropped: beside the
weights outside of the layers, memory is bounded by one layer in float32 and what the tokens are there.

That needs layers that are called once each, every one on what the one before it returned. In models that are built
otherwise each layer's inputs come from a pass through the whole model: slower, and nothing is dropped.
"""

# B sequences, L tokens, N rows of inputs, C columns

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt
from mlx.nn.layers.base import Module
from mlx.utils import tree_flatten, tree_map

from mint.formats.units import Unit
from mint.model.hooks import Hook, hook, hooked, unhooked_after
from mint.model.roles import layer_path
from mint.quality.divergence import Tokens
from mint.quality.forward import logits_of

Rows = npt.NDArray[np.float32]
Note = Callable[[str, mx.array, mx.array | None], None]


@dataclass(frozen=True, slots=True)
class Seen:
    """The inputs of a unit: rows (N, C), and for a stack of experts which of them each row went to, (N, K)."""

    rows: Rows
    experts: npt.NDArray[np.int64] | None = None

    def of(self, index: int) -> Rows:
        """The rows that went to one matrix of the stack."""
        return self.rows if self.experts is None else self.rows[(self.experts == index).any(axis=1)]


@dataclass(frozen=True, slots=True)
class Stage:
    """Units that are rounded together, and what they see; units that multiply nothing have no inputs."""

    units: tuple[Unit, ...]
    inputs: Mapping[str, Seen]


class Walk:
    """A walk through `model` on `tokens` (B, L): iterate over its stages, and `store` every unit of a stage.

    A stage whose units are all in `known`, the weights of units by path, is passed without a look at its inputs.
    """

    def __init__(self, model: Module, units: Sequence[Unit], tokens: Tokens) -> None:
        self._model = model
        self._modules: dict[str, Module] = dict(model.named_modules())
        self._tokens = mx.array(tokens)
        self._before, self._layers, self._behind = _stages(units)
        self._order = self._called_in_a_row()
        self._passed: list[str] = []
        self._answer: Any = None

    @property
    def tied(self) -> tuple[Unit, ...]:
        """Units that the first and the last stage both use: the last rounds them, and the way there needs a weight."""
        return tuple(unit for unit in self._behind if unit.role != "head")

    def stages(self, finished: Collection[str] = ()) -> Iterator[Stage]:
        """The stages in the order of the model; inputs are left out where all units are `finished`."""
        self._read_outer()
        yield Stage(self._before, {})
        for path in self._order or sorted(self._layers, key=_by_number):
            mx.eval(self._modules[path].parameters())  # reading inside of a GPU's work trips Metal's watchdog
            yield self._stage(self._layers[path], path, finished)
            if self._order:
                self._answer = self._run([], path)
                mx.eval(self._answer)
                self._passed.append(path)
                self._drop(path)
        yield self._stage(self._behind, None, finished)

    def store(self, path: str, weight: mx.array) -> None:
        """Let the unit have the weight that it will be stored with, in float32."""
        self._modules[path]["weight"] = weight

    def _stage(self, units: tuple[Unit, ...], layer: str | None, finished: Collection[str]) -> Stage:
        pending = [unit.path for unit in units if unit.path not in finished]
        inputs = _Inputs()
        if pending:
            self._run([(path, inputs.note) for path in pending], layer if self._order else None)
        return Stage(units, inputs.seen())

    def _run(self, noted: Sequence[tuple[str, Note]], until: str | None) -> Any:
        """Call the model up to the end of a layer, or all of it, and return what the layer does; all of it lazy."""

        def stop(method: Any, layer: Module, *arguments: Any, **options: Any) -> Any:
            raise _PassedError(method(layer, *arguments, **options))

        calls: dict[str, Hook] = dict.fromkeys(self._passed, lambda *_, **__: self._answer)
        if until:
            calls[until] = stop
        try:
            with hooked(self._modules, calls), unhooked_after(self._modules[path] for path, _ in noted):
                for path, note in noted:
                    _note_inputs(self._modules[path], path, note)
                logits_of(self._model, self._tokens)
        except _PassedError as passed:
            return passed.answer
        return None

    def _called_in_a_row(self) -> list[str]:
        """The layers in the order of their calls if each is called once, on what the one before returned; else none.

        Nothing is computed.
        """
        order: list[str] = []
        answers: list[Any] = []
        chained = True

        def note(path: str) -> Hook:
            def answer(method: Any, layer: Module, *arguments: Any, **options: Any) -> Any:
                nonlocal chained
                chained = chained and (not answers or (bool(arguments) and arguments[0] is answers[-1]))
                order.append(path)
                answers.append(method(layer, *arguments, **options))
                return answers[-1]

            return answer

        with hooked(self._modules, {path: note(path) for path in self._layers}):
            logits_of(self._model, self._tokens[:1, :2])
        return order if chained and sorted(order) == sorted(self._layers) else []

    def _read_outer(self) -> None:
        inside = tuple(f"{path}." for path in self._layers)
        parameters = dict(tree_flatten(self._model.parameters()))
        mx.eval([array for name, array in parameters.items() if not name.startswith(inside)])

    def _drop(self, path: str) -> None:
        layer = self._modules[path]
        layer.update(tree_map(lambda _: mx.zeros(()), layer.parameters()))


class _PassedError(Exception):
    """The layer up to which a pass goes has returned."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer


class _Inputs:
    """The inputs of units, those of one product with many matrices held once."""

    def __init__(self) -> None:
        self._rows: dict[str, list[tuple[mx.array, mx.array | None]]] = defaultdict(list)
        self._copies: dict[int, tuple[mx.array, Rows]] = {}

    def note(self, path: str, rows: mx.array, experts: mx.array | None) -> None:
        """Note one call of a unit."""
        self._rows[path].append((rows, experts))

    def seen(self) -> dict[str, Seen]:
        """All calls of every unit."""
        mx.eval([part for calls in self._rows.values() for call in calls for part in call if part is not None])
        return {path: self._joined(calls) for path, calls in self._rows.items()}

    def _joined(self, calls: list[tuple[mx.array, mx.array | None]]) -> Seen:
        rows = [self._copy(rows) for rows, _ in calls]
        experts = [np.asarray(experts, np.int64) for _, experts in calls if experts is not None]
        flat = [chosen.reshape(len(part), -1) for chosen, part in zip(experts, rows, strict=False)]
        joined = rows[0] if len(rows) == 1 else np.concatenate(rows)
        return Seen(joined, np.concatenate(flat) if flat else None)

    def _copy(self, rows: mx.array) -> Rows:
        """(..., C) -> (N, C) in float32; the same array for the same rows."""
        if id(rows) not in self._copies:
            copy = np.asarray(rows.astype(mx.float32)).reshape(-1, rows.shape[-1])
            self._copies[id(rows)] = rows, copy  # holding the rows keeps their id
        return self._copies[id(rows)][1]


def _stages(units: Sequence[Unit]) -> tuple[tuple[Unit, ...], dict[str, tuple[Unit, ...]], tuple[Unit, ...]]:
    """Units before the layers, those of each layer, those behind; what multiplies the last states is behind."""
    tied = not any(unit.role == "head" for unit in units)
    outer = [unit for unit in units if unit.layer < 0]
    behind = tuple(unit for unit in outer if unit.role == "head" or (tied and unit.role == "embedding"))
    layers: dict[str, list[Unit]] = defaultdict(list)
    for unit in units:
        if unit.layer >= 0:
            layers[layer_path(unit.path)].append(unit)
    before = tuple(unit for unit in outer if unit not in behind)
    return before, {path: tuple(units_of_layer) for path, units_of_layer in layers.items()}, behind


def _by_number(path: str) -> tuple[int, str]:
    last = path.rpartition(".")[2]
    return int(last) if last.isdecimal() else -1, path


def _note_inputs(module: Module, path: str, note: Note) -> None:
    """Note the inputs of a module: a matrix, a stack given the experts of each row, or an embedding used as a head."""

    def call(method: Any, module: Module, rows: mx.array, *arguments: Any, **options: Any) -> Any:
        shape = module["weight"].shape
        if rows.shape[-1] == shape[-1]:
            if len(shape) == 2:
                note(path, rows, None)
            elif len(shape) == 3 and arguments and isinstance(arguments[0], mx.array):
                note(path, *_routed(rows, arguments[0]))
        return method(module, rows, *arguments, **options)

    hook(module, call, ("as_linear",) if hasattr(module, "as_linear") else ("__call__",))


def _routed(rows: mx.array, experts: mx.array) -> tuple[mx.array, mx.array]:
    """Rows (N, C) and their experts (N, K) of a product with gathered matrices.

    mlx_lm gives rows (..., 1, C) whose leading axes are those of `experts`, or 1 where a row goes to several.
    """
    leading = rows.shape[:-2]
    shared = len(leading) == experts.ndim and leading[-1] == 1 < experts.shape[-1]
    assert rows.shape[-2] == 1 and (shared or leading == experts.shape)
    return rows, experts.reshape(-1, experts.shape[-1] if shared else 1)
