"""`mint serve --config FILE`: the names and the meaning of the options; an error names the file and the key."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import cluster.service.commands.serve as command
from cluster.service.settings import Settings
from mint.core.errors import MintError


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """The settings that the command serves with."""
    served: list[Settings] = []
    monkeypatch.setattr("cluster.service.http.server.serve", lambda settings, on_start: served.append(settings))
    return served


def _serve(*arguments: str) -> None:
    result = CliRunner().invoke(command.app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output


def test_a_file_has_the_names_of_the_options_and_paths_are_relative_to_it(
    tmp_path: Path, settings: list[Settings]
) -> None:
    (tmp_path / "models").mkdir()
    file = tmp_path / "serve.toml"
    file.write_text('port = 9000\nroot = ["models"]\nmax-store = "5GB"\nallow-hub = true\ndata = "lab"\njob-cpus = 2\n')
    _serve("--config", str(file))
    _serve("--port", "9001", "--config", str(file), "--max-store", "6GB")
    first, second = settings
    assert (first.port, first.roots, first.max_store_bytes) == (9000, (tmp_path / "models",), 5 * 10**9)
    assert (first.allow_hub, first.data, first.job_cpus) == (True, tmp_path / "lab", 2)
    assert (second.port, second.max_store_bytes) == (9001, 6 * 10**9)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("prot = 1", "serve.toml: prot is no option; needed some of allow-hub"),
        ('port = "much"', r"serve.toml: port = 'much'"),
        ("port = 70000", "serve.toml: port = 70000"),
        ("port = true", "serve.toml: port = True; needed: one text or number"),
        ('root = "models"', "serve.toml: root = 'models'; needed: a list"),
        ("allow-hub = 1", "serve.toml: allow-hub = 1; needed: true or false"),
        ("port", "serve.toml: .*needed: TOML"),
        ("config = 1", "serve.toml: config is no option"),
    ],
)
def test_an_error_names_the_file_and_the_key(line: str, message: str, tmp_path: Path, settings: list[Settings]) -> None:
    file = tmp_path / "serve.toml"
    file.write_text(line)
    with pytest.raises(MintError, match=message):
        _serve("--config", str(file))
    assert not settings


def test_a_webhook_needs_a_secret_that_only_its_owner_can_read(tmp_path: Path, settings: list[Settings]) -> None:
    secret = tmp_path / "secret"
    secret.write_text("0123456789abcdef")
    secret.chmod(0o644)
    with pytest.raises(MintError, match="--webhook-secret FILE"):
        _serve("--webhook", "https://chat.example/hook")
    with pytest.raises(MintError, match="chmod 600"):
        _serve("--webhook", "https://chat.example/hook", "--webhook-secret", str(secret))
    secret.chmod(0o600)
    _serve("--webhook", "https://chat.example/hook", "--webhook-secret", str(secret))
    assert settings[0].webhook_secret == "0123456789abcdef"


@pytest.mark.parametrize("kind", ["launchd", "systemd"])
def test_a_service_file_starts_the_service_with_its_configuration(kind: str, tmp_path: Path) -> None:
    config = tmp_path / "serve.toml"
    config.write_text("port = 8420")
    code = "import sys; from cluster.service.commands.service import file_app; file_app(sys.argv[1:])"
    arguments = [sys.executable, "-c", code, "--config", str(config), "--kind", kind]
    text = subprocess.run(arguments, capture_output=True, text=True, check=True).stdout
    words = ["serve", "--config", str(config)]
    if kind == "launchd":
        assert all(f"<string>{word}</string>" in text for word in words)
    else:
        assert " ".join(words) in text


def test_settings_reach_a_runner_unchanged(tmp_path: Path) -> None:
    from cluster.service.work.runner import ORDERS, Order

    order = Order("job", "lease", Settings(tmp_path, roots=(tmp_path,), job_cpus=2))
    assert ORDERS.validate_json(json.dumps(json.loads(ORDERS.dump_json(order)))) == order
