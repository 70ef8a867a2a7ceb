"""The memory of a context: bytes of a model's caches, piecewise linear in the tokens."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import Any

from mint.core.errors import MintError

STEP = 256  # tokens by which mlx_lm's caches grow
KV_BITS = (2, 3, 4, 5, 6, 8)  # what `mx.quantize` knows
KV_GROUP_SIZE = 64  # mlx_lm's default

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
        in the cache's dtype; caches that it leaves as they are count as they are. `MintError` when it cannot.
        While a long prompt is read a sliding window holds one prefill step more (2048 tokens in mlx_lm).
        """
        if tokens < 1:
            raise MintError(f"found a context of {tokens} tokens; needed: 1 or more")
        if kv_bits is not None and kv_bits not in KV_BITS:
            raise MintError(f"found kv_bits {kv_bits}; needed: one of {', '.join(map(str, KV_BITS))}, or none")
        if kv_bits is not None and self.obstacle:
            raise MintError(
                f"found kv_bits {kv_bits}, but mlx_lm cannot run this model with a quantized cache ({self.obstacle}); "
                "needed: a cache that is not quantized. Leave kv_bits out"
            )
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
        return ContextMemory(tuple((tokens, kept, size, plain) for tokens, kept, size, plain in points), obstacle)

    def _at(self, tokens: int) -> tuple[int, ...]:
        tokens = max(-(-tokens // STEP) * STEP, self.points[0][0])
        index = bisect_left(self.points, tokens, 1, len(self.points) - 1, key=lambda point: point[0])
        return on_line(self.points[index - 1], self.points[index], tokens)[1:]


def on_line(first: Point, last: Point, tokens: int) -> Point:
    """The point for `tokens` on the straight line through two others, rounded up."""
    run = last[0] - first[0]
    kept, elements, plain = (
        a - (a - b) * (tokens - first[0]) // run for a, b in zip(first[1:], last[1:], strict=True)
    )  # fmt: skip
    return tokens, kept, elements, plain
