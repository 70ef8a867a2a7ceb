"""The memory of a context: bytes of a model's caches, piecewise linear in the tokens."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from mint.core.errors import MintError
from mint.core.records import typed

STEP = 256  # tokens by which mlx_lm's caches grow
KV_BITS = (2, 3, 4, 5, 6, 8)  # of `mx.quantize`
KV_GROUP_SIZE = 64  # mlx_lm's default
GRID = (STEP, 2**12, 2**16, 2**20)  # tokens; a straight line through these and the middles between them is one
PASSES = 500  # a staircase of more kinks than these can find is not understood

Point = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class ContextMemory:
    """Bytes of a model's caches as a function of the tokens in the context, for a batch of one.

    A point is (tokens, bytes of what mlx_lm never quantizes, elements of what it can quantize, bytes of these
    elements as they are). Between points all is linear, after the last it goes on as before it.
    `obstacle` says why the model cannot run with a quantized cache; empty when it can.
    """

    points: tuple[Point, ...]
    obstacle: str = ""

    def nbytes(self, tokens: int, kv_bits: int | None = None) -> int:
        """Bytes of the caches after a prompt of `tokens - 1` tokens and one more, rounded up to `STEP` tokens.

        With `kv_bits` as mlx_lm quantizes from the first token on (`quantized_kv_start=0`), with scales and biases
        in the cache's dtype; caches that it does not quantize count as they are. `MintError` when it cannot.
        While a long prompt is read a sliding window holds one prefill step more (2048 tokens in mlx_lm).
        """
        if tokens < 1:
            raise MintError(f"found a context of {tokens} tokens; needed: 1 or more")
        if kv_bits is not None and kv_bits not in KV_BITS:
            raise MintError(f"found kv_bits {kv_bits}; needed: one of {', '.join(map(str, KV_BITS))}, or none")
        if kv_bits is not None and self.obstacle:
            reason = f"mlx_lm cannot run this model with a quantized cache ({self.obstacle})"
            raise MintError(f"kv_bits {kv_bits}: {reason}; needed: a cache that is not quantized. Leave kv_bits out")
        fixed, elements, plain = self._at(tokens)
        if kv_bits is None:
            return fixed + plain
        return fixed + elements * kv_bits // 8 + 2 * plain // KV_GROUP_SIZE

    def to_fields(self) -> list[Any]:
        """The record as plain lists."""
        return [[list(point) for point in self.points], self.obstacle]

    @staticmethod
    def from_fields(fields: list[Any]) -> ContextMemory:
        """The record that `to_fields` wrote."""
        points, obstacle = fields
        return typed(ContextMemory(tuple(map(tuple, points)), obstacle))

    def _at(self, tokens: int) -> tuple[int, ...]:
        tokens = max(-(-tokens // STEP) * STEP, self.points[0][0])
        index = bisect_left(self.points, tokens, 1, len(self.points) - 1, key=lambda point: point[0])
        return _on_line(self.points[index - 1], self.points[index], tokens)[1:]


def find_points(measure: Callable[[int], Point]) -> tuple[Point, ...]:
    """The ends of the straight pieces of `measure`, from few calls of it."""
    measured: dict[int, Point] = {}

    def at(tokens: int) -> Point:
        if len(measured) == PASSES:
            raise MintError(f"found caches that still do not grow along straight lines after {PASSES} passes")
        return measured.setdefault(tokens, measured.get(tokens) or measure(tokens))

    def split(first: int, last: int) -> None:
        middle = (first + last) // 2 // STEP * STEP
        if middle > first and not _is_on_line(at(first), at(last), at(middle)):
            split(first, middle)
            split(middle, last)

    at(STEP)
    top = GRID[-1]  # or half of it as often as needed
    while top > 2 * STEP and top not in measured:
        with suppress(Exception):  # a table of positions may end, a size overflow
            at(top)
            break
        top //= 2
    at(top)
    grid = [*(tokens for tokens in GRID if tokens < top), top]
    if len(grid) == 2 or not all(_is_on_line(at(STEP), at(top), at(tokens)) for tokens in grid):
        for first, last in pairwise(grid):
            split(first, last)
    points = [measured[tokens] for tokens in sorted(measured)]
    triples = zip(points, points[1:], points[2:], strict=False)
    kinks = [point for before, point, after in triples if not _is_on_line(before, after, point)]
    return points[0], *kinks, points[-1]


def _on_line(first: Point, last: Point, tokens: int) -> Point:
    """The point for `tokens` on the straight line through two others, rounded up."""
    run = last[0] - first[0]
    fixed, elements, plain = (
        a - (a - b) * (tokens - first[0]) // run for a, b in zip(first[1:], last[1:], strict=True)
    )  # fmt: skip
    return tokens, fixed, elements, plain


def _is_on_line(first: Point, last: Point, point: Point) -> bool:
    """True where a point lies on the straight line through two others, to the byte: a kink may be as small as one."""
    run, step = last[0] - first[0], point[0] - first[0]
    return all((c - a) * run == (b - a) * step for a, b, c in zip(first, last, point, strict=True))
