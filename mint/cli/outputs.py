"""The names that commands write to: defaults, and the checks that come before any heavy import."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mint.cli.terminal.screen import Screen
from mint.core.errors import MintError
from mint.core.files import (
    holds,
    move_aside,
    require_new,
    require_writable,
    write_whole,
)
from mint.core.sizes import format_size
from mint.formats.quality import option_of

if TYPE_CHECKING:
    from mint.plan.recipe import Budget


def outputs_of(budgets: "Sequence[Budget]", output: Path) -> list[Path]:
    """The output of each budget: `output` itself for one, `output-BUDGET` for several."""
    if len(budgets) == 1:
        return [output]
    return [output.with_name(f"{named(output.stem, str(budget))}{output.suffix}") for budget in budgets]


def default_outputs(model: str, budgets: "Sequence[Budget]") -> list[Path]:
    """MODEL-BUDGET beside a local model, here for a model of the hub or of its cache."""
    from mint.model.locate import hub_id, model_name

    folder = Path(model)
    is_local = hub_id(model) is None and not any(part.startswith("models--") for part in folder.absolute().parts)
    parent = folder.parent if folder.name not in ("", "..") else folder.resolve().parent
    beside = parent if is_local else Path()
    return [beside / named(model_name(model), str(budget)) for budget in budgets]


def named(model: str, budget: str) -> str:
    """The name of a model within a budget."""
    return f"{model}-{budget}".replace(" ", "")


def described(model: str) -> str:
    """The name of a model, with its size where it is a folder."""
    from mint.model.locate import model_name

    nbytes = sum(file.stat().st_size for file in Path(model).glob("*.safetensors"))
    return model_name(model) + (f" ({format_size(nbytes)})" if nbytes else "")


def check_names(
    model: str, outputs: Sequence[Path], files: Sequence[Path] = (), *, requantize: bool, force: bool = False
) -> None:
    """Raise `MintError` for a folder that is no usable model, and for outputs and files that cannot be written.

    An output that is a written model may turn out to be the wanted one: `check_finished` and the work compare it.
    """
    from mint.model.checkpoint.manifest import MANIFEST_NAME
    from mint.model.config import check_config
    from mint.model.gguf.files import gguf_files
    from mint.model.locate import hub_id
    from mint.model.opening.kinds import require_model
    from mint.model.opening.path_kind import check_outputs

    check_outputs(outputs, files, Path(model))
    check_new([path for path in outputs if not (path / MANIFEST_NAME).is_file()], force=force)
    path = Path(model)
    if hub_id(model) or path.name.startswith("models--") or gguf_files(path):
        return  # located later
    require_model(path)
    check_config(path, requantize=requantize)


def check_finished(outputs: Sequence[Path], budgets: "Sequence[Budget]", rounding: str) -> None:
    """Raise `MintError` for outputs that are models of another rounding or of more bytes.

    One of fewer bytes may be all that a budget larger than the model gives: its plan is compared later.
    """
    from mint.core.files import read_json
    from mint.model.checkpoint.manifest import MANIFEST_NAME, PLAN_NAME, read_manifest

    for output, budget in zip(outputs, budgets, strict=True):
        if not (output / MANIFEST_NAME).is_file():
            continue
        found = read_json(output / PLAN_NAME, "remove the folder").get("rounding")
        if found != rounding:
            require_new(output, f"it was made with {option_of(found)}")
        nbytes = read_manifest(output).budget_bytes
        if budget.amount and budget.amount.unit == "B" and int(budget.amount.number) < nbytes:
            require_new(output, f"it is of the budget {format_size(nbytes)}")


def refusals(outputs: Sequence[Path], budgets: "Sequence[Budget]", rounding: str) -> list[str]:
    """The reasons for which a run stops at existing outputs."""
    from mint.model.checkpoint.manifest import MANIFEST_NAME

    reasons = []
    for output, budget in zip(outputs, budgets, strict=True):
        try:
            if not (output / MANIFEST_NAME).is_file():
                require_new(output)
            check_finished([output], [budget], rounding)
        except MintError as error:
            reasons.append(error.typed)
    return reasons


def check_new(paths: Iterable[Path], *, force: bool) -> None:
    """Raise `MintError` for paths that cannot be written or, without `force`, exist."""
    for path in paths:
        require_writable(path)
        if not force:
            require_new(path)


def check_files(paths: Iterable[Path], *, force: bool) -> None:
    """Raise `MintError` for paths where no file can be written; the content of an existing file is compared later."""
    for path in paths:
        require_writable(path)
        if not (force or path.is_file()):
            require_new(path)


def write_files(screen: Screen, files: Mapping[Path, bytes], *, force: bool) -> None:
    """Write new files, each whole; one that holds the same already is what a killed run wrote, and stays.

    With --force others are renamed. Without it they are refused, and nothing is written.
    """
    missing = {path: text for path, text in files.items() if not holds(path, text)}
    set_aside(screen, force, *missing)
    check_new(missing, force=force)
    for path, text in missing.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text)


def set_aside(screen: Screen, force: bool, *paths: Path) -> None:
    """With --force, rename what exists, and say so."""
    for path in paths if force else ():
        if old := move_aside(path):
            screen.note(f"{path} is now {old}")
