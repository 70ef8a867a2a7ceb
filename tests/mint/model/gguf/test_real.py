"""The real GGUF file of SmolLM2 opens as the model that another conversion of it gives."""

from pathlib import Path

import numpy as np

from mint.model.module_tree import read_tokenizer
from mint.model.source import open_source
from tests.worlds.real_models import smollm2_gguf
from tools.models.make_smollm2 import read_gguf

TEXTS = (
    "Hello, world! 12345 it's a test\n\n  two  spaces",
    "<|im_start|>user\nHi<|im_end|>",
    "Stra\u00dfe \u2014 \u6771\u4eac def f(x):\n\treturn x**2",
)


def test_the_real_file_has_the_weights_and_tokens_of_its_other_conversion(tmp_path: Path) -> None:
    file = smollm2_gguf(tmp_path)
    source, expected = open_source(file), read_gguf(file)
    arrays = source.arrays()
    names = ["model.norm.weight", "model.embed_tokens.weight", *(name for name in arrays if ".7." in name)]
    assert arrays.keys() == expected.weights.keys()
    for name in names:
        np.testing.assert_array_equal(np.array(arrays.pop(name)), expected.weights[name].astype(np.float16), name)
    assert len(source.carried) == len(source.units)
    settings = expected.config.keys() - {"pad_token_id"}
    assert {name: source.config[name] for name in settings} == {name: expected.config[name] for name in settings}
    tokenizer = read_tokenizer(source.folder)
    assert all(tokenizer.encode(text) == expected.tokenizer.encode(text).ids for text in TEXTS)
    assert tokenizer.chat_template == expected.tokenizer_config["chat_template"]
