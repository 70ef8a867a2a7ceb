"""docs/sources.md is the table of the present families and storages, and some of its cells are tried again."""

from pathlib import Path

import pytest

from tests.worlds.sources import COLUMNS, FAMILIES, LOSSLESS, NONE, YES, table, try_source

DOCUMENT = Path(__file__).parents[2] / "docs" / "sources.md"
ROWS = [line.strip("| ").split(" | ") for line in DOCUMENT.read_text().splitlines() if line.startswith("| ")]
CELLS = {(row[0], column.title): cell for row in ROWS[1:] for column, cell in zip(COLUMNS, row[1:], strict=True)}


def test_the_document_has_every_family_and_storage_and_no_fault() -> None:
    assert DOCUMENT.read_text() == table([(row[0], row[1:]) for row in ROWS[1:]])
    assert tuple(row[0] for row in ROWS[1:]) == FAMILIES
    assert set(CELLS.values()) == {NONE, YES, LOSSLESS}


@pytest.mark.parametrize(
    ("family", "title"),
    [
        ("llama", "compressed-tensors int4"),
        ("gemma3_text", "GGUF Q4_1"),
        ("qwen3_moe", "MLX 4/32 (`--requantize`)"),
        ("gpt_oss", "BF16"),
    ],
)
def test_a_cell_is_as_the_document_says(family: str, title: str, tmp_path: Path) -> None:
    (column,) = (column for column in COLUMNS if column.title == title)
    assert try_source(family, column, tmp_path) == CELLS[family, title]
