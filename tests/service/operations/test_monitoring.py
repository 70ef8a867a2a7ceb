"""The files of `deploy`: a real Prometheus reads them, scrapes a real service, and knows every metric in them."""

import json
import re
import shutil
import socket
import subprocess
import time
import tomllib
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.worlds.page_world import make_token, serving
from tests.worlds.served import served
from tests.worlds.service_world import World
from tools.house import ROOT

DEPLOY = ROOT / "deploy"
PROMETHEUS, PROMTOOL = shutil.which("prometheus"), shutil.which("promtool")
needs_prometheus = pytest.mark.skipif(
    not (PROMETHEUS and PROMTOOL), reason="no Prometheus here: apt-get install prometheus"
)
LIMIT_SECONDS = 60.0


def _queries() -> list[str]:
    """The expressions of the dashboard and of the alerts."""
    dashboard = json.loads((DEPLOY / "dashboard.json").read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    return expressions + re.findall(r"^ *expr: (.*)$", (DEPLOY / "alerts.yml").read_text(), re.MULTILINE)


def _metrics(expression: str) -> set[str]:
    return set(re.findall(r"\bmint_[a-z_]+", expression))


@needs_prometheus
@pytest.mark.parametrize("arguments", [["check", "rules", "alerts.yml"], ["test", "rules", "alerts_test.yml"]])
def test_the_alerts_are_right_and_fire_when_they_should(arguments: list[str]) -> None:
    done = subprocess.run([str(PROMTOOL), *arguments], cwd=DEPLOY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_prometheus
def test_promtool_finds_no_fault_in_the_metrics(tmp_path: Path, llama: Path) -> None:
    with served(tmp_path, roots=(llama.parent,)) as world:
        world.submit("llama", "1GB")
        world.service.queue.advance(world.claim(), "failed", reason="broken")
        text = world.client.get("/metrics").text
    done = subprocess.run([str(PROMTOOL), "check", "metrics"], input=text, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_metric_of_the_files_exists(tmp_path: Path, llama: Path) -> None:
    with served(tmp_path, roots=(llama.parent,)) as world:
        world.submit("llama", "1GB")
        world.service.queue.advance(world.claim(), "failed", reason="broken")
        world.client.get("/v1/jobs/0000000000000000")
        text = world.client.get("/metrics").text
    for expression in _queries():
        for name in _metrics(expression):
            assert re.search(rf"^{name}[ {{]", text, re.MULTILINE), name


def test_histograms_only_grow_while_jobs_are_started_again_and_end(world: World) -> None:
    def counts() -> list[int]:
        rows = [row for row in world.queue.times() if row.state in ("done", "failed", "cancelled")]
        return [sum(column) for column in zip(*(row.waited_counts for row in rows), strict=True)] or [0] * 9

    before = counts()
    for name, waits in (("a", 0.0), ("b", 100.0), ("c", 2.0)):
        world.submit(identity=name)
        world.clock.now += waits
        world.claim()
        world.expire()
        claim = world.claim()
        after = counts()
        assert all(new >= old for new, old in zip(after, before, strict=True))
        world.finish(claim)
        before = counts()
    assert before == [1, 2, 2, 2, 3, 3, 3, 3, 3]


@contextmanager
def _prometheus(folder: Path, target: str, token: str) -> Iterator[str]:
    """A Prometheus with the configuration of `deploy` that scrapes every second."""
    (folder / "mint.token").write_text(token)
    shutil.copy(DEPLOY / "alerts.yml", folder)
    text = (DEPLOY / "prometheus.yml").read_text()
    config = text.replace("127.0.0.1:8420", target).replace("scrape_interval: 15s", "scrape_interval: 1s")
    (folder / "prometheus.yml").write_text(config)
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    options = ["--config.file=prometheus.yml", "--storage.tsdb.path=data", f"--web.listen-address={address}"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([str(PROMETHEUS), *options], cwd=folder, stdout=log, stderr=log)
        try:
            yield f"http://{address}"
        finally:
            process.terminate()
            process.wait(timeout=30)


def _ask(url: str, query: str) -> list[dict[str, Any]]:
    try:
        with urllib.request.urlopen(f"{url}/api/v1/query?{urllib.parse.urlencode({'query': query})}") as answer:
            result: list[dict[str, Any]] = json.load(answer)["data"]["result"]
            return result
    except urllib.error.URLError as error:
        if isinstance(error, urllib.error.HTTPError) and error.code != 503:
            raise
        return []


@needs_prometheus
def test_a_real_prometheus_scrapes_a_real_service_and_answers_every_query(tmp_path: Path, llama: Path) -> None:
    (data := tmp_path / "data").mkdir()
    (tmp_path / "prometheus").mkdir()
    token = make_token(data, "prometheus", "read")
    with (
        serving(data, llama.parent, "--slots", "0") as url,
        _prometheus(tmp_path / "prometheus", url.removeprefix("http://"), token) as prometheus,
    ):
        until = time.monotonic() + LIMIT_SECONDS
        while not _ask(prometheus, 'up{job="mint"} == 1'):
            assert time.monotonic() < until, (tmp_path / "prometheus" / "log").read_text()[-2000:]
            time.sleep(0.2)
        for query in _queries():
            _ask(prometheus, query)
        assert _ask(prometheus, "mint_leases")[0]["value"][1] == "0"


def test_the_configuration_of_the_container_has_known_options_only() -> None:
    from typer.main import get_command

    from cluster.service.commands.serve import app

    options = {option for parameter in get_command(app).params for option in parameter.opts}
    assert {f"--{name}" for name in tomllib.loads((DEPLOY / "serve.toml").read_text())} <= options
