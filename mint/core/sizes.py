"""Budgets and sizes as people write them. GB is 10^9 bytes, GiB is 2^30; a number without a unit is refused."""

import re
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal

from mint.core.errors import MintError

UNITS = {
    "B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40,
}  # fmt: skip
MAX_SHARD_BYTES = 5 * UNITS["GiB"]  # of a weight file, as mlx_lm.convert
_BY_LOWER = {unit.lower(): factor for unit, factor in UNITS.items()}
_RELATIVE = re.compile(r"(\d+(?:\.\d+)?)\s*(bpw|x)")
# texts that people write for a budget, and their meaning; uniform formats of mlx_lm add half a bit of scales, biases
_MEANT = (
    (r"(?:q|int|w)?([2-8])[-_ ]?(?:bits?|_k(?:_[sml])?|_0|_1)?", r"\1.5bpw, the size of uniform \1-bit"),
    (r"(\d\d)\s*%", r"0.\1x"), (r"(\d)\s*%", r"0.0\1x"),
    (r"(\d+),(\d+)\s*([a-z]+)", r"\1.\2\3"),
    (r"\d[\d.]*\s*[a-z]*\s*(?:-|–|to|\.\.)\s*(\d[\d.]*\s*[a-z]+)", r"\1: a budget is the most that may be used"),
    (r"([^,\s]+)[,\s]+([^,\s]+).*", r"\1 and \2, each with a --budget of its own"),
    (r"min.*|small.*", "min"), (r"max.*|full|large.*|none", "max"),
)  # fmt: skip
_TOKENS = re.compile(r"(\d+)\s*([kKmM]?)")
_SIZE = re.compile(r"\s*(\d+(?:[._]\d+)*)\s*([A-Za-z]*)\s*")


def parse_size(text: str) -> int:
    """Bytes of a size such as `90MB` or `16.5 GiB`, rounded down to a whole byte; `MintError` when it is not one."""
    match = _SIZE.fullmatch(text)
    if not match or match[1].count(".") > 1:
        raise MintError(f"{text!r} is not a size; needed a number with a unit, such as 90MB or 16.5GiB")
    if not match[2]:
        example = text.strip() + ("B" if float(match[1].replace("_", "")) >= 10**5 else "GB")
        raise MintError(f"{text!r} has no unit; needed one of {', '.join(UNITS)}, such as {example}")
    if match[2].lower() not in _BY_LOWER:
        raise MintError(f"{text!r} has the unknown unit {match[2]!r}; needed one of {', '.join(UNITS)}")
    nbytes = int(Decimal(match[1].replace("_", "")) * _BY_LOWER[match[2].lower()])
    if nbytes <= 0:
        raise MintError(f"{text!r} is no budget; needed a size above zero")
    return nbytes


@dataclass(frozen=True, slots=True)
class Amount:
    """A budget as it was written: a number of `B`, of bits per weight (`bpw`), of the source's size (`x`), or a word.

    `min` is the smallest plan that keeps to the rules, `max` the smallest of those with the least loss.
    """

    text: str
    unit: str  # B, bpw, x, min or max
    number: Decimal = Decimal(0)

    @classmethod
    def of_bytes(cls, nbytes: int) -> "Amount":
        """A number of bytes."""
        return cls(f"{nbytes}B", "B", Decimal(nbytes))

    def nbytes(self, weights: int, source_nbytes: int) -> int:
        """Bytes of a number, for a model of so many weights; not of a word."""
        factors = {"B": Decimal(1), "bpw": Decimal(weights) / 8, "x": Decimal(source_nbytes)}
        return int(self.number * factors[self.unit])

    def __str__(self) -> str:
        return self.text


def parse_budget(text: str) -> Amount:
    """The amount that people write as `18GB`, `16.5GiB`, `4.5bpw`, `0.3x`, `min` or `max`."""
    word = text.strip().lower()
    if word in ("min", "max"):
        return Amount(word, word)
    match = _RELATIVE.fullmatch(word)
    if not match:
        try:
            return Amount(text.strip(), "B", Decimal(parse_size(text)))
        except MintError as error:
            bits = f"{word}bpw" if word.replace(".", "", 1).isdecimal() and float(word) <= 16 else "4.5bpw"
            others = f"for a budget also bits per weight ({bits}), a share of the source (0.3x), min or max"
            raise MintError(f"{error}; {others}{_meant(text.strip())}") from error
    number = Decimal(match[1])
    if number <= 0:
        raise MintError(f"{text!r} is no budget; needed a number above zero")
    return Amount(text.strip(), match[2], number)


def _meant(text: str) -> str:
    """The budget that a text probably means, as the end of an error message; empty where nothing is probable."""
    for pattern, meaning in _MEANT:
        if (match := re.fullmatch(pattern, text, re.IGNORECASE)) and not text.isdecimal():
            return f". Perhaps you mean {match.expand(meaning)}"
    return ""


def parse_tokens(text: str) -> int:
    """The tokens of a context such as `8192` or `32k` (k is 1024, M is 1024^2)."""
    match = _TOKENS.fullmatch(text.strip())
    if not match or int(match[1]) == 0:
        raise MintError(f"{text!r} is not a context; needed a number of tokens, such as 8192, 32k or 1M")
    return int(match[1]) * {"": 1, "k": 1024, "m": 1024**2}[match[2].lower()]


def format_size(nbytes: int) -> str:
    """A size for people, in powers of 1000, with four figures."""
    for unit in ("TB", "GB", "MB", "kB"):
        if nbytes >= UNITS[unit]:
            return f"{nbytes / UNITS[unit]:.4g} {unit}"
    return f"{nbytes} B"


def enough_size(nbytes: int) -> str:
    """A size for people that holds `nbytes` when it is read back: four figures, rounded up."""
    for unit in ("TB", "GB", "MB", "kB"):
        if nbytes >= UNITS[unit]:
            number = Decimal(nbytes) / UNITS[unit]
            number = number.quantize(Decimal(10) ** (number.adjusted() - 3), ROUND_CEILING)
            return f"{number.normalize():f} {unit}"
    return f"{nbytes} B"


def format_seconds(seconds: float) -> str:
    """Seconds, minutes or hours for people, in as many figures as a forecast has."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"
