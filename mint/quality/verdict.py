"""The meaning of a KL divergence in words."""

RUINED_KL = 1.0  # nats per token: text is mostly nonsense
# KL divergence in nats per token, up to this value: the words for it
KL_WORDS = (
    (0.01, "hardly distinguishable from the original"),
    (0.05, "very close to the original"),
    (0.15, "close to the original"),
    (0.4, "a noticeable loss"),
    (RUINED_KL, "a heavy loss"),
)


def kl_in_words(kl: float) -> str:
    """The meaning of a KL divergence in nats per token."""
    return next((words for limit, words in KL_WORDS if kl <= limit), "the model is ruined")
