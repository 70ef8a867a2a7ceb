"""The reference file: what goes in comes out, and nothing else is taken for one."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from mint.core.errors import MintError
from mint.quality.reference_file import Origin, Reference, new_reference, read_reference

S, N, L, V = 3, 2, 4, 50
ORIGIN = Origin("model", "1234", "5678", "written", 7, "cpu", {"mint": "0.1.0"})
GENERATOR = np.random.default_rng(0)
TOKENS = GENERATOR.integers(0, V, (S, L), dtype=np.int32)
TOP = GENERATOR.integers(0, V, (S, L - 1), dtype=np.int32)
NLL = GENERATOR.random((S, L - 1)).astype(np.float32)
NOISE = GENERATOR.random((N, L - 1)).astype(np.float32)
LOG_PROBABILITIES = -GENERATOR.random((S, L - 1, V)).astype(np.float32)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "reference.safetensors"
    with new_reference(path, ORIGIN, TOKENS, V, noisy=N) as (reference, append):
        append(LOG_PROBABILITIES[:2])
        assert (reference.log_probabilities(slice(1, 2)) == LOG_PROBABILITIES[1:2].astype(np.float16)).all()
        append(LOG_PROBABILITIES[2:])
        reference.top[:], reference.nll[:], reference.noise[:] = TOP, NLL, NOISE
    return path


def test_what_is_written_is_read(path: Path) -> None:
    reference = read_reference(path)
    assert reference.origin == ORIGIN
    assert reference.vocabulary == V
    for name, expected in {"tokens": TOKENS, "top": TOP, "nll": NLL, "noise": NOISE}.items():
        assert (getattr(reference, name) == expected).all()
    assert (reference.log_probabilities(slice(1, 3)) == LOG_PROBABILITIES[1:3].astype(np.float16)).all()
    assert not path.with_name(f"{path.name}.partial").exists()


def test_it_is_a_safetensors_file(path: Path) -> None:
    with safe_open(path, "numpy") as file:
        assert (file.get_tensor("tokens") == TOKENS).all()
        assert (file.get_tensor("log_probabilities") == LOG_PROBABILITIES.astype(np.float16)).all()


def test_an_interrupted_writing_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "reference.safetensors"
    with pytest.raises(KeyboardInterrupt), new_reference(path, ORIGIN, TOKENS, V, noisy=N) as (_, append):
        append(LOG_PROBABILITIES[:2])
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def _flip(position: int) -> Callable[[bytes], bytes]:
    def flipped(content: bytes) -> bytes:
        index = position % len(content)
        return content[:index] + bytes([content[index] ^ 1]) + content[index + 1 :]

    return flipped


@pytest.mark.parametrize(
    "damage",
    [
        *(_flip(position) for position in (-1, -V, -2 * S * (L - 1) * V - 4)),
        lambda content: content[:-10],
        lambda content: content + b"more",
        lambda content: content[:5],
        lambda content: b"",
        lambda content: content.replace(b'seed\\": 7', b'seed\\": 8'),
        lambda content: content.replace(b'"schema": "1"', b'"schema": "9"'),
        lambda content: content.replace(b'identity\\"', b'identitx\\"'),
    ],
)
def test_a_damaged_file_is_refused(damage: Callable[[bytes], bytes], path: Path) -> None:
    content = path.read_bytes()
    assert damage(content) != content
    path.write_bytes(damage(content))
    with pytest.raises(MintError, match="make it again with save_reference"):
        read_reference(path)


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    foreign = tmp_path / "model.safetensors"
    save_file({"weight": np.zeros(3)}, foreign)
    with pytest.raises(MintError, match="a safetensors file, but no reference"):
        read_reference(foreign)
    foreign.write_text("nothing of the kind")
    with pytest.raises(MintError, match="not a whole reference file"):
        read_reference(foreign)


def test_every_byte_counts(path: Path) -> None:
    """A flip anywhere behind the lengths of the header is refused or changes nothing that is read."""
    content, whole = path.read_bytes(), read_reference(path)
    for position in GENERATOR.integers(8, len(content), 150).tolist():
        path.write_bytes(_flip(position)(content))
        try:
            reference = read_reference(path)
        except MintError:
            continue
        assert _same(reference, whole), f"byte {position} of {len(content)}"


def _same(reference: Reference, whole: Reference) -> bool:
    return reference.origin == whole.origin and all(
        np.array_equal(getattr(reference, name), getattr(whole, name)) for name in ("tokens", "top", "nll", "noise")
    )
