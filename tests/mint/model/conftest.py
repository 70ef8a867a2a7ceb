from pathlib import Path

import pytest

from tests.worlds.zoo import write_model


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in three shards, with a tokenizer."""
    return write_model("llama", tmp_path_factory.mktemp("models") / "big", shards=3, tokenizer=True)
