"""The commands under attack, the folders they start in, and what an undisturbed run leaves."""

import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from mint.core.cache import cache_folder, kernel_folder
from mint.core.files import sha256_of
from tools.attack.hub import ID, serving
from tools.attack.runs import HUB, Outcome, run
from tools.attack.shim import Spoil
from tools.models.families import write_family

MODEL = "MODEL"  # stands for the model in the words of a command
_OF_HUB = str(ID)  # the same model, on a hub
_NOT_COMPARED = ("kernels", "rates")  # folders of the cache that belong to the machine
# files of a few bytes that a killed huggingface_hub leaves in its own cache, and that no later download mends
_OF_OTHERS = re.compile(
    r"hub/CACHEDIR\.TAG|hub/models--[^/]+/(trees/tmp\w+\.tmp|refs/main\.\w+\.tmp|(blobs/)?tmp[^/]*(/dummy_file_\w+)?)"
)
_TINY = {"num_hidden_layers": 2, "hidden_size": 64, "vocab_size": 256, "intermediate_size": 128, "head_dim": 16}
_QUANTIZE = ("quantize", MODEL, "--output", "out")
_TWO = ("--budget", "6bpw", "--budget", "5bpw")


@dataclass(frozen=True, slots=True)
class Attacked:
    """A command, and those that prepare the folder in which it starts; `family` is that of its model."""

    words: tuple[str, ...]
    before: tuple[tuple[str, ...], ...] = ()
    family: str = "llama"


_ANALYZE = ("analyze", MODEL, "--output", "a.mint")
_ALLOCATE = ("allocate", "a.mint", "--budget", "6bpw", "--output", "plan.json")
ATTACKED: dict[str, Attacked] = {
    "analyze": Attacked((*_ANALYZE, "--features")),
    "probe": Attacked(("probe", MODEL, "--analysis", "a.mint", "--sequences", "2", "--length", "16"), (_ANALYZE,)),
    "allocate": Attacked(_ALLOCATE, (_ANALYZE,)),
    "curve": Attacked(("curve", "a.mint", "--points", "5", "--csv", "c.csv", "--plot", "c.svg"), (_ANALYZE,)),
    "export": Attacked(("export-predicate", "plan.json", "--tensor-types", "types"), (_ANALYZE, _ALLOCATE)),
    "assemble": Attacked(
        ("assemble", "plan.json", "--model", MODEL, "--output", "out"), (_ANALYZE, _ALLOCATE), "qwen3_moe"
    ),
    "fast": Attacked((*_QUANTIZE, "--quality", "fast", "--budget", "6bpw"), family="qwen3_moe"),
    "search": Attacked((*_QUANTIZE, "--rounding", "search", "--budget", "6bpw")),
    "two budgets": Attacked((*_QUANTIZE, "--quality", "fast", *_TWO), family="qwen3_moe"),
    "good": Attacked((*_QUANTIZE, "--quality", "good", "--budget", "6bpw")),
    "learn": Attacked((*_QUANTIZE, "--quality", "good", "--budget", "3.5bpw")),  # matrices learn below 4.25 bits
    "best": Attacked((*_QUANTIZE, "--quality", "best", "--budget", "6bpw")),
    "evaluate": Attacked(
        ("evaluate", "out", "--reference", MODEL, "--save-reference", "kept.mint", "--tokens", "64", "--window", "16"),
        ((*_QUANTIZE, "--quality", "fast", "--budget", "6bpw"),),
    ),
    "hub": Attacked(("analyze", _OF_HUB, "--output", "a.mint")),
    "low disk": Attacked(
        ("quantize", _OF_HUB, "--output", "out", "--quality", "fast", "--budget", "6bpw", "--low-disk")
    ),
}


@dataclass(slots=True)
class World:
    """A command, the folder it starts in, and the files that an undisturbed run leaves, by digest."""

    attacked: Attacked
    model: str
    start: Path
    scratch: Path
    machine: Path  # a folder with the rates of this machine
    variables: Mapping[str, str] = field(default_factory=dict)
    undisturbed: dict[str, str] = field(default_factory=dict)

    def run(self, folder: Path, spoil: Spoil | None = None, seconds: float | None = None) -> Outcome:
        """Run the command in a folder."""
        return self._run(self.attacked.words, folder, spoil, seconds)

    def _run(
        self, words: Sequence[str], folder: Path, spoil: Spoil | None = None, seconds: float | None = None
    ) -> Outcome:
        arguments = [self.model if word == MODEL else word for word in words]
        own = {"MINT_CACHE": str(folder / "cache"), "MINT_CONFIG": str(folder / "config")}
        return run(arguments, folder, {**self.variables, **own}, spoil=spoil, seconds=seconds)

    def prepare(self) -> None:
        """Run the commands before, and the command itself without disturbance."""
        (self.start / "cache").mkdir(parents=True)
        (self.start / "cache" / "rates").symlink_to(self.machine)
        for words in self.attacked.before:
            _insist(self._run(words, self.start))
        with self.folder() as folder:
            _insist(self.run(folder))
            self.undisturbed = digests(folder)

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """A folder in which the command can start, for one trial."""
        with TemporaryDirectory(dir=self.scratch) as name:
            folder = Path(name) / "work"
            shutil.copytree(self.start, folder, symlinks=True)
            yield folder


@contextmanager
def world(name: str) -> Iterator[World]:
    """The world of a command of `ATTACKED`, on a tiny model."""
    with TemporaryDirectory(prefix="mint-attack-") as folder:
        scratch = Path(folder)
        machine = cache_folder() / "rates"
        machine.mkdir(parents=True, exist_ok=True)
        attacked = ATTACKED[name]
        model = write_family_apart(attacked.family, scratch / "model")
        (scratch / "trials").mkdir()
        variables = {"MINT_KERNELS": str(kernel_folder())}
        with serving(model) if _OF_HUB in attacked.words else nullcontext("") as hub:
            if hub:
                variables[HUB] = hub
            made = World(attacked, str(model), scratch / "start", scratch / "trials", machine, variables)
            made.prepare()
            yield made


def write_family_apart(family: str, folder: Path) -> Path:
    """Write a tiny model in a child: MLX must not compute in this process."""
    pid = os.fork()
    if not pid:
        code = 1
        try:
            write_family(family, folder, **_TINY)
            code = 0
        finally:
            os._exit(code)
    if os.waitpid(pid, 0)[1]:
        raise RuntimeError(f"{family}: no model was written to {folder}")
    return folder


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, by path; files of the machine are left out."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() or path.is_symlink())
    names = {path.relative_to(folder).as_posix(): path for path in files}
    return {
        name: sha256_of([path.read_bytes()])
        for name, path in names.items()
        if not set(_NOT_COMPARED).intersection(Path(name).parts) and not _OF_OTHERS.fullmatch(name)
    }


def _insist(outcome: Outcome) -> None:
    if outcome.code:
        raise RuntimeError(f"an undisturbed run ended with code {outcome.code}: {outcome.printed}")
