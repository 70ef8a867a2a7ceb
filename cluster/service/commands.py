"""The commands `mint serve` and `mint token`, which the command line of mint finds through entry points.

The web framework and the database are imported inside the commands.
"""

import ipaddress
import re
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import platformdirs
import typer

from cluster.service.data.records import SCOPES, Quota
from cluster.service.settings import Settings
from mint.cli.options import NONE, Json, argument, option
from mint.cli.terminal.screen import Screen
from mint.client.http import PORT
from mint.core.errors import MintError
from mint.core.log import FORMATS, LEVELS, configure_logging
from mint.core.sizes import parse_size

if TYPE_CHECKING:
    from cluster.service.data.tokens import Tokens

_HELP: dict[str, Any] = {
    "pretty_exceptions_enable": False,
    "add_completion": False,
    "context_settings": {"help_option_names": ["-h", "--help"]},
}
serve_app = typer.Typer(name="serve", **_HELP)
token_app = typer.Typer(
    name="token", help="Tokens for the service of this machine, shown once.", no_args_is_help=True, **_HELP
)
_QUOTAS = {"active": "active", "queued": "queued", "bytes": "nbytes"}  # name of a limit: its field

Data = Annotated[Path | None, option("DIR", "The folder of all data; default: in the user's data folder.")]
DatabaseUrl = Annotated[
    str,
    option("URL", "postgresql://USER:PASSWORD@HOST/NAME; several servers of one share DIR too. Default: SQLite in DIR.",
           "--database", envvar="MINT_DATABASE", show_envvar=True)
]  # fmt: skip


Days = Annotated[float | None, option("DAYS", "How long it is valid; default: for ever.", "--days", min=0.01)]


@serve_app.command()
def serve(
    data: Data = None,
    host: Annotated[str, option("IP", "The address; beyond loopback tokens and TLS are needed.")] = "127.0.0.1",
    port: Annotated[int, option("", "0: any free port.", min=0, max=65535)] = PORT,
    roots: Annotated[
        list[Path], option("DIR", "A folder of models; nothing outside is ever read. May be repeated.", "--root")
    ] = NONE,
    allow_hub: Annotated[
        bool,
        option(
            "",
            "Accept models of the Hugging Face hub too; they are downloaded to this machine's cache of it, with "
            "this machine's token.",
            "--allow-hub",
        ),
    ] = False,
    cluster: Annotated[str, option("ADDRESS", "Work on all nodes of this Ray cluster (HOST:PORT).")] = "",
    slots: Annotated[int, option("", "Jobs at a time; 0: only serve, other machines run the jobs.", min=0)] = 1,
    max_store: Annotated[str, option("SIZE", "Most bytes of stored files; the longest unused are removed.")] = "",
    database: DatabaseUrl = "",
    tls_cert: Annotated[Path | None, option("FILE", "Certificate for HTTPS, PEM.")] = None,
    tls_key: Annotated[Path | None, option("FILE", "Its key, PEM.")] = None,
    insecure: Annotated[
        bool, option("", "Plain HTTP beyond loopback: where a proxy or a VPN encrypts.", "--insecure")
    ] = False,
    names: Annotated[
        list[str], option("HOST", "A further host name of this service. May be repeated.", "--name")
    ] = NONE,
    lease_seconds: Annotated[
        float, option("SECONDS", "How long a runner of another machine may be silent.", "--lease", min=20)
    ] = 20.0,
    retention_days: Annotated[
        float, option("DAYS", "How long events and logs of ended jobs are kept.", "--retention", min=0.1)
    ] = 30.0,
    log_level: Annotated[str, option("LEVEL", f"Of the service's own log: {', '.join(LEVELS)}.")] = "warning",
    log_format: Annotated[
        str, option("FORMAT", f"{' or '.join(FORMATS)}; default: text on a terminal, else json.")
    ] = "",
    trusted_proxies: Annotated[
        list[str],
        option(
            "IP",
            "A proxy, or a network of them, whose X-Forwarded-For and X-Forwarded-Proto are believed. May be repeated.",
            "--trusted-proxy",
        ),
    ] = NONE,
    root_path: Annotated[str, option("PATH", "Where a proxy serves this service, such as /mint.")] = "",
    requests_per_second: Annotated[float, option("", "Requests a second from one person.", "--rate", min=1)] = 100.0,
    streams_each: Annotated[int, option("", "Event streams of one person at a time.", "--streams", min=1)] = 100,
) -> None:
    """Run the lab's quantization service: submit models, follow jobs, download results, at http://127.0.0.1:8420/.

    DIR holds everything: jobs, results, logs. Events and logs of a job are removed 30 days after its end; the job
    itself stays in the history. Ctrl-C or SIGTERM ends the service; running jobs continue, and the next `mint serve`
    finds them. On loopback without any token, everybody on this machine may do everything.

    Example: mint serve --root ~/models --max-store 500GB
    """
    options = dict(locals())
    for name in ("max_store", "log_level", "log_format"):
        del options[name]
    _configure_log(log_level, log_format)
    options |= {"data": _folder(data), "roots": _roots(roots), "names": tuple(names)}
    options |= {"trusted_proxies": _networks(trusted_proxies), "root_path": _root_path(root_path)}
    options |= {"tls_cert": _file(tls_cert, "--tls-cert"), "tls_key": _file(tls_key, "--tls-key")}
    settings = Settings(**options, max_store_bytes=parse_size(max_store) if max_store else None)
    with _extra():
        from cluster.service.http.server import serve as run

        run(settings, on_start=lambda url: typer.echo(f"mint serves at {url}/ (data: {settings.data}). Ctrl-C ends it"))


@token_app.command()
def create(
    name: Annotated[str, argument("NAME", "The person: letters, digits, . _ @ -")],
    scope: Annotated[
        str, option("LIST", "Scopes: read (look, plan, download), submit (and cancel), admin.")
    ] = "read,submit",
    quota: Annotated[
        str, option("LIST", "Limits: active=1,queued=20,bytes=500GB (jobs that run, that wait or run; stored bytes).")
    ] = "",
    days: Days = None,
    data: Data = None,
    database: DatabaseUrl = "",
) -> None:
    """Make a token and print it once: the service stores only its SHA-256.

    Example: mint token create anna --quota active=1,bytes=500GB > anna.token
    """
    scopes = [part.strip() for part in scope.split(",") if part.strip()]
    with _tokens(data, database) as tokens:
        text = tokens.create(name, scopes, parse_quota(quota), seconds=_seconds(days))
    _show_once(name, text)


@token_app.command()
def rotate(
    name: Annotated[str, argument("NAME", "The person.")],
    grace_hours: Annotated[float, option("HOURS", "How long the token before stays valid.", "--grace", min=0)] = 24.0,
    days: Days = None,
    data: Data = None,
    database: DatabaseUrl = "",
) -> None:
    """Make a new token for a person, with the same scopes and quota, and print it once."""
    with _tokens(data, database) as tokens:
        text = tokens.rotate(name, grace_seconds=grace_hours * 3600.0, seconds=_seconds(days))
    _show_once(name, text)


def _show_once(name: str, text: str) -> None:
    typer.echo(text)
    typer.echo(f"for {name}: pass it in MINT_TOKEN or --token-file; it is not shown again", err=True)


def _seconds(days: float | None) -> float | None:
    return None if days is None else days * 86400.0


@token_app.command("list")
def list_(data: Data = None, database: DatabaseUrl = "", as_json: Json = False) -> None:
    """List the tokens with their scopes and quotas, never the token itself."""
    with Screen(as_json) as screen, _tokens(data, database) as tokens:
        rows = [
            {
                "name": grant.person.name,
                "scopes": ",".join(grant.person.scopes),
                "quota": write_quota(grant.person.quota),
                "created": _time(grant.created_at),
                "last_use": _time(grant.used_at),
                "expires": _time(grant.expires_at),
            }
            for grant in tokens.list()
        ]
    screen.answer({"tokens": rows})


def _time(seconds: float | None) -> str:
    """A time as ISO 8601 in UTC; empty for none."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds") if seconds else ""


@token_app.command()
def revoke(
    name: Annotated[str, argument("NAME", "The person.")],
    data: Data = None,
    database: DatabaseUrl = "",
) -> None:
    """Revoke a token at once. Its jobs continue."""
    with _tokens(data, database) as tokens:
        tokens.revoke(name)
    typer.echo(f"the token of {name} is revoked")


def parse_quota(text: str) -> Quota:
    """Parse a quota such as `active=1,queued=20,bytes=500GB`; raises `MintError` for anything else."""
    limits: dict[str, int] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        key, _, value = part.partition("=")
        field = _QUOTAS.get(key, "")
        if not field or field in limits or not (field == "nbytes" or value.isdigit()):
            raise MintError(f"--quota {part!r}; needed some of active=N, queued=N, bytes=SIZE, separated by commas")
        limits[field] = parse_size(value) if field == "nbytes" else int(value)
    return Quota(**limits)


def write_quota(quota: Quota) -> str:
    """Write a quota in the form that `parse_quota` reads."""
    limits = {name: getattr(quota, field) for name, field in _QUOTAS.items()}
    return ",".join(f"{name}={value}{'B' * (name == 'bytes')}" for name, value in limits.items() if value is not None)


def _folder(data: Path | None) -> Path:
    return (data or Path(platformdirs.user_data_dir("mint")) / "service").expanduser().resolve()


def _roots(roots: list[Path]) -> tuple[Path, ...]:
    for root in roots:
        if not root.is_dir():
            raise MintError(f"--root {root}: no such folder; needed one with models in it")
    return tuple(root.resolve() for root in roots)


def _configure_log(level: str, format: str) -> None:
    if level not in LEVELS or format not in ("", *FORMATS):
        raise MintError(
            f"--log-level {level} --log-format {format}; needed: {', '.join(LEVELS)}; {' or '.join(FORMATS)}"
        )
    configure_logging(level=level, format=format)


def _networks(addresses: list[str]) -> tuple[str, ...]:
    try:
        return tuple(str(ipaddress.ip_network(address)) for address in addresses)
    except ValueError as error:
        raise MintError(f"--trusted-proxy: {error}; needed: an address such as 10.0.0.5, or 10.0.0.0/24") from error


def _root_path(text: str) -> str:
    path = text.rstrip("/")
    if path and not re.fullmatch(r"(/[A-Za-z0-9._~-]+)+", path):
        raise MintError(f"--root-path {text}: needed: a path such as /mint")
    return path


def _file(path: Path | None, option: str) -> Path | None:
    if path and not path.is_file():
        raise MintError(f"{option} {path}: no such file")
    return path


@contextmanager
def _tokens(data: Path | None, database: str) -> Iterator["Tokens"]:
    settings = Settings(_folder(data), database=database)
    settings.data.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _extra():
        from cluster.service.data.database import connect
        from cluster.service.data.tokens import Tokens

        with closing(connect(settings.database_url)) as opened:
            yield Tokens(opened)


@contextmanager
def _extra() -> Iterator[None]:
    """Name the extra to install if the web framework or the database is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] in ("mint", "cluster"):
            raise
        raise MintError(f"{error.name} is not installed; needed: pip install 'mint-mlx[service]'") from error


assert set(SCOPES) == {"read", "submit", "admin"}  # as the help says
