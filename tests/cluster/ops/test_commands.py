"""`mint cluster`: the command line of a node, the checks of a machine, and every error message."""

import json
import plistlib
import shlex
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from configparser import RawConfigParser
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.autostart import BootService, launchd, systemd
from cluster.ops.doctor import examine
from cluster.ops.machine import Machine, models, observe
from cluster.settings import (
    TOKEN_VARIABLE,
    UNWANTED,
    Address,
    Secrets,
    checked_token,
    make_token,
    parse_address,
    ray_environment,
)
from cluster.transport.throughput import metered, rates
from mint.cli.main import run_command
from mint.core.errors import MintError
from mint.core.version import install_command
from mint.model.source import open_source
from mint.run.checkup import BAD, DOUBTFUL, GOOD, is_well
from tests.worlds.zoo import write_model

pytest.importorskip("ray", reason="the cluster's tests need ray: pip install 'mint-mlx[cluster]'")

import grpc

from cluster.head.handshake import Head, compare_versions, knock, own_versions
from cluster.ops.nodes import NodeStart, command_line, environment, require_free

HERE = "127.0.0.1"


@pytest.fixture(autouse=True)
def _own_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINT_CONFIG", str(tmp_path / "config"))
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)


@pytest.fixture
def token(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    make_token(path)
    return path


# addresses and tokens


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("10.0.0.1:7000", Address("10.0.0.1", 7000)),
        ("10.0.0.1", Address("10.0.0.1", 6379)),
        ("tls://studio:6380", Address("studio", 6380, tls=True)),
    ],
)
def test_an_address_has_a_host_and_optionally_a_port_and_a_scheme(text: str, address: Address) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize("text", ["", ":6379", "http://10.0.0.1:6379", "10.0.0.1:port", "10.0.0.1:70000"])
def test_a_bad_address_is_refused(text: str) -> None:
    with pytest.raises(MintError, match="needed"):
        parse_address(text)


@pytest.mark.parametrize(("host", "loopback"), [(HERE, True), ("localhost", True), ("10.0.0.1", False)])
def test_only_loopback_addresses_keep_ray_on_loopback(host: str, loopback: bool, token: Path) -> None:
    assert Address(host, 6379).is_loopback == loopback
    variables = ray_environment(Secrets(token), Address(host, 6379))
    assert variables["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == ("0" if loopback else "1")


def test_a_token_is_made_once_and_only_its_owner_can_read_it(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "token"
    assert make_token(path)
    first = path.read_text()
    assert not make_token(path)
    assert path.read_text() == first
    assert len(first) == 64
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o077 == 0
    path.chmod(0o640)
    with pytest.raises(MintError, match="chmod 600"):
        checked_token(path)
    path.chmod(0o600)
    path.write_text(" \n")
    with pytest.raises(MintError, match="is empty"):
        checked_token(path)


# the command line of a node


@pytest.mark.parametrize("is_head", [True, False])
def test_a_node_starts_with_token_authentication_and_without_visible_secrets(is_head: bool, token: Path) -> None:
    start = NodeStart(Address("10.0.0.1", 6379), "10.0.0.2", is_head, Secrets(token), (token.parent,))
    arguments = command_line(start)
    outer = {**dict.fromkeys(UNWANTED, "x"), "MINT_MODEL_ROOTS": "/more", "RAY_AUTH_MODE": "disabled", "PATH": "/bin"}
    variables = environment(start, outer)
    assert token.read_text() not in "".join([*arguments, *variables.values()])
    assert variables["RAY_AUTH_MODE"] == "token"
    assert variables[TOKEN_VARIABLE] == str(token)
    assert not set(UNWANTED) & set(variables)
    assert variables["MINT_MODEL_ROOTS"] == f"{token.parent}:/more"
    assert variables["PATH"] == "/bin"
    assert {"--block", "--node-ip-address=10.0.0.2", '--resources={"mlx": 1}'} <= {*arguments}
    assert ("--include-dashboard=false" in arguments) == is_head  # Ray takes it for a head only
    assert ("--head" in arguments) == is_head
    assert ("--address=10.0.0.1:6379" in arguments) == (not is_head)
    assert not any("stop" in argument for argument in arguments)


def test_a_head_needs_an_address_of_this_machine_and_a_free_port() -> None:
    with pytest.raises(MintError, match="is no address of this machine"):
        require_free(Address("192.0.2.1", 6379))
    with socket.create_server((HERE, 0)) as taken, pytest.raises(MintError, match=r"is taken .* another --port"):
        require_free(Address(HERE, taken.getsockname()[1]))


# the handshake with an address


def _free_port() -> int:
    with socket.create_server((HERE, 0)) as server:
        return int(server.getsockname()[1])


@contextmanager
def _server(answer: Callable[[str, str], bytes | None]) -> Iterator[Address]:
    """A gRPC server that replies `answer(method, token)`; None refuses the caller."""

    class Handler(grpc.GenericRpcHandler):  # type: ignore[misc, unused-ignore]
        def service(self, details: Any) -> Any:
            token = dict(details.invocation_metadata).get("authorization", "")

            def reply(request: bytes, context: Any) -> bytes:
                content = answer(details.method, token)
                if content is None:
                    context.abort(grpc.StatusCode.UNAUTHENTICATED, "who are you?")
                return content or b""

            return grpc.unary_unary_rpc_method_handler(reply)

    server = grpc.server(futures.ThreadPoolExecutor(2), handlers=[Handler()])
    port = server.add_insecure_port(f"{HERE}:0")
    server.start()
    yield Address(HERE, port)
    server.stop(None).wait(5)


def test_a_free_port_and_an_unknown_host_have_different_errors(token: Path) -> None:
    with pytest.raises(MintError, match=r"nobody listens at 127.0.0.1:\d+; needed: mint cluster up --head"):
        knock(Address(HERE, _free_port()), Secrets(token))
    with pytest.raises(MintError, match="is no known host"):
        knock(Address("no-such-host.invalid", 6379), Secrets(token))


def test_a_server_of_another_protocol_is_no_head(token: Path) -> None:
    with socket.create_server((HERE, 0)) as server:
        threading.Thread(target=_hang_up, args=(server, 8), daemon=True).start()
        with pytest.raises(MintError, match="is no head of a Ray cluster"):
            knock(Address(HERE, server.getsockname()[1]), Secrets(token))


def _hang_up(server: socket.socket, times: int) -> None:
    for _ in range(times):
        try:
            connection, _ = server.accept()
        except OSError:
            return
        connection.sendall(b"220 hello\r\n")
        connection.close()


def test_a_wrong_token_is_reported_at_once(token: Path) -> None:
    with _server(lambda method, token: None) as address, pytest.raises(MintError, match="token rejected"):
        knock(address, Secrets(token))


def test_a_head_without_authentication_is_refused_and_never_gets_the_token(token: Path) -> None:
    tokens: list[str] = []

    def answer(method: str, token: str) -> bytes:
        tokens.append(token)
        return b""

    with _server(answer) as address, pytest.raises(MintError, match="lets anybody in without a token"):
        knock(address, Secrets(token))
    assert tokens == [""]


def test_a_head_that_still_starts_is_reported_as_such(token: Path) -> None:
    with (
        _server(lambda method, given: b"" if given else None) as address,
        pytest.raises(MintError, match="has not started yet"),
    ):
        knock(address, Secrets(token))


@pytest.mark.parametrize(
    ("name", "cure"),
    [
        ("ray", r"pip install 'ray==9.9.9'"),
        ("python", "uv python install 9.9.9"),
        ("mint", r"pip install 'mint-mlx\[cluster\]==9.9.9'"),
        ("mlx", r"pip install 'mlx==9.9.9'"),
    ],
)
def test_another_version_is_reported_with_the_command_that_installs_the_right_one(name: str, cure: str) -> None:
    here = own_versions()
    address = Address("10.0.0.1", 6379)
    compare_versions(address, here)
    with pytest.raises(MintError, match=f"has {name} 9.9.9, this machine has {here[name]};.*{cure}"):
        compare_versions(address, {**here, name: "9.9.9"})


def test_a_driver_needs_a_node_beside_it() -> None:
    with pytest.raises(MintError, match=r"this machine is no node .*mint cluster join 10.0.0.1:6379"):
        Head(Address("10.0.0.1", 6379), {}, ()).need_a_node_here()


# the doctor


@pytest.fixture(scope="module")
def machine() -> Machine:
    """A machine without problems."""
    here = observe()
    return replace(
        here, system="Linux", open_files=65536, resolves_to="10.0.0.1", temp_folder="/tmp/ray", variables=(),
        token_mode=0o600, shared_memory_bytes=10**9, disk_free_bytes={"/": 10**11}, roots=(), missing_roots=(),
        dashboard_listens=False, has_dashboard=False,
    )  # fmt: skip


MAC: dict[str, Any] = {
    "system": "Darwin",
    "release": "14.7",
    "processor": "arm64",
    "has_gpu": True,
    "sleeps_after_minutes": 0,
}
WRONG: list[tuple[str, str, dict[str, Any]]] = [
    ("packages", BAD, {"packages": {"mlx": "0.32.4"}}),
    ("processor", BAD, MAC | {"processor": "x86_64"}),
    ("GPU", BAD, MAC | {"has_gpu": False}),
    ("Ray on macOS 26", DOUBTFUL, MAC | {"release": "26.1"}),
    ("minimal Ray", DOUBTFUL, {"has_dashboard": True}),
    ("port 8265", BAD, {"dashboard_listens": True}),
    ("token", BAD, {"token_mode": 0o644}),
    ("token", DOUBTFUL, {"token_mode": -1}),
    ("environment", DOUBTFUL, {"variables": ("RAY_AUTH_TOKEN",)}),
    ("open files", DOUBTFUL, {"open_files": 256}),
    ("socket paths", BAD, {"temp_folder": "/private/var/folders/zz/zyxvpxvq6csfxvn_n0000000000000/T/ray"}),
    ("host name", DOUBTFUL, {"resolves_to": "127.0.0.1"}),
    ("shared memory", DOUBTFUL, {"shared_memory_bytes": 64 << 20}),
    ("disk", BAD, {"disk_free_bytes": {"/": 10**8}}),
    ("model roots", BAD, {"roots": ("/models",), "missing_roots": ("/models",)}),
    ("sleep", DOUBTFUL, MAC | {"sleeps_after_minutes": 10}),
    ("local network", DOUBTFUL, MAC | {"release": "15.2"}),
]

ALSO = {"Ray on macOS 26": ("local network",)}  # that macOS has this problem too


def test_a_healthy_machine_has_only_good_findings(machine: Machine) -> None:
    for well in (machine, replace(machine, **MAC)):
        assert {finding.check: finding.verdict for finding in examine(well) if finding.verdict != GOOD} == {}


@pytest.mark.parametrize(("check", "verdict", "change"), WRONG)
def test_each_problem_gives_exactly_its_finding_with_a_cure(
    machine: Machine, check: str, verdict: str, change: dict[str, Any]
) -> None:
    findings = examine(replace(machine, **change))
    problems = {finding.check: finding for finding in findings if finding.verdict != GOOD}
    assert set(problems) == {check, *ALSO.get(check, ())}
    assert problems[check].verdict == verdict
    assert all(problem.cure for problem in problems.values())
    assert is_well(findings) == (verdict == DOUBTFUL)


def test_every_check_of_the_doctor_can_fail(machine: Machine) -> None:
    assert {check for check, _, _ in WRONG} == {finding.check for finding in examine(machine)}


def test_the_doctor_s_report_is_one_object_without_secrets(
    token: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, str(token))
    port = _free_port()
    assert run_command(["doctor", f"{HERE}:{port}", "--json"]) == 1
    output = capsys.readouterr().out
    report = json.loads(output)
    assert report["checks"][-1]["check"] == "cluster"
    assert f"nobody listens at {HERE}:{port}" in report["checks"][-1]["cure"]
    assert not report["passed"]
    assert token.read_text() not in output


# service files


def _service(kind: str, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert run_command(["cluster", "service-file", "--kind", kind, *arguments]) == 0
    return capsys.readouterr().out


def test_a_property_list_keeps_the_mac_awake_and_the_node_alive(capsys: pytest.CaptureFixture[str]) -> None:
    listing = plistlib.loads(_service("launchd", capsys, "worker", "--address", "10.0.0.1").encode())
    assert listing["ProgramArguments"][:2] == ["/usr/bin/caffeinate", "-is"]
    assert listing["ProgramArguments"][3:6] == ["cluster", "join", "10.0.0.1:6379"]
    assert listing["KeepAlive"] and listing["RunAtLoad"] and listing["UserName"]
    assert listing["SoftResourceLimits"] == {"NumberOfFiles": 65536}


def test_a_systemd_unit_starts_the_node_again(capsys: pytest.CaptureFixture[str]) -> None:
    unit = RawConfigParser()
    unit.read_string(_service("systemd", capsys, "head", "--address", "10.0.0.1:7000", "--tls"))
    command = shlex.split(unit["Service"]["ExecStart"])
    assert command[1:7] == ["cluster", "up", "--head", "--address", "10.0.0.1", "--port"]
    assert command[-1] == "--tls"
    assert (unit["Service"]["Restart"], unit["Service"]["LimitNOFILE"]) == ("always", "65536")


def test_words_with_spaces_survive_in_both_kinds_of_file() -> None:
    command = ("/opt/my mint", "--model-root", "/Volumes/100% models & more")
    service = BootService("mint", command, "me", "/home/me", {})
    assert plistlib.loads(launchd(service).encode())["ProgramArguments"][2:] == list(command)
    assert shlex.split(systemd(service).split("ExecStart=")[1].splitlines()[0].replace("%%", "%")) == list(command)


# the facts that nodes report


def test_models_are_found_in_roots_and_in_hub_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_model("llama", tmp_path / "root" / "tiny", shards=2)
    snapshot = tmp_path / "hub" / "models--org--name" / "snapshots" / "0123"
    write_model("llama", snapshot)
    monkeypatch.setenv("MINT_MODEL_ROOTS", f"{tmp_path / 'root'}:{tmp_path / 'hub'}:{tmp_path / 'nowhere'}")
    by_name = {model.name: model for model in models()}
    assert set(by_name) == {"tiny", "org/name"}
    assert by_name["tiny"].shards == 2
    assert by_name["org/name"].nbytes == sum(path.stat().st_size for path in snapshot.glob("*.safetensors"))


def test_a_node_records_its_rates(llama: Path) -> None:
    from mint.model.source import open_source

    assert rates() == {}
    units = open_source(llama).units
    pieces = [(unit, unit.path, is_last) for unit in units for is_last in (False, True)]
    assert list(metered("measure nearest", iter(pieces))) == pieces
    assert rates()["measure nearest"] > 0


# the command line


def test_the_command_line_knows_the_cluster_s_commands_without_importing_them() -> None:
    code = (
        "import sys; from mint.cli.main import run_command; run_command(['--help']);"
        "print([name for name in ('cluster', 'ray', 'grpc', 'mlx') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert " cluster " in result.stdout
    assert result.stdout.splitlines()[-1] == "[]"


def test_the_cluster_s_help_needs_no_ray() -> None:
    code = (
        "import sys; from mint.cli.main import run_command; code = run_command(['cluster']);"
        "print([code, *(name for name in ('ray', 'grpc', 'mlx') if name in sys.modules)])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for command in ("up", "join", "status", "service-file"):
        assert f" {command} " in result.stdout
    assert result.stdout.splitlines()[-1] == "[0]"


@pytest.mark.parametrize("package", ["ray", "grpc"])
def test_a_missing_extra_is_named(package: str, token: Path) -> None:
    code = (
        f"import sys; sys.modules[{package!r}] = None; from mint.cli.main import run_command;"
        f"sys.exit(run_command(['cluster', 'join', '{HERE}:1', '--token-file', {str(token)!r}]))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 1
    assert f"needed: {install_command('cluster')}" in result.stderr


def test_without_the_cluster_commands_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group, name: ())
    assert run_command(["cluster", "status"]) == 1
    assert install_command("cluster") in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["up"], "--head"),
        (["join", "10.0.0.1:6379"], "no token at"),
        (["join", "10.0.0.1:port"], "is no address"),
        (["up", "--head", "--model-root", "/nowhere"], "no such folder"),
        (["up", "--head", "--tls"], "mint cluster certs"),
    ],
)
def test_each_mistake_has_its_message(arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["cluster", *arguments]) == 1
    assert complaint in capsys.readouterr().err


def test_a_token_that_others_can_read_is_refused_before_any_connection(
    token: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    token.chmod(0o644)
    with socket.create_server((HERE, 0)) as server:
        server.setblocking(False)
        address = f"{HERE}:{server.getsockname()[1]}"
        assert run_command(["cluster", "join", address, "--token-file", str(token)]) == 1
        with pytest.raises(BlockingIOError):
            server.accept()
    assert "others may read this token; needed: chmod 600" in capsys.readouterr().err


def test_plan_predicts_minutes_and_advises(llama: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["cluster", "plan", str(llama), "--machines", "4", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["source_nbytes"] == sum(unit.nbytes for unit in open_source(llama).units)
    assert record["advice"]
    for forecast in record["forecasts"]:
        assert forecast["machines"] == 4
        assert all(seconds > 0 for seconds in forecast["seconds"].values())
    assert run_command(["cluster", "plan", str(llama)]) == 0
    assert record["advice"].split()[0] in capsys.readouterr().out
    assert run_command(["cluster", "plan", str(llama), "--machines", "1"]) == 2
