"""Uploading: only what is verified, to a hub on loopback; cut off, the same command resumes."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import mint
from mint.assembly.verify import verify
from mint.cli.main import run_command
from mint.core.errors import MintError
from mint.exports.upload import upload
from mint.model.locate import locate
from tests.worlds.hub_world import FakeHub, fake_hub, know

ID = "me/Tiny-4bit"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub without models, and a token for it."""
    with fake_hub() as hub:
        know(hub, tmp_path / "hub", monkeypatch)
        monkeypatch.setenv("HF_TOKEN", "hf_test")
        yield hub


@pytest.fixture(scope="module")
def made(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A verified model in several files. Not to be changed by a test."""
    output = tmp_path_factory.mktemp("made") / "out"
    mint.quantize(llama, "6bpw", output, mint.Recipe(rounding="nearest", max_shard_size="100kB"))
    return output


def test_a_verified_model_is_uploaded_and_comes_back(hub: FakeHub, made: Path) -> None:
    (made / "mint-verified.json.7.tmp").write_bytes(b"half")  # of a killed verification
    result = upload(made, ID)
    (made / "mint-verified.json.7.tmp").unlink()
    assert (result.id, result.url, result.commit) == (ID, f"{hub.url}/{ID}", hub.commit(ID))
    files = {path.name: path.read_bytes() for path in made.iterdir() if path.name != "mint-verified.json"}
    assert hub.models[ID] == files
    assert hub.commits == ["Upload a model quantized by MINT"]
    assert verify(locate(ID)).passed


def test_cut_off_the_same_command_sends_only_the_rest(hub: FakeHub, made: Path) -> None:
    hub.loses = 1
    with pytest.raises(MintError, match="run the same command again to resume"):
        upload(made, ID)
    sent = set(hub.blobs)
    assert sent
    assert not hub.commits
    again = dict(hub.blobs)
    upload(made, ID)
    assert sent <= set(hub.blobs)
    assert all(hub.blobs[digest] is again[digest] for digest in sent)  # not sent again


def test_what_is_not_verified_stays_here(hub: FakeHub, made: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(made, folder)
    (folder / "mint-verified.json").unlink()
    with pytest.raises(MintError, match=r"is not verified; needed: mint verify"):
        upload(folder, ID)
    shutil.copytree(made, tmp_path / "other")
    config = tmp_path / "other" / "config.json"
    config.write_text(config.read_text().replace('"vocab_size"', '"vocab_sise"'))
    with pytest.raises(MintError, match=r"config.json has SHA-256"):
        upload(tmp_path / "other", ID)
    assert not hub.models


def test_refusals_come_before_the_work(
    hub: FakeHub, made: Path, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(MintError, match="OWNER/NAME"):
        upload(made, "no-owner")
    hub.is_closed = True
    with pytest.raises(MintError, match="a token that may write there"):
        upload(made, ID)
    two = ["quantize", str(llama), "-b", "5bpw", "-b", "6bpw", "-o", str(tmp_path / "out"), "--upload", ID]
    assert run_command(two) == 1
    monkeypatch.delenv("HF_TOKEN")
    assert run_command(["quantize", str(llama), "-b", "5bpw", "-o", str(tmp_path / "out"), "--upload", ID]) == 1
    assert not list(tmp_path.glob("out*"))


def test_a_card_that_the_hub_refuses_is_named(hub: FakeHub, made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path / "copy")
    (tmp_path / "copy" / "README.md").write_text("---\nlicense: [mit]\n---\n")
    with pytest.raises(MintError, match=r"fix README.md"):
        upload(tmp_path / "copy", ID)


def test_quantize_uploads_at_its_end(
    hub: FakeHub, llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["quantize", str(llama), "-b", "5bpw", "-o", str(tmp_path / "out"), "--rounding", "nearest"]
    assert run_command([*command, "--upload", ID]) == 0
    assert f"uploaded to {hub.url}/{ID}" in capsys.readouterr().err
    assert run_command(["upload", str(tmp_path / "out"), ID, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["url"] == f"{hub.url}/{ID}"
