"""`mint submit`, `jobs`, `cancel`, `download`, `allocate --server` and `mint.Client` against a real `mint serve`."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest

import mint
from mint.cli.main import run_command
from mint.model.checkpoint.manifest import file_digest, read_manifest
from mint.plan.recipe import Recipe
from tests.conftest import own_cache
from tests.worlds.zoo import write_model

MODEL = "tiny"
Mint = Callable[..., tuple[int, dict[str, Any]]]


class Lab:
    """A service as a process of its own, with a model, and people who have tokens."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.data = folder, folder / "data"
        self.model = write_model("qwen3", folder / "models" / MODEL, tokenizer=True)
        own_cache(self.data / "cache")
        environment = {**os.environ, "MLX_DISABLE_COMPILE": "1"}  # on a CPU it calls a C++ compiler
        command = [sys.executable, "-m", "mint", "serve", "--data", str(self.data)]
        self.process = subprocess.Popen(
            [*command, "--root", str(folder / "models"), "--port", "0"],
            stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        assert self.process.stdout
        self.address = self.process.stdout.readline().split()[3].rstrip("/").removeprefix("http://")

    def end(self) -> None:
        self.process.terminate()
        self.process.communicate(timeout=60)

    def as_(self, name: str) -> list[str]:
        """The options by which a command asks this service in someone's name."""
        return ["--server", self.address, "--token-file", str(self.folder / name)]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    lab = Lab(tmp_path_factory.mktemp("lab"))
    yield lab
    lab.end()


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Mint:
    """Run a command of mint in this process; its exit code and what it answers."""

    def run(*arguments: str) -> tuple[int, dict[str, Any]]:
        capsys.readouterr()
        code = run_command([*arguments, "--json"])
        answer: dict[str, Any] = json.loads(capsys.readouterr().out)
        return code, answer

    return run


@pytest.fixture(scope="module")
def people(lab: Lab) -> None:
    for name, *options in (("ann",), ("bob",), ("eve", "--quota", "active=0,bytes=1kB"), ("reader", "--scope", "read")):
        command = [sys.executable, "-m", "mint", "token", "create", name, *options, "--data", str(lab.data)]
        made = subprocess.run(command, capture_output=True, text=True, check=True)
        (lab.folder / name).write_text(made.stdout)
        (lab.folder / name).chmod(0o600)


@pytest.fixture(scope="module")
def made(lab: Lab, people: None) -> dict[str, dict[str, Any]]:
    """The answers of `mint submit --download` of two budgets, by budget."""
    command = [sys.executable, "-m", "mint", "submit", MODEL, *lab.as_("ann")]
    options = ["--budget", "4.5bpw", "--budget", "0.4x", "--download", str(lab.folder / "down"), "--json"]
    done = subprocess.run([*command, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for state in ("queued", "inventory", "analyzing", "solving", "assembling", "verifying", "done"):
        assert done.stderr.count(f": {state}\n") >= 2, done.stderr
    return {result["budget"]: result for result in json.loads(done.stdout)["results"]}


def test_a_submission_brings_a_model_that_verifies_for_every_budget(lab: Lab, made: dict[str, dict[str, Any]]) -> None:
    assert sorted(made) == ["0.4x", "4.5bpw"]
    for budget, record in made.items():
        folder = lab.folder / "down" / f"{MODEL}-{budget}"
        assert record["output"] == str(folder)
        assert record["state"] == "done"
        assert mint.verify(folder, mint.open_source(lab.model)).passed
    assert made["0.4x"]["analysis"] == made["4.5bpw"]["analysis"]  # the model was analyzed once


def test_who_asks_for_the_same_shares_the_job_and_takes_only_themselves_off(
    lab: Lab, made: dict[str, dict[str, Any]], run: Mint
) -> None:
    code, shared = run("submit", MODEL, "--budget", "0.40x", *lab.as_("bob"), "--wait")
    assert (code, shared["id"]) == (0, made["0.4x"]["id"])
    assert shared["watchers"] == ["ann", "bob"]
    code, left = run("cancel", shared["id"], *lab.as_("bob"))
    assert (code, left["watchers"], left["state"]) == (0, ["ann"], "done")
    code, listed = run("jobs", "--mine", *lab.as_("bob"))
    assert (code, listed["count"]) == (0, 0)
    code, refused = run("cancel", made["4.5bpw"]["id"], *lab.as_("bob"))
    assert code == 1
    assert "cannot cancel this job for others" in refused["error"]


def test_jobs_are_listed_and_followed_to_their_end(
    lab: Lab, made: dict[str, dict[str, Any]], run: Mint, capsys: pytest.CaptureFixture[str]
) -> None:
    code, listed = run("jobs", "--state", "done", *lab.as_("bob"))
    assert code == 0
    assert {job["id"] for job in listed["jobs"]} >= {record["id"] for record in made.values()}
    code, job = run("submit", MODEL, "--budget", "5bpw", *lab.as_("ann"))
    assert job["state"] == "queued"
    code, followed = run("jobs", job["id"], "--follow", *lab.as_("ann"))
    assert (code, followed["state"]) == (0, "done")
    assert followed["reused_units"] > 0  # of what was made for others
    code, refused = run("jobs", "0123456789abcdef", *lab.as_("ann"))
    assert code == 1
    assert "there is no job" in refused["error"]


def test_a_quota_is_told_and_a_job_that_waits_is_cancelled_at_once(lab: Lab, people: None, run: Mint) -> None:
    code, refused = run("submit", MODEL, "--budget", "0.3x", *lab.as_("eve"))
    assert code == 1
    assert "may have 1 kB" in refused["error"]
    assert "try again in 3600 s" in refused["error"]
    code, waiting = run("submit", MODEL, "--rounding", "search", *lab.as_("eve"))  # an analysis, and no turn for it
    assert (code, waiting["state"]) == (0, "queued")
    code, nothing = run("download", waiting["id"], *lab.as_("eve"))
    assert code == 1
    assert "is queued, there is nothing to download" in nothing["error"]
    code, cancelled = run("cancel", waiting["id"], *lab.as_("eve"))
    assert (code, cancelled["state"]) == (0, "cancelled")
    code, over = run("jobs", waiting["id"], "--follow", *lab.as_("eve"))
    assert code == 1
    assert "is cancelled: cancelled by eve" in over["error"]


def test_a_download_that_is_cut_goes_on_where_it_was(
    lab: Lab, made: dict[str, dict[str, Any]], run: Mint, tmp_path: Path
) -> None:
    with Cutting(lab.address, [100_000, 30_000, 5_000]) as cutting:
        there = ["--server", cutting.address, "--token-file", str(lab.folder / "bob")]
        code, answer = run("download", made["0.4x"]["id"], *there, "--output", str(tmp_path / "model"))
    assert (code, cutting.cuts) == (0, [])
    first = lab.folder / "down" / f"{MODEL}-0.4x"
    assert sorted(answer["files"]) == sorted(path.name for path in first.iterdir())
    assert all(file_digest(tmp_path / "model" / path.name) == file_digest(path) for path in first.iterdir())
    assert cutting.sent < 1.5 * answer["nbytes"]  # bytes on the disk were not fetched again
    code, again = run("download", made["0.4x"]["id"], *lab.as_("bob"), "--output", str(tmp_path / "model"))
    assert code == 1
    assert "nothing is ever overwritten" in again["error"]


def test_a_download_that_is_killed_goes_on_where_it_was(
    lab: Lab, made: dict[str, dict[str, Any]], run: Mint, tmp_path: Path
) -> None:
    id, output, partial = made["0.4x"]["id"], tmp_path / "model", tmp_path / "model.partial"
    command = [sys.executable, "-m", "mint", "download", id, "--output", str(output)]
    token = ["--token-file", str(lab.folder / "bob")]
    with Cutting(lab.address, [100_000], stays_open=True) as cutting:
        process = subprocess.Popen([*command, "--server", cutting.address, *token], stderr=subprocess.DEVNULL)
        while _held(partial) < 60_000:
            assert process.poll() is None
            Event().wait(0.01)
        process.kill()
        assert process.wait() == -signal.SIGKILL
    partial_bytes = _held(partial)
    assert not output.exists()
    with Cutting(lab.address, []) as whole:
        code, answer = run("download", id, "--server", whole.address, *token, "--output", str(output))
    assert code == 0
    assert not partial.exists()
    assert (
        whole.sent < answer["nbytes"] - partial_bytes + 16_000
    )  # beside the bytes that are missing only what they are called
    assert mint.verify(output, mint.open_source(lab.model)).passed
    first = lab.folder / "down" / f"{MODEL}-0.4x"
    assert {path.name: file_digest(path) for path in output.iterdir()} == {
        path.name: file_digest(path) for path in first.iterdir()
    }


def _held(partial: Path) -> int:
    """Bytes that have come so far."""
    return sum(path.stat().st_size for path in partial.iterdir()) if partial.exists() else 0


def test_an_analysis_of_the_service_gives_the_plan_and_the_model_of_ones_own(
    lab: Lab, made: dict[str, dict[str, Any]], run: Mint, tmp_path: Path
) -> None:
    served, own = tmp_path / "served.json", tmp_path / "own.json"
    code, _ = run("allocate", MODEL, "--budget", "4.5bpw", "--output", str(served), *lab.as_("bob"))
    assert code == 0
    mint.analyze(mint.open_source(lab.model), tmp_path / "own.mint")
    code, _ = run("allocate", str(tmp_path / "own.mint"), "--budget", "4.5bpw", "--output", str(own))
    assert code == 0
    assert served.read_bytes() == own.read_bytes()
    code, _ = run("assemble", str(served), "--model", str(lab.model), "--output", str(tmp_path / "model"))
    assert code == 0
    theirs = lab.folder / "down" / f"{MODEL}-4.5bpw" / "model.safetensors"
    assert file_digest(tmp_path / "model" / "model.safetensors") == file_digest(theirs)


def test_an_analysis_of_the_service_is_of_the_kind_that_was_asked_for(lab: Lab, people: None, run: Mint) -> None:
    answers = [
        run("allocate", MODEL, "--budget", "4.5bpw", *lab.as_("bob"), *more) for more in ([], ["--dtype", "float16"])
    ]
    assert [code for code, _ in answers] == [0, 0]
    with mint.Client(lab.address, (lab.folder / "bob").read_text().strip()) as client:
        plain, cast = client.analysis(MODEL), client.analysis(MODEL, Recipe(dtype="float16"))
        assert [mint.read_analysis(path).dtype for path in (plain, cast)] == ["", "float16"]
        options = [job.options for job in client.jobs(limit=500) if not job.budget]
    assert {"dtype": "float16"} in options
    code, refused = run("allocate", str(plain), "--budget", "4.5bpw", "--dtype", "float16", "--probe")
    assert code == 1
    assert "--dtype, --probe with" in refused["error"]
    assert "needed: --server" in refused["error"]


def test_an_analysis_that_is_stored_needs_no_job_and_a_token_to_read_only(
    lab: Lab, made: dict[str, dict[str, Any]], run: Mint
) -> None:
    with mint.Client(lab.address, (lab.folder / "bob").read_text().strip()) as client:
        before = client.job_counts()
        code, _ = run("allocate", MODEL, "--budget", "4.5bpw", *lab.as_("reader"))
        assert code == 0
        assert client.job_counts() == before
        notes: list[str] = []
        client.analysis(MODEL, Recipe(rounding="search"), on_note=notes.append)
    assert "the service has no such analysis" in notes[0]
    code, refused = run("allocate", MODEL, "--budget", "4bpw", "--dtype", "float32", *lab.as_("reader"))
    assert (code, "needed the scope 'submit'" in refused["error"]) == (1, True)


def test_the_client_in_python_does_what_the_commands_do(
    lab: Lab, made: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    with mint.Client(lab.address, (lab.folder / "bob").read_text().strip()) as client:
        assert [model["name"] for model in client.models()] == [MODEL]
        jobs = client.submit(MODEL, ["4.5bpw", "0.4x"])
        assert [job.id for job in jobs] == [made["4.5bpw"]["id"], made["0.4x"]["id"]]
        job = client.wait(jobs[0].id)
        events = list(client.events(job.id))
        numbers = [event.seq for event in events]
        assert numbers == sorted(set(numbers))
        assert list(client.events(job.id, after=events[-3].seq)) == events[-2:]
        assert list(client.events(job.id, after=events[-1].seq)) == []
        client.download(job.artifact, tmp_path / "model")
        assert mint.verify(tmp_path / "model").passed
        assert job in client.jobs(state=["ended", "running"], search="4.5bpw", sort="ended")
        assert client.job_counts(search="4.5bpw")["done"] == len(client.jobs(state="done", search="4.5bpw"))
        assert "bob" not in client.cancel(job.id).watchers
        assert client.analysis(MODEL).read_bytes() == client.analysis(MODEL).read_bytes()
    with mint.Client(lab.address) as stranger, pytest.raises(mint.MintError, match="MINT_TOKEN"):
        stranger.jobs()


class Cutting:
    """A way to a server on which the first connections break, or stand still, after so many bytes of answers each."""

    def __init__(self, target: str, cuts: list[int], *, stays_open: bool = False) -> None:
        self._stays_open, self._ended = stays_open, Event()
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self.cuts, self.sent = cuts, 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._sockets = [self._listener]
        self._threads = [Thread(target=self._accept)]
        self._threads[0].start()

    def __enter__(self) -> "Cutting":
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for end in self._sockets:
            end.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._target)
                left = self.cuts.pop(0) if self.cuts else 1 << 40
                self._sockets += [near, far]
                for way in ((near, far, 1 << 40, False), (far, near, left, True)):
                    thread = Thread(target=self._pass_on, args=way)
                    self._threads.append(thread)
                    thread.start()

    def _pass_on(self, source: socket.socket, target: socket.socket, left: int, counts: bool) -> None:
        with suppress(OSError):
            while left and (data := source.recv(min(left, 4096))):
                target.sendall(data)
                left -= len(data)
                self.sent += len(data) if counts else 0
            if self._stays_open and counts and not left:
                self._ended.wait()
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def _bob(lab: Lab) -> mint.Client:
    return mint.Client(lab.address, (lab.folder / "bob").read_text().strip())


@pytest.mark.usefixtures("people")
def test_a_gguf_file_below_a_root_is_converted_and_quantized_as_on_one_machine(lab: Lab, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    from tests.worlds.gguf_world import write_gguf

    file = lab.folder / "models" / "gguf" / "small.gguf"
    file.parent.mkdir()
    write_gguf(write_model("llama", tmp_path / "hf"), file)
    expected = mint.quantize(file, "5bpw", tmp_path / "alone", Recipe(rounding="nearest"))
    with _bob(lab) as client:
        (row,) = [row for row in client.models() if row["name"] == "gguf/small.gguf"]
        assert (row["identity"], row["reason"], row["nbytes"]) == ("", "", file.stat().st_size)
        (job,) = client.submit("gguf/small.gguf", ["5bpw"], Recipe(rounding="nearest"))
        done = client.wait(job.id)
        client.download(done.artifact, tmp_path / "served")
    assert expected.plan.model == read_manifest(tmp_path / "served").model
    for weights in expected.output.glob("*.safetensors"):
        assert (tmp_path / "served" / weights.name).read_bytes() == weights.read_bytes()


@pytest.mark.usefixtures("people")
def test_a_gguf_file_that_cannot_be_converted_is_refused_with_the_reason(lab: Lab) -> None:
    (lab.folder / "models" / "broken.gguf").write_bytes(b"GGUF" * 100)
    with _bob(lab) as client, pytest.raises(mint.MintError, match=r"broken\.gguf: not a GGUF file"):
        client.submit("broken.gguf", ["5bpw"])
