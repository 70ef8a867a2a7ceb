"""The meaning of a KL divergence in words: always that of the figure as it is printed."""

from collections.abc import Mapping
from typing import Any

from mint.quality.estimates import Estimate

RUINED_KL = 1.0  # nats per token: text is mostly nonsense
VAGUE = 4.0  # a prediction that can be wrong by this factor says nothing about a model
_SHARED = " to the original"  # the end of some words
# KL divergence in nats per token, up to this value: the words for it
KL_WORDS = (
    (0.01, "hardly distinguishable from the original"),
    (0.05, "very close to the original"),
    (0.15, "close to the original"),
    (0.4, "a noticeable loss"),
    (RUINED_KL, "a heavy loss"),
)


def kl_text(kl: float) -> str:
    """A KL divergence as it is printed: two figures."""
    return f"{kl:.2g}"


def kl_in_words(kl: float) -> str:
    """The meaning of a KL divergence in nats per token."""
    printed = float(kl_text(kl))
    return next((words for limit, words in KL_WORDS if printed <= limit), "the model is ruined")


def interval_in_words(kl: Estimate) -> str:
    """The meaning of a measured KL divergence; of both ends of its interval, where a border lies between them."""
    near, far = kl_in_words(kl.low), kl_in_words(kl.high)
    if near == far:
        return near
    return f"between {near.removesuffix(_SHARED) if far.endswith(_SHARED) else near} and {far}"


def is_ruined(kl: float) -> bool:
    """True where text is mostly nonsense."""
    return float(kl_text(kl)) > RUINED_KL


def predicted_in_words(kl: Estimate) -> str | None:
    """The meaning of a predicted KL divergence; None where both ends of its interval do not mean the same."""
    words = kl_in_words(kl.low)
    return words if words == kl_in_words(kl.high) else None


def is_vague(kl: Estimate) -> bool:
    """True for a prediction whose uncertainty is too large to tell anything; people are shown none."""
    return kl.value > 0 and kl.high >= VAGUE * kl.value


def predicted_text(kl: Estimate) -> str:
    """A predicted KL divergence with its uncertainty: `KL 0.22 predicted, within a factor of 3`."""
    if kl.value <= 0:
        return f"{kl_in_words(0)}: KL 0, nothing is rounded"
    words = predicted_in_words(kl)
    within = f"within a factor of {float(f'{kl.high / kl.value:.2g}'):g}"
    return f"{f'{words}: ' if words else ''}KL {kl_text(kl.value)} predicted, {within}"


def interval_text(kl: Estimate) -> str:
    """A measured KL divergence with its interval, as it is printed."""
    return f"KL {kl_text(kl.value)} ({kl_text(kl.low)} to {kl_text(kl.high)})"


def measured_text(kl: Estimate, top1: Estimate) -> str:
    """A measured closeness in words and figures."""
    return f"{interval_in_words(kl)}: {interval_text(kl)} measured, same first word {top1.value:.0%}"


def uniform_text(uniform: Mapping[str, Any]) -> str:
    """The measured closeness of uniform 4-bit, from its record."""
    top1 = Estimate(**uniform["top1"])
    return f"{interval_text(Estimate(**uniform['kl']))} measured on the same text, same first word {top1.value:.0%}"


def beside_text(kl: Estimate, uniform: Estimate) -> str:
    """The closeness of a model as a multiple of that of uniform 4-bit; no figure where the intervals overlap."""
    if kl.low <= uniform.high and uniform.low <= kl.high:
        return "as close as 4-bit"
    near, far = sorted((kl.value, uniform.value))
    if near <= 0:
        return "closer than 4-bit" if kl.value < uniform.value else "farther than 4-bit"
    return f"{float(f'{far / near:.2g}'):g} times {'closer' if kl.value < uniform.value else 'farther'} than 4-bit"


def result_in_words(result: Mapping[str, Any]) -> dict[str, str]:
    """The closeness in the record of a result, as the command line says it; no key for what is not known.

    `closeness` is whole and `short` is for lists; `4-bit` and `WARNING` are as the lines of these labels.
    """
    words = {}
    measured, uniform = result.get("closeness"), result.get("uniform")
    low, value, high = (result.get(f"predicted_{end}") for end in ("low", "kl", "high"))
    if measured:
        kl = Estimate(**measured["kl"])
        words = {"closeness": measured_text(kl, Estimate(**measured["top1"]))}
        words["short"] = f"KL {kl_text(kl.value)} measured"
        if uniform:
            beside = Estimate(**uniform["kl"])
            words["short"] = f"KL {kl_text(kl.value)}, {beside_text(kl, beside)}"
            words["4-bit"] = uniform_text(uniform)
        value = kl.value
    elif low is not None and value is not None and high is not None:
        predicted = Estimate(value, low, high)
        words = {"closeness": "not measured"} if is_vague(predicted) else {
            "closeness": predicted_text(predicted), "short": f"KL {kl_text(value)} predicted",
        }  # fmt: skip
    if value is not None and is_ruined(value):
        words["WARNING"] = ruined_text(is_measured=bool(measured))
    return words


def ruined_text(*, is_measured: bool) -> str:
    """The warning about a model whose text is mostly nonsense."""
    return f"this size {'ruins' if is_measured else 'may ruin'} the model: expect nonsense. Give it more bytes"
