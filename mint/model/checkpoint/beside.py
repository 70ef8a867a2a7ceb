"""The files of a model beside its weights: those that the output keeps, and those that it must not have."""

import fnmatch
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from mint.core.files import TEMPLATES

# read by mlx_lm's loader and transformers' tokenizers, config and index among them
BESIDE = ("*.json", "*.jinja", "*.model", "*.tiktoken", "*.txt", "*.jsonl", "*.py")
# terms that the model may only be passed on with, and templates that transformers keeps in a folder
TERMS = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*", "COPYING*")
CARD_NAME = "README.md"  # the output has its own, with the metadata of this one
_TEMPLATES = f"{TEMPLATES}/*.jinja"
_TRAINING = (
    "trainer_state.json", "training_args*", "train*.json*", "valid*.jsonl", "test*.jsonl", "eval*.json*", "dataset*",
    "*_results.json", "optimizer*", "scheduler*", "rng_state*", "global_step*", "adapter_config.json",
    "requirements.txt",
)  # fmt: skip
# they make loaders take the model for one with a vision or audio tower
_TOWERS = ("*preprocessor_config.json", "processor_config.json", "image_processor*.json", "feature_extractor*.json")


def is_wanted(name: str) -> bool:
    """True for a file of the hub, as a path in its repository, that the output may keep or that its making needs."""
    return _matches(name, _TEMPLATES) if "/" in name else _matches(name, CARD_NAME, *BESIDE, *TERMS)


def files_beside(folder: Path, *, text_only: bool) -> Iterator[PurePosixPath]:
    """The files that the output keeps, relative to `folder`; without those of towers if it is text only."""
    aside = (*_TRAINING, "*.index.json", *(_TOWERS if text_only else ()))
    for pattern in (*BESIDE, *TERMS, _TEMPLATES):
        for path in sorted(folder.glob(pattern)):
            name = path.relative_to(folder).as_posix()
            if path.is_file() and not _matches(name, *aside):
                yield PurePosixPath(name)


def _matches(name: str, *patterns: str) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
