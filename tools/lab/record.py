"""Records what the classes of transformers compute, so that tests compare mlx_lm's with them and need no torch.

    python -m tools.lab.record tests/worlds/recorded.json     # in an environment with torch and transformers 5

A row has a config, the names and shapes of its checkpoint as transformers saves it, and logits. Weights are drawn from
their names (`tools/models/recorded.py`), so none is stored. `tools/lab/recorded_configs.py` has the rows.
"""

import json
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.numpy import load_file, save_file
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForImageTextToText

from tools.lab.recorded_configs import LAYERS, ROWS, TEXT, VISION
from tools.models.recorded import TOKENS, drawn, folded, sampled

_UNUSED = ("architectures", "transformers_version", "use_cache", "initializer_range", "attention_dropout")


def config_of(row: dict[str, Any]) -> Any:
    """The small config of a row: its sections by `TEXT` and `VISION`, then the changes of the row."""
    kind = CONFIG_MAPPING[row["type"]]
    sections = getattr(kind, "sub_configs", None) or {}
    changes = {key: value for key, value in row.items() if key not in ("type", "told", "loader")}
    if "text_config" not in sections:
        return kind(**_small(kind, TEXT, changes))
    defaults, arguments = kind(), {}
    for name in sections:
        part = type(getattr(defaults, name))
        table = TEXT if name == "text_config" else VISION
        arguments[name] = {"model_type": part.model_type, **_small(part, table, changes.pop(name, {}))}
    top = {key: value for key, value in TEXT.items() if "token" in key and key in defaults.to_dict()}
    return kind(**{**top, **arguments, **changes})


def _small(kind: Any, table: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Small values for the keys that a config has, and the first layers that have all its kinds."""
    defaults = kind().to_dict()
    values = {key: value for key, value in table.items() if key in defaults}
    for key, name in getattr(kind, "attribute_map", {}).items():
        if key in table and name in defaults:
            values[name] = table.get(name, table[key])
    for key in ("layer_types", "layers_block_type"):
        layers = defaults.get(key)
        if isinstance(layers, list) and layers and key not in changes:
            count = max([values.get("num_hidden_layers", LAYERS), *(layers.index(one) + 1 for one in set(layers))])
            values |= {key: layers[:count]} | ({"num_hidden_layers": count} if "num_hidden_layers" in values else {})
    if isinstance(dense := defaults.get("mlp_layer_types"), list) and "mlp_layer_types" not in changes:
        values["mlp_layer_types"] = [dense[0], *[dense[-1]] * (values["num_hidden_layers"] - 1)]
    return {**values, **changes}


def record(row: dict[str, Any]) -> dict[str, Any]:
    """The config, tensors and logits of a row."""
    config = config_of(row)
    config.dtype = torch.float32
    kind = AutoModelForCausalLM if type(config) in AutoModelForCausalLM._model_mapping else AutoModelForImageTextToText
    settings = {"attn_implementation": "eager", "dtype": torch.float32}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        kind.from_config(config, **settings).save_pretrained(folder)
        shapes = {key: array.shape for key, array in load_file(folder / "model.safetensors").items()}
        save_file(
            {key: drawn(key, shape) for key, shape in shapes.items()}, folder / "model.safetensors", {"format": "pt"}
        )
        model = kind.from_pretrained(folder, **settings).eval()
        with torch.no_grad():
            logits = model(input_ids=torch.tensor(TOKENS), use_cache=False).logits.float().numpy()
        written = json.loads((folder / "config.json").read_text())
    numbers = [float(f"{number:.6g}") for number in sampled(logits).ravel()]
    written = {key: value for key, value in written.items() if key not in _UNUSED}
    return {**{key: row[key] for key in ("told", "loader") if key in row}, "config": written,
            "tensors": folded(shapes), "logits": numbers}  # fmt: skip


def main(output: Path, names: Iterable[str]) -> None:
    """Record the rows of these names, by default all, and keep the others that `output` has."""
    rows = json.loads(output.read_text()) if output.exists() else {}
    rows = {name: row for name, row in rows.items() if name in ROWS}
    for name in names or ROWS:
        print(name, file=sys.stderr)
        rows[name] = record(ROWS[name])
    lines = (f"{json.dumps(name)}: {json.dumps(row, sort_keys=True)}" for name, row in sorted(rows.items()))
    output.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
