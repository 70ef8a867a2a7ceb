"""Tries families in every storage, and writes docs/sources.md.

    python -m tests.worlds.sources [--family NAME ...] [--table FILE]

A cell is a tiny checkpoint of a family whose matrices are stored in one way. It is opened, quantized at the largest
budget and verified: `lossless` where every encoded unit keeps its values in a format of fewer bits, `yes` where the
model is written and verified, `-` where the family has no such storage, else the sentence of the error.
"""

import argparse
import re
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gguf import GGMLQuantizationType as Type

from mint.core.errors import MintError
from mint.formats.format import KEEP
from mint.model.gguf import architectures
from mint.pipeline import quantize
from mint.plan.recipe import Recipe
from tests.worlds import encodings as enc
from tests.worlds.gguf_world import ARCHITECTURES as GGUF_NAMES
from tests.worlds.gguf_world import blocks_of, write_gguf
from tests.worlds.zoo import write_model
from tools.models.families import write_family

FAMILIES = (
    "llama", "mixtral", "qwen2", "qwen3", "qwen3_moe", "gemma2", "gemma3_text", "phi3", "olmo2", "glm4_moe", "lfm2",
    "deepseek_v3", "gpt_oss", "qwen3_next",
)  # fmt: skip
MATRICES = re.compile(r"(proj|w[123])\.weight$")
NONE, YES, LOSSLESS = "-", "yes", "lossless"

Write = Callable[[str, Path], Path]  # a family to an empty folder -> the path of its model


class _MissingError(Exception):
    """The family has no model in this storage."""


def _plain(family: str, folder: Path) -> Path:
    return write_model(family, folder / "model", tokenizer=True)


def _encoded(encoding: enc.Encoding, config: dict[str, Any] | None = None) -> Write:
    def write(family: str, folder: Path) -> Path:
        model = _plain(family, folder)
        matrices = {
            name: array.shape
            for name, (_, array) in enc.read_tensors(model / "model.safetensors").items()
            if MATRICES.search(name) and array.ndim == 2 and array.shape[0] % 32 == 0 and array.shape[1] % 32 == 0
        }
        if not matrices:
            raise _MissingError
        pattern = "|".join(f"^{re.escape(name)}$" for name in matrices)
        settings = config or {"quantization_config": {"quant_method": "of the test"}}
        enc.write_encoded(model, pattern, encoding, settings)
        return model

    return write


def _gguf(kind: Type) -> Write:
    def write(family: str, folder: Path) -> Path:
        if GGUF_NAMES.get(family, family) not in architectures.ARCHITECTURES:
            raise _MissingError
        model = folder / "model"
        if family == "qwen3_moe":  # the zoo's has a dense layer, which GGUF cannot say
            write_family(family, model, mlp_only_layers=[], norm_topk_prob=True, decoder_sparse_step=1)
        else:
            _plain(family, folder)
        write_gguf(model, folder / "model.gguf", blocks_of(kind))
        return folder / "model.gguf"

    return write


def _mlx(mode: str, bits: int, group: int) -> Write:
    entry = {"group_size": group, "bits": bits, "mode": mode}
    return _encoded(enc.quantized(mode, bits, group), {"quantization": entry})


@dataclass(frozen=True, slots=True)
class Column:
    """One storage: its title, and how a tiny checkpoint is written in it."""

    title: str
    write: Write
    recipe: Recipe = field(default_factory=Recipe)


COLUMNS = (
    Column("BF16", _plain),
    Column("FP8, blocks", _encoded(enc.fp8(), {"quantization_config": {"weight_block_size": [128, 128]}})),
    Column("FP8, rows", _encoded(enc.fp8(kind="row", scale="_scale"))),
    Column("int8", _encoded(enc.int8())),
    Column("compressed-tensors int4", _encoded(enc.packed())),
    Column("AWQ", _encoded(enc.awq(32))),
    Column("GPTQ", _encoded(enc.gptq(4, 32))),
    Column("NF4", _encoded(enc.bnb_4bit())),
    Column("MXFP4", _encoded(enc.mxfp4())),
    Column("NVFP4", _encoded(enc.nvfp4())),
    Column("torchao int8", _encoded(enc.torchao(enc.int8()))),
    Column("MLX 4/32 (`--requantize`)", _mlx("affine", 4, 32), Recipe(requantize=True)),
    Column("MLX nvfp4 (`--requantize`)", _mlx("nvfp4", 4, 16), Recipe(requantize=True)),
    Column("GGUF Q4_1", _gguf(Type.Q4_1)),
    Column("GGUF BF16", _gguf(Type.BF16)),
)


def try_source(family: str, column: Column, folder: Path) -> str:
    """The cell of a family and a storage, tried in an empty folder."""
    try:
        model = column.write(family, folder)
        result = quantize(model, "max", folder / "out", column.recipe)
    except _MissingError:
        return NONE
    except MintError as error:
        return " ".join(str(error).replace(str(folder), "").split())[:120].replace("|", "/")
    stored = [choice for choice in result.plan.choices if choice.format != KEEP]
    return LOSSLESS if stored and all(choice.error == 0 for choice in stored) else YES


def table(rows: Iterable[tuple[str, list[str]]]) -> str:
    """The rows as the Markdown of docs/sources.md."""
    titles = ["family", *(column.title for column in COLUMNS)]
    lines = [
        "# Sources",
        "",
        "Families in the storages that checkpoints come in, tried on tiny checkpoints by",
        "`python -m tests.worlds.sources --table docs/sources.md`: opened, quantized at the largest budget, and",
        "verified with stock mlx_lm. *Lossless*: encoded matrices keep their values in a format of fewer than 16 bits.",
        "*Yes*: written and verified; at the largest budget matrices stay in 16 bits. `-`: there is no such storage.",
        "",
        f"| {' | '.join(titles)} |",
        f"|{'---|' * len(titles)}",
        *(f"| {family} | {' | '.join(cells)} |" for family, cells in rows),
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Try the cells and print the rows as they come."""
    parser = argparse.ArgumentParser(description="Try families in every storage.")
    parser.add_argument("--family", nargs="*", default=list(FAMILIES))
    parser.add_argument("--table", type=Path)
    options = parser.parse_args()
    rows = []
    for family in options.family:
        cells = []
        for column in COLUMNS:
            with tempfile.TemporaryDirectory() as folder:
                cells.append(try_source(family, column, Path(folder)))
        rows.append((family, cells))
        print(f"{family:12} {' | '.join(cells)}", flush=True)
    if options.table:
        options.table.write_text(table(rows))
    return 0 if all(cell in (NONE, YES, LOSSLESS) for _, cells in rows for cell in cells) else 1


if __name__ == "__main__":
    sys.exit(main())
