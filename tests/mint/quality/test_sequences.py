"""The sequences of an evaluation: windows of a text, or text that the model writes."""

import json
from itertools import repeat
from pathlib import Path

import numpy as np
import pytest
from mlx_lm.utils import load_tokenizer

from mint.core.errors import MintError
from mint.core.progress import ignore
from mint.quality.forward import open_wide
from mint.quality.sequences import TextSize, own_sequences, prefix_of, text_sequences, text_size, vocabulary_digest
from tests.worlds.zoo import write_model

WORDS = "A model is quantized under a budget of bytes. What a byte buys is measured. "


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(WORDS * 4)
    return path


def test_windows_are_the_text_cut_one_after_another(llama: Path, text: Path) -> None:
    sequences = text_sequences(llama, [text], TextSize(3, 8))
    tokens = load_tokenizer(llama).encode(WORDS * 4, add_special_tokens=False)
    assert sequences.tolist() == [tokens[0:8], tokens[8:16], tokens[16:24]]


def test_every_file_has_its_turn(llama: Path, text: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("budget " * 20)
    one, two = text_sequences(llama, [text], TextSize(2, 8)), text_sequences(llama, [other], TextSize(1, 8))
    assert text_sequences(llama, [text, other], TextSize(3, 8)).tolist() == [
        one[0].tolist(),
        two[0].tolist(),
        one[1].tolist(),
    ]


def test_a_text_too_short_is_refused_with_numbers(llama: Path, text: Path) -> None:
    tokens = len(load_tokenizer(llama).encode(WORDS * 4, add_special_tokens=False))
    with pytest.raises(MintError, match=rf"{tokens} tokens make 0 whole windows of 512; needed 8 \(4,096 tokens\)"):
        text_sequences(llama, [text], text_size(None, None, own=False))


@pytest.mark.parametrize(
    ("tokens", "window", "complaint"),
    [(100, 64, "needed at least 128"), (100, 1, "predicts nothing"), (0, None, "needed at least 256")],
)
def test_fewer_than_two_sequences_are_refused(tokens: int, window: int | None, complaint: str) -> None:
    with pytest.raises(MintError, match=complaint):
        text_size(tokens, window, own=True)


def test_text_needs_a_tokenizer_and_a_file_of_text(llama: Path, text: Path, tmp_path: Path) -> None:
    bare = write_model("llama", tmp_path / "bare")
    with pytest.raises(MintError, match="no tokenizer found"):
        text_sequences(bare, [text], TextSize(2, 8))
    with pytest.raises(MintError, match="no such text"):
        text_sequences(llama, [tmp_path / "nowhere.txt"], TextSize(2, 8))
    (bare / "tokenizer.json").write_text("{}")
    with pytest.raises(MintError, match="does not load its tokenizer"):
        text_sequences(bare, [text], TextSize(2, 8))
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9" * 99)
    with pytest.raises(MintError, match="not a text in UTF-8"):
        text_sequences(llama, [tmp_path / "latin.txt"], TextSize(2, 8))


def test_own_text_is_decided_by_its_seed(llama: Path) -> None:
    model = open_wide(llama)
    first, again, other = (
        own_sequences(repeat(model), prefix_of(llama), 512, TextSize(3, 10), seed, ignore) for seed in (1, 1, 2)
    )
    assert first.shape == (3, 10)
    assert (first == again).all()
    assert (first != other).any()
    assert ((first >= 0) & (first < 512)).all()
    assert len(set(first[:, 0].tolist())) > 1


def test_own_text_follows_the_models_distribution(llama: Path) -> None:
    """The mean cost of sampled tokens is their entropy; of random tokens it would be more."""
    from mint.quality.divergence import predictions
    from mint.quality.forward import all_logits

    model = open_wide(llama)
    tokens = own_sequences(repeat(model), prefix_of(llama), 512, TextSize(128, 8), 0, ignore)
    ((_, logits),) = all_logits(model, tokens, 512)
    prediction = predictions(logits, tokens[:, 1:])
    p = prediction.log_probabilities.astype(np.float64)
    entropy = -(np.exp(p) * p).sum(-1)
    spread = (prediction.nll - entropy).std() / np.sqrt(prediction.nll.size)
    assert abs(prediction.nll.mean() - entropy.mean()) < 4 * spread
    assert (-p.mean() - entropy.mean()) > 4 * spread


def test_the_digest_is_of_tokens_not_of_files(llama: Path, tmp_path: Path) -> None:
    copy = write_model("llama", tmp_path / "copy", tokenizer=True)
    tokenizer = copy / "tokenizer.json"
    assert vocabulary_digest(copy) == vocabulary_digest(llama)
    tokenizer.write_text(" " + tokenizer.read_text())
    assert vocabulary_digest(copy) == vocabulary_digest(llama)
    record = json.loads(tokenizer.read_text())
    vocabulary = record["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    tokenizer.write_text(json.dumps(record))
    assert vocabulary_digest(copy) not in ("", vocabulary_digest(llama))
    assert vocabulary_digest(write_model("llama", tmp_path / "bare")) == ""
