"""Yields the calibration inputs of each unit, layer by layer, with all earlier layers already quantized.

A walk runs the model on some tokens one layer at a time. It yields the inputs of the layer's units, takes the weights
that they are stored with, and continues with the layer's output for those. So later layers compensate earlier errors.
Finished layers are dropped and answer from memory (`probes/replay.py`). The head is read when its turn comes. So memory
is bounded by the other weights outside the layers, one layer in float32, its inputs, the activations of one block of
sequences, and what later layers use of earlier ones. Blocks have a fixed size: less memory never changes a result.

That needs layers that are called once each. In other models the inputs of each layer come from a pass through the
whole model: slower, and nothing is dropped.

A walk that is given the original too runs it beside, layer by layer. The output of each layer differs from the
original's by what earlier layers have lost. The widest unit that adds to the output learns the difference, so that it
can make up for it. GPTAQ (arXiv 2504.02692) does so for the outputs of every unit.
"""

# S sequences, B of a block, L tokens, N rows of inputs, C columns, D channels between layers

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.nn.layers.base import Module
from mlx.utils import tree_flatten, tree_map

from mint.analysis.probes.replay import Replay
from mint.analysis.unit_inputs import Experts, Inputs, Rows
from mint.core.log import log
from mint.formats.units import Unit
from mint.kernels.missing_outputs import Missing
from mint.kernels.storage import numpy_view
from mint.model.hooks import hook, hooked, unhooked_after
from mint.model.passes.added_output import AddedOutput, added_output, sizes_of
from mint.model.passes.logits import logits_of
from mint.model.roles import layer_path
from mint.quality.divergence import Tokens
from mint.quality.forward import sequence_blocks

ROWS = 1 << 10  # tokens of a block of sequences
LOGITS = 1 << 24  # of a block of judged sequences
_Noted = list[tuple[mx.array, mx.array | None]]  # rows and experts of each call of a unit
_Calls = dict[str, _Noted]  # by path
_Block = tuple[Replay, mx.array]  # sequences (B, L), and what the finished layers answer for them


@dataclass(frozen=True, slots=True)
class Stage:
    """Units that are rounded together, and their inputs; units that multiply nothing have none."""

    units: tuple[Unit, ...]
    inputs: Mapping[str, Inputs]


class Walk:
    """A walk through `model` on `tokens` (S, L): iterate over its stages, and `store` every unit of a stage.

    `judged` (J, L) are other sequences, whose `logits` are there at the end. Both may be empty. With the `original`,
    a unit of each layer learns what is `missing` in its outputs, where there is such a unit.
    """

    def __init__(
        self, model: Module, units: Sequence[Unit], tokens: Tokens, judged: Tokens, original: Module | None = None
    ) -> None:
        self._model = model
        self._modules: dict[str, Module] = dict(model.named_modules())
        self._example = mx.zeros((1, tokens.shape[1]), mx.int32)  # of a sequence
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
        replay = Replay(model, self._layers, self._example)
        vocabulary = logits_of(model, self._example).shape[-1]  # lazy: nothing is computed
        self._blocks = _blocks(replay, tokens, sequence_blocks(tokens, 1, ROWS))
        self._judged = _blocks(replay, judged, sequence_blocks(judged, vocabulary, LOGITS))
        self._order = replay.order
        self._in_a_row = sorted(self._order) == sorted(self._layers)
        self._wanted: _Outputs | None = None
        self._sample: list[_Block] = []
        self._heads = {f"{unit.path}.weight" for unit in self._after if unit not in self.tied}
        if original is not None and self._in_a_row and len(tokens):
            self._wanted = _Outputs(original, self._layers, tokens, self._heads)
            self._sample = _blocks(replay, tokens[:1], [slice(1)])
        self.largest = 0.0  # magnitude between layers so far, where they are called once each

    def stages(self, finished: Collection[str] = ()) -> Iterator[Stage]:
        """The stages in the order of the model; inputs are left out if all units are `finished`."""
        _read_outer(self._model, self._heads, self._layers)  # a head's stored weight replaces it unread
        yield Stage(self._before, {})
        if self._between:
            yield self._stage(self._between, finished)
        if not self._in_a_row:
            nbytes = sum(4 * unit.size for units in self._layers.values() for unit in units)
            log.warning("model.held_whole", reason="its layers are not called once each", needed_bytes=nbytes)
        for path in self._order if self._in_a_row else sorted(self._layers, key=_by_number):
            layer = self._modules[path]
            mx.eval(layer.parameters())  # reading inside of a GPU's work trips Metal's watchdog
            yield self._stage(self._layers[path], finished, path)
            if self._in_a_row:
                for replay, tokens in (*self._sample, *self._blocks, *self._judged):
                    with replay.up_to(path, record=True):
                        logits_of(self._model, tokens)
                    self.largest = max(self.largest, replay.largest)
                layer.update(tree_map(lambda _: mx.zeros(()), layer.parameters()))  # drops them
        yield self._stage(self._after, finished)

    def logits(self) -> Iterator[mx.array]:
        """The logits of the judged sequences in blocks (B, L, V), by the stored weights; after the last stage."""
        mx.eval(self._model.parameters())
        for replay, tokens in self._judged:
            with replay.before(None):
                yield logits_of(self._model, tokens)

    def weight(self, path: str) -> mx.array:
        """The float32 weight of a unit, as it is now; that of a head may not be read yet."""
        weight: mx.array = self._modules[path]["weight"]
        return weight

    def store(self, path: str, weight: mx.array) -> None:
        """Give a unit the weight that it is stored with, in float32."""
        self._modules[path]["weight"] = weight

    def _stage(self, units: Sequence[Unit], finished: Collection[str], layer: str = "") -> Stage:
        """The stage of `units`, which are in `layer` or in none; a pass notes their calls."""
        paths = [unit.path for unit in units if unit.path not in finished]
        added = self._added_output(layer) if self._wanted and layer else None
        if layer and not added and layer == self._order[0]:
            self._wanted = None  # the other layers are taken to be alike
        wanted = self._wanted.of(layer) if self._wanted and layer else []
        inputs, sums = _Joined(), _Sums(self._modules, added)
        for replay, tokens in self._blocks if paths else ():
            calls: _Calls = {path: [] for path in paths}
            stop = replay.up_to(layer) if layer and self._in_a_row else replay.before(None)
            with stop as answers, sums.noted(), unhooked_after(self._modules[path] for path in paths):
                for path, noted in calls.items():
                    module = self._modules[path]
                    name = "as_linear" if hasattr(module, "as_linear") else "__call__"
                    hook(module, partial(_note_inputs, noted), (name,))
                logits_of(self._model, tokens)
            sums.add(answers)
            inputs.add(calls)
        whole = inputs.whole()
        if added and added.path in whole:
            whole[added.path] = replace(whole[added.path], missing=sums.missing(wanted))
        return Stage(tuple(units), whole)

    def _added_output(self, layer: str) -> AddedOutput | None:
        """The widest unit whose output is added in `layer`, if there is one."""
        ((replay, tokens),) = self._sample

        def answer() -> Any:
            with replay.up_to(layer) as answers:
                logits_of(self._model, tokens)
            return answers[0]

        units = [unit for unit in self._layers[layer] if len(unit.shape) == 2]
        widest = sorted(units, key=lambda unit: unit.shape[-1], reverse=True)
        modules = {path: module for path, module in self._modules.items() if path.startswith(f"{layer}.")}
        return added_output(modules, [unit.path for unit in widest], answer)

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
            logits_of(self._model, self._example[:, :2])
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


class _Outputs:
    """The outputs of the layers at `paths` of an original model on tokens (S, L), one layer after the other."""

    def __init__(self, model: Module, paths: Collection[str], tokens: Tokens, heads: Collection[str]) -> None:
        self._model = model
        self._heads = heads  # names of parameters that are not used before the end
        self._layers = {path: module for path, module in model.named_modules() if path in paths}
        replay = Replay(model, paths, mx.zeros((1, tokens.shape[1]), mx.int32))
        self._blocks = _blocks(replay, tokens, sequence_blocks(tokens, 1, ROWS))
        self._outer_is_read = False

    def of(self, path: str) -> list[mx.array]:
        """The outputs of the layer at `path` for each block, after those of all layers before it."""
        if not self._outer_is_read:
            _read_outer(self._model, self._heads, self._layers)
            self._outer_is_read = True
        layer = self._layers[path]
        mx.eval(layer.parameters())
        for replay, tokens in self._blocks:
            with replay.up_to(path, record=True):
                logits_of(self._model, tokens)
        layer.update(tree_map(lambda _: mx.zeros(()), layer.parameters()))  # drops them
        return [replay.last for replay, _ in self._blocks]


class _Sums:
    """The outputs of a layer to which that of a unit is added, and the sizes of the latter under a norm."""

    def __init__(self, modules: Mapping[str, Module], added: AddedOutput | None) -> None:
        self._added = added
        self._hooks = {added.path: self._note_size} if added and added.is_normalized else {}
        self._modules = modules
        self._blocks: list[mx.array] = []
        self._sizes: list[mx.array] = []

    def noted(self) -> AbstractContextManager[None]:
        """Note the sizes in a pass while this lasts."""
        return hooked(self._modules, self._hooks)

    def add(self, answers: list[Any] | None) -> None:
        """Compute what a pass noted, and the layer's output, which `answers` has."""
        if self._added and answers:
            self._blocks += answers
            mx.eval(answers, self._sizes)

    def missing(self, wanted: Sequence[mx.array]) -> Missing:
        """The difference between the original's blocks (B, L, D) and these."""
        assert self._added is not None
        blocks = [(more - less).astype(mx.float32) for more, less in zip(wanted, self._blocks, strict=True)]
        sizes = _rows(self._sizes) if self._added.is_normalized else None
        return Missing(_rows(blocks), numpy_view(self._added.gain), sizes)

    def _note_size(self, method: Any, module: Module, *arguments: Any, **options: Any) -> Any:
        output = method(module, *arguments, **options)
        self._sizes.append(sizes_of(output))
        return output


def _rows(blocks: Sequence[mx.array]) -> Rows:
    """The rows (N, D) of blocks (B, L, D)."""
    return np.concatenate([numpy_view(block).reshape(-1, block.shape[-1]) for block in blocks])


def _read_outer(model: Module, but: Collection[str], layers: Iterable[str]) -> None:
    """Read the parameters outside of the layers, `but` some by name."""
    inside = tuple(f"{path}." for path in layers)
    parameters: Any = tree_flatten(model.parameters())
    mx.eval([array for name, array in parameters if name not in but and not name.startswith(inside)])


def _blocks(replay: Replay, tokens: Tokens, blocks: Iterable[slice]) -> list[_Block]:
    """Blocks of sequences (B, L) of `tokens`, each with a replay of its own."""
    return [(replay.another(), mx.array(tokens[rows])) for rows in blocks]


class _Joined:
    """The inputs of units over all blocks, with one array for units that share them."""

    def __init__(self) -> None:
        self._rows: dict[str, list[Rows]] = defaultdict(list)
        self._experts: dict[str, list[Experts]] = defaultdict(list)

    def add(self, calls: _Calls) -> None:
        """Compute the inputs that the calls of a block have noted."""
        noted = [call for calls_of_unit in calls.values() for call in calls_of_unit]
        mx.eval([part for call in noted for part in call if part is not None])
        shared = {id(rows): rows for rows, _ in noted}
        flat = {key: numpy_view(rows.astype(mx.float32)).reshape(-1, rows.shape[-1]) for key, rows in shared.items()}
        for path, calls_of_unit in calls.items():
            self._rows[path] += [flat[id(rows)] for rows, _ in calls_of_unit]
            experts = [experts for _, experts in calls_of_unit if experts is not None]
            self._experts[path] += [numpy_view(array).astype(np.int64) for array in experts]

    def whole(self) -> dict[str, Inputs]:
        """The inputs by path; units without any are left out."""
        joined: dict[tuple[int, ...], Rows] = {}
        inputs = {}
        for path, rows in self._rows.items():
            if rows:
                key = tuple(map(id, rows))
                if key not in joined:
                    joined[key] = rows[0] if len(rows) == 1 else np.concatenate(rows)
                experts = self._experts[path]
                inputs[path] = Inputs(joined[key], np.concatenate(experts) if experts else None)
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
