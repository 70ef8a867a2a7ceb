"""The tokenizer of a GGUF file, in the files of transformers.

transformers builds the tokenizer of most vocabularies. A byte-level one needs the rule that splits text before merges;
one whose rule is not known here would silently give other tokens, so it is refused.
"""

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, pre_tokenizers, processors

from mint.core.errors import MintError
from mint.model.gguf.metadata import GgufModel

_BYTE_LEVEL = "gpt2"
_DIGITS = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone")  # digits one by one, then GPT-2's rule
_GPT2 = ("gpt-2", "phi-2", "olmo", "granite-docling")
# rules of vocabularies whose words are looked up before merges, and which begin with BOS unless the file says otherwise
_WHOLE_WORDS = (
    "llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano", "tekken",
)  # fmt: skip
_IDS = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}


def write_tokenizer(model: GgufModel, folder: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and generation_config.json; `MintError` for an unknown kind."""
    values = {key.removeprefix("tokenizer.ggml."): value for key, value in model.values.items()}
    tokens = values.get("tokens")
    if not tokens:
        raise MintError(f"{model.path}: it has no tokenizer; needed: tokenizer.json beside it")
    tokenizer = _tokenizer(model, values)
    add_bos = bool(values.get("add_bos_token", values["model"] == "llama" or values.get("pre") in _WHOLE_WORDS))
    names = {role: tokens[values[f"{key}_token_id"]] for role, key in _IDS.items() if f"{key}_token_id" in values}
    if add_bos and "bos_token" in names:
        bos = names["bos_token"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, values["bos_token_id"])]
        )
    tokenizer.save(str(folder / "tokenizer.json"))
    template = model.values.get("tokenizer.chat_template")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **names,
        "clean_up_tokenization_spaces": False,
        "model_max_length": model.get("context_length"),
        **({"chat_template": template} if template else {}),
    }
    _write(folder / "tokenizer_config.json", settings)
    ends = list({values[f"{name}_token_id"]: 0 for name in ("eos", "eot", "eom") if f"{name}_token_id" in values})
    if ends:
        _write(folder / "generation_config.json", {"eos_token_id": ends if len(ends) > 1 else ends[0]})


def _tokenizer(model: GgufModel, values: dict[str, Any]) -> Tokenizer:
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS, convert_gguf_tokenizer

    kind, rule = str(values.get("model")), str(values.get("pre", "default"))
    if kind == _BYTE_LEVEL and rule not in (*GGUF_PRE_TOKENIZER_SPLITS, *_DIGITS, *_GPT2):
        fault = f"its tokenizer splits text by the rule {rule!r}, which mint does not know"
        raise MintError(f"{model.path}: {fault}; needed: tokenizer.json of the original model beside it")
    names = {"model": "tokenizer_type", "pre": "pre_tokenizer_type", "add_space_prefix": "add_prefix_space"}
    names |= {name: name for name in ("tokens", "scores", "token_type", "merges")}
    fields = {name: values[key] for key, name in names.items() if key in values}
    try:
        tokenizer: Tokenizer = convert_gguf_tokenizer(model.architecture, fields)[0]
    except (ValueError, KeyError) as error:
        fault = f"its tokenizer ({kind}) cannot be built ({error!s:.200})"
        raise MintError(f"{model.path}: {fault}; needed: tokenizer.json of the original model beside it") from error
    if kind == _BYTE_LEVEL and rule in _WHOLE_WORDS:
        tokenizer.model.ignore_merges = True
    if kind == _BYTE_LEVEL and rule in _DIGITS:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
    return tokenizer


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
