"""The command `mint token`: tokens for the service of this machine."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.service.commands.shared import HELP, Data, DatabaseUrl, data_folder, needing_extra
from cluster.service.data.records import SCOPES, Quota
from cluster.service.settings import Settings
from mint.cli.options import NONE, Json, argument, option
from mint.cli.terminal.foreign import echo
from mint.cli.terminal.screen import Screen
from mint.core.errors import MintError
from mint.core.sizes import parse_size

if TYPE_CHECKING:
    from cluster.service.data.tokens import Tokens

app = typer.Typer(
    name="token", help="Tokens for the service of this machine, shown once.", no_args_is_help=True, **HELP
)
_QUOTAS = {"active": "active", "queued": "queued", "bytes": "nbytes"}  # name of a limit: its field
Days = Annotated[float | None, option("DAYS", "How long it is valid; default: for ever.", "--days", min=0.01)]


@app.command()
def create(
    name: Annotated[str, argument("NAME", "The person: letters, digits, . _ @ -")],
    scope: Annotated[
        str, option("LIST", "Scopes: read (look, plan, download), submit (and cancel), admin.")
    ] = "read,submit",
    quota: Annotated[
        str, option("LIST", "Limits: active=1,queued=20,bytes=500GB (jobs that run, that wait or run; stored bytes).")
    ] = "",
    groups: Annotated[
        list[str], option("GROUP", "A group, whose models and jobs the person sees. May be repeated.", "--group")
    ] = NONE,
    days: Days = None,
    data: Data = None,
    database: DatabaseUrl = "",
) -> None:
    """Make a token and print it once: the service stores only its SHA-256.

    Example: mint token create anna --quota active=1,bytes=500GB > anna.token
    """
    scopes = [part.strip() for part in scope.split(",") if part.strip()]
    with _tokens(data, database) as tokens:
        text = tokens.create(name, scopes, parse_quota(quota), groups=groups, seconds=_seconds(days))
    _show_once(name, text)


@app.command()
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
    echo(text)
    echo(f"for {name}: pass it in MINT_TOKEN or --token-file; it is not shown again", error=True)


def _seconds(days: float | None) -> float | None:
    return None if days is None else days * 86400.0


@app.command("list")
def list_(data: Data = None, database: DatabaseUrl = "", as_json: Json = False) -> None:
    """List the tokens with their scopes and quotas, never the token itself."""
    with Screen(as_json) as screen, _tokens(data, database) as tokens:
        rows = [
            {
                "name": grant.person.name,
                "scopes": ",".join(grant.person.scopes),
                "groups": ",".join(grant.person.groups),
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


@app.command()
def revoke(
    name: Annotated[str, argument("NAME", "The person.")],
    data: Data = None,
    database: DatabaseUrl = "",
) -> None:
    """Revoke a token at once. Its jobs continue."""
    with _tokens(data, database) as tokens:
        tokens.revoke(name)
    echo(f"the token of {name} is revoked")


def parse_quota(text: str) -> Quota:
    """Parse a quota such as `active=1,queued=20,bytes=500GB`; raises `MintError` for anything else."""
    limits: dict[str, int] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        key, _, value = part.partition("=")
        field = _QUOTAS.get(key, "")
        if not field or field in limits or not (field == "nbytes" or value.isdecimal()):
            raise MintError(f"--quota {part!r}; needed some of active=N, queued=N, bytes=SIZE, separated by commas")
        limits[field] = parse_size(value) if field == "nbytes" else int(value)
    return Quota(**limits)


def write_quota(quota: Quota) -> str:
    """Write a quota in the form that `parse_quota` reads."""
    limits = {name: getattr(quota, field) for name, field in _QUOTAS.items()}
    return ",".join(f"{name}={value}{'B' * (name == 'bytes')}" for name, value in limits.items() if value is not None)


@contextmanager
def _tokens(data: Path | None, database: str) -> Iterator["Tokens"]:
    settings = Settings(data_folder(data), database=database)
    settings.data.mkdir(parents=True, exist_ok=True, mode=0o700)
    with needing_extra():
        from cluster.service.data.database import connect
        from cluster.service.data.tokens import Tokens

        with closing(connect(settings.database_url)) as opened:
            yield Tokens(opened)


assert set(SCOPES) == {"read", "submit", "admin"}  # as the help says
