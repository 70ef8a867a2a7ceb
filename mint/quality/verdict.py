"""The meaning of a KL divergence in words: always that of the figure as it is printed."""

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
