"""Files that were edited or damaged are refused in one sentence, whatever is in them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mint.analysis.analyze import analyze
from mint.core.errors import MintError
from mint.model.checkpoint.manifest import MANIFEST_NAME, Manifest, WrittenFile, read_manifest, write_manifest
from mint.model.checkpoint.shards import INDEX_NAME, read_index
from mint.model.source import open_source
from mint.plan.allocate import allocate
from mint.plan.plan import plan_text, read_plan
from mint.plan.recipe import Recipe
from mint.plan.rules import parse_formats, read_locks

NESTED = "[" * 100_000 + "]" * 100_000
DIGITS = "9" * 5_000
Edit = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def plan(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    analysis = analyze(open_source(llama), tmp_path_factory.mktemp("plan") / "a.mint")
    return plan_text(allocate(analysis, 300_000, Recipe(veto_db=-100.0)))


def _into(*keys: Any, value: Any) -> Edit:
    """Sets the value that the keys lead to."""

    def edit(record: dict[str, Any]) -> None:
        inner: Any = record
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = value

    return edit


@pytest.mark.parametrize(
    "edit",
    [
        lambda record: record.pop("digest"),
        lambda record: record["units"][0].pop("checksum"),
        _into("parameters", 0, "dtype", value="BF16x"),
        _into("parameters", 0, "shape", value=["a"]),
        _into("parameters", 0, "shape", value=[float("inf")]),
        _into("parameters", value=3),
        _into("units", 0, "dtype", value="BF16x"),
        _into("units", 0, "curve", value=[]),
        _into("units", 0, "shape", value=None),
        _into("units", value=[[]]),
        _into("budget_bytes", value=float("inf")),
        _into("budget_bytes", value=None),
        _into("max_shard_bytes", value=float("nan")),
        _into("evidence", value={"source": 1}),
        _into("rules", value=[]),
        _into("objective", value=[]),
        _into("rounding", value=7),
    ],
)
def test_a_plan_with_any_field_that_is_gone_or_wrong_is_refused(plan: str, edit: Edit, tmp_path: Path) -> None:
    record = json.loads(plan)
    edit(record)
    (tmp_path / "plan.json").write_text(json.dumps(record))
    with pytest.raises(MintError):
        read_plan(tmp_path / "plan.json")


def test_each_field_of_the_evidence_of_a_plan_may_be_nonsense(plan: str, tmp_path: Path) -> None:
    for name in json.loads(plan)["evidence"]:
        values: tuple[Any, ...] = (None, "text", [], {})
        for value in values:
            record = json.loads(plan)
            record["evidence"][name] = value
            (tmp_path / "plan.json").write_text(json.dumps(record))
            try:
                read_plan(tmp_path / "plan.json")
            except MintError as error:
                assert "damaged plan" in str(error)


@pytest.mark.parametrize("text", ["", "1", "[]", "{", NESTED, f'{{"kind": {DIGITS}}}', '"\udc80"'])
def test_what_is_no_object_is_no_plan_manifest_index_or_set_of_locks(text: str, tmp_path: Path) -> None:
    for name, read in (
        ("plan.json", lambda: read_plan(tmp_path / "plan.json")),
        (MANIFEST_NAME, lambda: read_manifest(tmp_path)),
        (INDEX_NAME, lambda: read_index(tmp_path)),
        ("locks.json", lambda: read_locks(tmp_path / "locks.json")),
    ):
        (tmp_path / name).write_bytes(text.encode(errors="surrogateescape"))
        with pytest.raises(MintError, match=name):
            read()


MANIFEST = Manifest("plan", "model", "cpu", {}, 1, 1, {"config.json": WrittenFile(1, "0")}, {})


@pytest.mark.parametrize(
    "edit",
    [
        _into("files", value=1),
        _into("files", value={"config.json": 1}),
        _into("files", value={"config.json": {"nbytes": 1}}),
        _into("files", value={"../../etc/passwd": {"nbytes": 1, "sha256": "0"}}),
        _into("files", value={"/etc/hostname": {"nbytes": 1, "sha256": "0"}}),
        _into("files", value={"": {"nbytes": 1, "sha256": "0"}}),
        _into("more", value=1),
        lambda record: record.pop("units"),
    ],
)
def test_a_manifest_names_files_of_its_folder_and_nothing_else(edit: Edit, tmp_path: Path) -> None:
    write_manifest(MANIFEST, tmp_path)
    assert read_manifest(tmp_path) == MANIFEST
    record = json.loads((tmp_path / MANIFEST_NAME).read_text())
    edit(record)
    (tmp_path / MANIFEST_NAME).write_text(json.dumps(record))
    with pytest.raises(MintError, match="not a manifest that mint can read"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("term", ["²", "٣", "4@²", "²@64"])
def test_digits_of_other_scripts_are_no_formats(term: str) -> None:
    with pytest.raises(MintError):
        parse_formats([term])
