"""Configs of transformers 5, in the words of transformers 4.

transformers 5 writes `rope_parameters`, one dictionary or one for each kind of layer, in place of `rope_theta`,
`rope_scaling` and `partial_rotary_factor`. Most of mlx_lm's classes know the old keys alone: they fail, or compute
with their default base. So the old keys are added where the class has such a field and the config does not.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from mint.core.errors import MintError
from mint.model.opening.readers import Reader

NEW = "rope_parameters"
_THETA, _PARTIAL, _SCALING = "rope_theta", "partial_rotary_factor", "rope_scaling"
_ORIGINAL = "original_max_position_embeddings"
OTHER_NAMES = ("rotary_emb_base", "rotary_pct")  # of the base and of the share of rotated dimensions in some classes
_FIELDS = {_THETA: (_THETA, OTHER_NAMES[0]), _PARTIAL: (_PARTIAL, OTHER_NAMES[1]), _ORIGINAL: (_ORIGINAL,)}
_LOCAL_FIELDS = ("rope_local_base_freq", "rope_local_theta", "swa_rope_theta")  # the base of layers with a window
_GLOBAL_KINDS = ("full_attention", "global_attention")
_TYPES = ("rope_type", "type")
_YARN = {"yarn", "deepseek_yarn"}


def lift_rope(readers: Iterable[Reader]) -> None:
    """Add the old keys to the parts of a config. Raises `MintError` for parameters that the old keys cannot express."""
    for reader in readers:
        if reader.values.get(NEW) is not None:
            for name, value in _lifted(reader).items():
                if reader.values.get(name) is None:
                    reader.values[name] = value  # None where the old config says null: some classes insist on the key
            _lift_nested(reader)
        _lift_attention_factor(reader.values.get(_SCALING))


def old_words(reader: Reader) -> dict[str, Any]:
    """The parameters of a part in the old keys, as far as they belong to all layers."""
    main, _ = _kinds(reader)
    return {**{name: main[name] for name in (_THETA, _PARTIAL) if name in main}, _SCALING: _scaling(main)}


def _lifted(reader: Reader) -> dict[str, Any]:
    """The old keys that the class of a part has as fields, and their values."""
    main, local = _kinds(reader)
    scaling = _scaling(main)
    lifted: dict[str, Any] = {_SCALING: scaling} if scaling or NEW not in reader.fields else {}
    if NEW not in reader.fields:  # a class with that field takes the numbers from there, though not always the scaling
        lifted |= {field: main[name] for name, names in _FIELDS.items() if name in main for field in names}
        lifted |= dict.fromkeys(_LOCAL_FIELDS, local[_THETA]) if _THETA in local else {}
        _check_local(reader, main, local)
    elif not local:  # some classes with the new field compute with the old ones all the same
        lifted |= {name: main[name] for name in (_THETA, _PARTIAL) if name in main}
    return {name: value for name, value in lifted.items() if name in reader.fields}


def _lift_nested(reader: Reader) -> None:
    """Add the base to the dictionaries in which the code of the class looks for it, as dbrx does in `attn_config`."""
    main, _ = _kinds(reader)
    for key, part in {**reader.values, reader.key: reader.values}.items():
        if isinstance(part, dict) and _THETA in main and f'{key}["{_THETA}"]' in reader.code:
            part.setdefault(_THETA, main[_THETA])


def _lift_attention_factor(scaling: Any) -> None:
    """Put the factor of attention of YaRN into `mscale`, from which MLX computes it: factor = 0.1 mscale ln s + 1."""
    if not isinstance(scaling, dict) or not _YARN & {scaling.get(name) for name in _TYPES}:
        return
    wanted, stretch = scaling.get("attention_factor"), scaling.get("factor")
    if not isinstance(wanted, int | float) or not isinstance(stretch, int | float) or stretch <= 1:
        return
    if not scaling.keys() & {"mscale", "mscale_all_dim"}:
        scaling["mscale"] = (wanted - 1) / (0.1 * math.log(stretch))


def _kinds(reader: Reader) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The parameters of the layers that attend to everything, and of those with a window, if they have their own."""
    parameters = reader.values[NEW]
    place = f"config.json: {reader.key + '.' if reader.key else ''}{NEW}"
    if not isinstance(parameters, dict):
        raise MintError(f"{place} is {parameters!r}; needed: a JSON object. Download config.json again")
    kinds = {name: kind for name, kind in parameters.items() if isinstance(kind, dict)}
    if not kinds:
        return parameters, {}
    main = next((name for name in _GLOBAL_KINDS if name in kinds), next(iter(kinds)))
    others = [kind for name, kind in kinds.items() if name != main]
    if NEW not in reader.fields and any(other != others[0] for other in others):
        raise MintError(f"{place} has {', '.join(kinds)}; {reader.title} knows two kinds of layers")
    return kinds[main], others[0] if others else {}


def _scaling(parameters: Mapping[str, Any]) -> dict[str, Any] | None:
    """The old `rope_scaling`, its type under both names that classes ask for; None for plain rotary embeddings."""
    scaling = {name: value for name, value in parameters.items() if name not in (_THETA, _PARTIAL)}
    scaling = {name: value for name, value in scaling.items() if not isinstance(value, dict)}
    kind = next((scaling[name] for name in _TYPES if name in scaling), "default")
    if kind == "default" and not scaling.keys() - set(_TYPES):
        return None
    return {**scaling, **dict.fromkeys(_TYPES, kind)}


def _check_local(reader: Reader, main: Mapping[str, Any], local: Mapping[str, Any]) -> None:
    bases = main.get(_THETA), local.get(_THETA)
    if local and bases[0] != bases[1] and not reader.fields & set(_LOCAL_FIELDS) and _THETA in reader.fields:
        raise MintError(
            f"config.json: {NEW} gives layers of two kinds the bases {bases[0]} and {bases[1]}, and "
            f"{reader.title} has one base for all; it would compute with wrong positions"
        )
