"""Models of the hub by their ids: found in its cache, else downloaded, whole and once."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

import mint
from cluster.forecast.forecast import plan_cluster
from mint.cli.main import run_command
from mint.core.errors import DiskFullError, MintError
from mint.core.progress import Progress
from mint.model import hub_download
from mint.model.hub_cache import HubId, NotOnHubError, cached, parse_id
from mint.model.hub_download import fetch
from mint.model.locate import locate, model_name
from mint.run.executor import Executor, executing, in_process
from tests.worlds.hub_world import FakeHub, fake_hub, know

ID = "Owner/tiny-llama"
WEIGHTS = "model.safetensors"
CARD = b"---\nlicense: mit\n---\n"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "hub"


@pytest.fixture
def hub(big: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub that has the model, with files beside it that nobody needs."""
    with fake_hub() as hub:
        hub.add(ID, big, pytorch_model_bin=b"no", README_md=CARD)
        hub.models[ID] |= {"original/params.json": b"{}", "consolidated.safetensors": b"no"}
        know(hub, cache, monkeypatch)
        yield hub


def test_a_model_comes_whole_and_nothing_else_comes(hub: FakeHub, big: Path) -> None:
    steps: list[Progress] = []
    folder = locate(ID, steps.append)
    files = {path.name: path.read_bytes() for path in big.iterdir()} | {"README.md": CARD}
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files
    total = sum(map(len, files.values()))
    assert {(step.stage, step.total) for step in steps} == {("download", total)}
    assert [step.done for step in steps] == sorted(step.done for step in steps)
    assert (steps[0].done, steps[-1].done) == (0, total)


def test_what_the_cache_has_is_found_without_a_network(
    hub: FakeHub, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = locate(ID)
    requests = len(hub.tokens)
    assert locate(ID) == locate(f"{ID}@main") == locate(f"{ID}@{folder.name}") == folder
    assert len(hub.tokens) == requests
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert locate(ID) == folder
    assert capfd.readouterr() == ("", "")  # no bars and no warnings of others


def test_blobs_that_killed_downloads_left_are_removed_and_those_of_running_ones_stay(hub: FakeHub, cache: Path) -> None:
    folder = locate(ID)
    path = folder / "model-00002-of-00003.safetensors"
    blob = path.resolve()
    path.unlink()
    blob.unlink()
    left, running = (blob.with_name(f"{digest}.0123abcd.incomplete") for digest in (blob.name, "0" * 64))
    for unfinished in (left, running):
        unfinished.write_bytes(b"begun")
    with WeakFileLock(cache / ".locks" / folder.parents[1].name / f"{'0' * 64}.lock"):
        assert locate(ID) == folder
    assert not left.exists()
    assert running.exists()
    assert path.read_bytes() == hub.models[ID][path.name]


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model-00002-of-00003.safetensors"])
def test_a_cache_that_lacks_a_file_is_not_whole_and_gets_that_file_alone(hub: FakeHub, name: str) -> None:
    folder = locate(ID)
    (folder / name).resolve().unlink()
    (folder / name).unlink()
    hub.asked.clear()
    assert cached(HubId(ID)) is None
    assert locate(ID) == folder
    assert {request.name for request in hub.sent("")} == {name}


def test_a_model_that_another_program_cached_without_a_listing_must_have_all_shards_of_its_index(hub: FakeHub) -> None:
    folder = locate(ID)
    shutil.rmtree(folder.parent.parent / "trees")
    assert cached(HubId(ID)) == folder
    (folder / "model-00002-of-00003.safetensors").unlink()
    assert cached(HubId(ID)) is None


def test_a_connection_that_breaks_off_is_made_again(hub: FakeHub, big: Path) -> None:
    name = "model-00001-of-00003.safetensors"
    hub.breaks[name] = 40_000
    folder = locate(ID)
    first, _ = hub.sent(name)
    assert first.nbytes == 40_000
    assert (folder / name).read_bytes() == (big / name).read_bytes()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_download_that_is_killed_or_interrupted_goes_on_with_the_files_that_were_not_whole(
    hub: FakeHub, big: Path, cache: Path, number: signal.Signals
) -> None:
    name = "model-00003-of-00003.safetensors"
    hub.holds[name] = 1 << 15
    code = f"from mint.model.locate import locate; print(locate({ID!r}))"
    first = subprocess.Popen([sys.executable, "-c", code], env=hub.environment(cache), stderr=subprocess.DEVNULL)
    assert hub.held.wait(60)
    snapshot = cache / "models--Owner--tiny-llama" / "snapshots" / hub.commit(ID)
    while len(list(snapshot.glob("*.safetensors"))) < 2:
        assert first.poll() is None
    first.send_signal(number)
    hub.holds = {}
    hub.go.set()
    assert first.wait(60) == -number
    hub.asked.clear()
    folder = locate(ID)
    assert [request.name for request in hub.sent("")] in ([name], [])  # interrupted, the last may still have come
    assert (folder / name).read_bytes() == (big / name).read_bytes()


def test_two_who_ask_at_once_download_once(hub: FakeHub, cache: Path) -> None:
    name = "model-00003-of-00003.safetensors"
    hub.holds[name] = 1 << 15
    code = f"from mint.model.locate import locate; print(locate({ID!r}))"
    command = [sys.executable, "-c", code]
    first = subprocess.Popen(command, env=hub.environment(cache), stdout=subprocess.PIPE, text=True)
    assert hub.held.wait(60)
    steps: list[Progress] = []

    def watch(step: Progress) -> None:
        steps.append(step)
        if len(steps) == 3:  # the others are there, the last one is the other's
            hub.go.set()

    folder = fetch(HubId(ID), watch)
    assert first.communicate(timeout=60)[0].strip() == str(folder)
    assert len(hub.sent(".safetensors")) == 3


REFUSALS: dict[str, tuple[tuple[int, str], type[MintError], str]] = {
    "unknown": (
        (404, "RepoNotFound"),
        NotOnHubError,
        "no such folder, .* knows no model Owner/tiny-llama; .*hf auth login",
    ),
    "nobody": ((401, ""), NotOnHubError, "no such folder, .* knows no model"),
    "forbidden": ((403, ""), MintError, "refuses the token of this machine .403.* HF_TOKEN"),
    "gated": ((403, "GatedRepo"), MintError, "accept them at http.*/Owner/tiny-llama and log in"),
    "down": ((503, ""), NotOnHubError, "answers 503; run the same command again later"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_the_hub_refuses_is_told_with_its_cure(hub: FakeHub, case: str, cache: Path) -> None:
    refused, kind, message = REFUSALS[case]
    hub.refused[ID] = refused
    with pytest.raises(kind, match=message):
        locate(ID)
    assert not list(cache.glob("models--*/blobs/*"))


def test_the_machine_s_token_is_shown_to_the_hub_and_a_wrong_one_is_said_to_be(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    hub.refused[ID] = (401, "")
    with pytest.raises(MintError, match="refuses the token of this machine"):
        locate(ID)
    hub.refused.clear()
    locate(ID)
    assert set(hub.tokens) == {"Bearer hf_mine"}


def test_a_gated_model_is_refused_before_its_weights_are_asked_for(hub: FakeHub) -> None:
    hub.gated.add(ID)
    with pytest.raises(MintError, match="accept its terms"):
        locate(ID)
    assert not hub.sent("")


def test_a_revision_that_is_not_there_is_named(hub: FakeHub) -> None:
    with pytest.raises(MintError, match="Owner/tiny-llama has no revision 'v9'"):
        locate(f"{ID}@v9")


def test_a_model_without_safetensors_is_refused_before_anything_comes(hub: FakeHub, cache: Path) -> None:
    hub.models[ID] = {"config.json": b"{}", "pytorch_model.bin": b"..."}
    with pytest.raises(MintError, match=r"has no model\*.safetensors \(found config.json, pytorch_model.bin\)"):
        locate(ID)
    assert not cache.exists()


def test_a_model_that_mint_cannot_take_is_refused_before_its_weights_come(hub: FakeHub) -> None:
    config = json.loads(hub.models[ID]["config.json"])
    hub.models[ID]["config.json"] = json.dumps(config | {"quantization": {"bits": 4, "group_size": 64}}).encode()
    with pytest.raises(MintError, match="already quantized by MLX"):
        mint.open_source(ID)
    assert not hub.sent(".safetensors")


def test_a_disk_that_is_too_small_is_told_before_the_weights_come(hub: FakeHub) -> None:
    with pytest.raises(DiskFullError, match=r"still to come, 0 B are free .* HF_HUB_CACHE"):
        fetch(HubId(ID), reserve_bytes=1 << 60)
    assert not hub.sent(".safetensors")


def test_a_disk_that_not_even_the_small_files_fit_on_is_left_alone(hub: FakeHub, cache: Path) -> None:
    hub.models[ID]["notes.txt"] = bytes(1 << 20)  # the maker of the model decides how large these are
    with pytest.raises(DiskFullError, match="still to come, 0 B are free"):
        fetch(HubId(ID), reserve_bytes=1 << 60)
    assert not hub.sent("")
    assert not cache.exists()


def test_a_download_that_ends_while_its_progress_is_looked_at_has_ended(hub: FakeHub) -> None:
    def watch(step: Progress) -> None:
        while 0 < step.done < step.total and not cached(HubId(ID)):
            pass

    assert fetch(HubId(ID), watch) == cached(HubId(ID))


def test_without_a_network_the_cure_is_named(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(NotOnHubError, match=r"no such folder, .*does not answer .*or give the path of a folder"):
        locate(ID)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(NotOnHubError, match=r"no such folder, .*HF_HUB_OFFLINE is set; needed: HF_HUB_OFFLINE=0"):
        locate(ID)


PATHS = [
    "./models/foo",
    "/models/foo",
    "models/a/foo",
    "foo",
    "../foo",
    "~/foo",
    "models/foo/",
    "models/.foo",
    "a--b/c",
]
PATHS += ["a/b@../c", "a/b@x/../y", "a/b@", "https://a/b"]


def test_a_name_in_a_local_folder_is_a_path_unless_the_cache_has_its_model(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ID.partition("/")[0]).mkdir()
    with pytest.raises(MintError, match=f"no such folder; .*https://huggingface.co/{ID}"):
        mint.open_source(ID)
    assert not hub.tokens
    units = mint.open_source(f"https://huggingface.co/{ID}").units
    assert mint.open_source(ID).units == units  # from the cache


@pytest.mark.parametrize("text", PATHS)
def test_a_path_is_never_asked_of_the_hub(hub: FakeHub, text: str) -> None:
    assert parse_id(text) is None
    with pytest.raises(MintError, match="no such folder"):
        mint.open_source(text)
    assert not hub.tokens


def test_a_name_that_the_system_refuses_is_told_as_it_refuses_it(hub: FakeHub) -> None:
    with pytest.raises(MintError, match="File name too long; needed: the path of a folder"):
        mint.open_source("a" * 300)
    assert not hub.tokens


def test_what_exists_and_what_is_a_path_object_is_no_id(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert locate(Path(ID)) == Path(ID)
    assert model_name(ID) == model_name(f"{ID}@main") == "tiny-llama"
    (tmp_path / ID).mkdir(parents=True)
    assert locate(ID) == Path(ID)
    assert not hub.tokens


@pytest.mark.parametrize("text", ["Qwen/Qwen3-0.6B", "a/b", "mlx-community/x_y.z", "a/b@refs/pr/12", "a/b@v1.0"])
def test_an_id_says_what_it_was_made_of(text: str) -> None:
    id = parse_id(text)
    assert id
    assert str(id) == text


def test_every_command_that_takes_a_model_takes_an_id(
    hub: FakeHub, big: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> dict[str, Any]:
        capsys.readouterr()
        assert run_command([*arguments, "--json"]) == 0, capsys.readouterr().err
        answer: dict[str, Any] = json.loads(capsys.readouterr().out)
        return answer

    assert run("inspect", ID)["units"] == run("inspect", str(big))["units"]  # from headers: nothing is downloaded
    assert run("analyze", ID)["analysis"] == "tiny-llama.mint"
    assert run("inspect", ID)["identity"] == run("inspect", str(big))["identity"]
    run("allocate", "tiny-llama.mint", "--budget", "4.5bpw", "--output", "plan.json")
    run("assemble", "plan.json", "--model", f"{ID}@main", "--output", "out")
    assert run("verify", "out", "--model", ID)["passed"]
    with executing("", ID) as (folder, _):
        assert folder == locate(ID)
    assert plan_cluster(ID, seconds=0.01).rates.measuring > 0


def test_a_cluster_is_told_the_snapshot_or_what_may_be_a_folder_of_its_nodes(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Offer:
        def load(self) -> object:
            @contextmanager
            def place(
                address: str, model: Path, dtype: str, loader: str, **_: object
            ) -> Iterator[tuple[Path, Executor]]:
                yield model, in_process

            return place

    monkeypatch.setattr(metadata, "entry_points", lambda group: (Offer(),))
    with executing("10.0.0.1", ID) as (folder, _):
        assert folder == cached(HubId(ID))
    with executing("10.0.0.1", "models/moe") as (folder, _):
        assert folder == Path("models/moe")


def test_quantize_downloads_and_writes_what_the_folder_gives(
    hub: FakeHub, big: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["quantize", ID, "--budget", "4.5bpw", "--output", str(tmp_path / "out"), "--json"]) == 0
    lines = [line for line in capfd.readouterr().err.splitlines() if not line.startswith("compiling kernels")]
    request, forecast = lines  # no bars of others
    assert request.startswith("quantize ")
    assert forecast.startswith("about ")
    mint.quantize(big, "4.5bpw", tmp_path / "other")
    names = {path.name for path in (tmp_path / "other").iterdir()}
    for name in names - {"README.md", "mint.json", "mint-verified.json"}:  # the card names the model of the hub
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "other" / name).read_bytes(), name
    assert f"base_model: {ID}" in (tmp_path / "out" / "README.md").read_text()


def test_files_that_the_index_names_come_too(hub: FakeHub, big: Path) -> None:
    files = hub.models[ID]
    index = json.loads(files["model.safetensors.index.json"])
    moved = {
        "model-00002-of-00003.safetensors": "parts/two.safetensors",
        "model-00003-of-00003.safetensors": "mtp.safetensors",
    }
    index["weight_map"] = {name: moved.get(file, file) for name, file in index["weight_map"].items()}
    for old, new in moved.items():
        files[new] = files.pop(old)
    files["model.safetensors.index.json"] = json.dumps(index).encode()
    files |= {"LICENSE": b"terms", "additional_chat_templates/tools.jinja": b"{}", "other/a.safetensors": b"no"}
    folder = locate(ID)
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert names >= {*moved.values(), "LICENSE", "additional_chat_templates/tools.jinja"}
    assert not names & {"other/a.safetensors", "consolidated.safetensors"}
    assert len(mint.open_source(ID).units) == len(mint.open_source(big).units)
    assert cached(HubId(ID)) == folder
    (folder / "parts" / "two.safetensors").unlink()
    assert cached(HubId(ID)) is None


def test_a_dry_run_states_the_download_and_its_time_once_a_rate_was_measured(
    hub: FakeHub, big: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    weights = sum(path.stat().st_size for path in big.glob("*.safetensors"))
    monkeypatch.setattr(hub_download, "_LEAST_BYTES", weights // 2)  # small files tell no rate
    request = ["quantize", ID, "--budget", "6bpw", "-o", str(tmp_path / "out"), "--dry-run", "--quality", "fast"]
    assert run_command([*request, "--json"]) == 0
    forecast = json.loads(capsys.readouterr().out)["forecast"]
    assert forecast["download_bytes"] == weights
    assert "download" not in [step["step"] for step in forecast["steps"]]
    assert not list(cache.rglob("*.safetensors"))
    assert run_command(request) == 0
    assert "to download, whose time is not known" in capsys.readouterr().out
    hub.add("Owner/other", big)
    locate("Owner/other")
    assert run_command(request) == 0
    shown = capsys.readouterr().out
    assert "to download" in shown and "not known" not in shown and "download 0 s" in shown
