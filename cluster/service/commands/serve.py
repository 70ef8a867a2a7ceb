"""The command `mint serve`."""

import ipaddress
import re
from pathlib import Path
from typing import Annotated

import typer

from cluster.service.commands.shared import HELP, Data, DatabaseUrl, data_folder, needing_extra
from cluster.service.operations.config_file import read_defaults
from cluster.service.settings import Settings
from mint.cli.options import NONE, flag, option
from mint.cli.terminal.foreign import echo
from mint.client.http import PORT, check_private
from mint.core.errors import MintError
from mint.core.files import read_text
from mint.core.log import FORMATS, LEVELS, configure_logging
from mint.core.sizes import parse_size

app = typer.Typer(name="serve", **HELP)


def _use_config(context: typer.Context, file: Path | None) -> None:
    if file:
        context.default_map = read_defaults(file, context)


@app.command()
def serve(
    config: Annotated[
        Path | None,
        option(
            "FILE",
            "TOML with any of these options, such as port = 8420; options given here go first.",
            "--config",
            callback=_use_config,
            is_eager=True,
        ),
    ] = None,
    data: Data = None,
    host: Annotated[str, option("IP", "The address; beyond loopback tokens and TLS are needed.")] = "127.0.0.1",
    port: Annotated[int, option("", "0: any free port.", min=0, max=65535)] = PORT,
    roots: Annotated[
        list[Path], option("DIR", "A folder of models; nothing outside is ever read. May be repeated.", "--root")
    ] = NONE,
    group_roots: Annotated[
        list[str],
        option("GROUP=DIR", "A folder of models that only this group sees; absolute. May be repeated.", "--group-root"),
    ] = NONE,
    allow_hub: Annotated[
        bool,
        flag(
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
        bool, flag("Plain HTTP beyond loopback: where a proxy or a VPN encrypts.", "--insecure")
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
    user_header: Annotated[
        str,
        option("NAME", "The header by which the proxy names a person who signed in there.", "--user-header"),
    ] = "",
    root_path: Annotated[str, option("PATH", "Where a proxy serves this service, such as /mint.")] = "",
    requests_per_second: Annotated[float, option("", "Requests a second from one person.", "--rate", min=1)] = 100.0,
    streams_each: Annotated[int, option("", "Event streams of one person at a time.", "--streams", min=1)] = 100,
    audit_size: Annotated[str, option("SIZE", "Of each of the five files of the audit log.")] = "64MiB",
    job_memory: Annotated[str, option("SIZE", "Most memory of a job; beyond it the job fails.")] = "",
    job_cpus: Annotated[int | None, option("", "Processors of a job; on macOS, threads.", min=1)] = None,
    job_hours: Annotated[float | None, option("HOURS", "Most hours of work of a job.", min=0.01)] = None,
    webhook: Annotated[str, option("URL", "Told of the end of every job, signed with the secret.")] = "",
    webhook_secret: Annotated[
        Path | None, option("FILE", "The secret of the webhook, that only its owner can read.")
    ] = None,
    notify: Annotated[
        str, option("COMMAND", "Run at the end of every job, with what a webhook gets on standard input.")
    ] = "",
) -> None:
    """Run the lab's quantization service: submit models, follow jobs, download results, at http://127.0.0.1:8420/.

    DIR holds everything: jobs, results, logs. Events and logs of a job are removed 30 days after its end; the job
    itself stays in the history. Ctrl-C or SIGTERM ends the service; running jobs continue, and the next `mint serve`
    finds them. On loopback without any token, everybody on this machine may do everything.

    Example: mint serve --root ~/models --max-store 500GB
    """
    options = dict(locals())
    for name in (
        "config", "max_store", "log_level", "log_format", "audit_size", "job_memory", "job_hours", "webhook_secret"
    ):  # fmt: skip
        del options[name]
    _configure_log(log_level, log_format)
    options |= {"data": data_folder(data), "roots": _roots(roots), "names": tuple(names)}
    options |= {"group_roots": tuple(map(_group_root, group_roots))}
    options |= {"trusted_proxies": _networks(trusted_proxies), "root_path": _root_path(root_path)}
    if user_header and not (trusted_proxies and re.fullmatch("[A-Za-z0-9-]+", user_header)):
        raise MintError(
            f"--user-header {user_header}: needed: a name of a header such as X-Auth-Request-User, and --trusted-proxy"
        )
    options |= {"tls_cert": _file(tls_cert, "--tls-cert"), "tls_key": _file(tls_key, "--tls-key")}
    settings = Settings(
        **options,
        max_store_bytes=parse_size(max_store) if max_store else None,
        audit_bytes=parse_size(audit_size),
        job_memory_bytes=parse_size(job_memory) if job_memory else None,
        job_seconds=None if job_hours is None else 3600.0 * job_hours,
        webhook_secret=_secret(webhook, webhook_secret),
    )
    with needing_extra():
        from cluster.service.http.server import serve as run

        run(settings, on_start=lambda url: echo(f"mint serves at {url}/ (data: {settings.data}). Ctrl-C ends it"))


def _roots(roots: list[Path]) -> tuple[Path, ...]:
    for root in roots:
        if not root.is_dir():
            raise MintError(f"--root {root}: no such folder; needed one with models in it")
    return tuple(root.resolve() for root in roots)


def _group_root(text: str) -> tuple[str, Path]:
    group, _, folder = text.partition("=")
    path = Path(folder)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}", group) or not path.is_absolute() or not path.is_dir():
        raise MintError(f"--group-root {text}: needed: GROUP=DIR, with the absolute path of a folder with models")
    return group, path.resolve()


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


def _secret(webhook: str, file: Path | None) -> str:
    """The secret of a webhook; raises `MintError` without one, or for an address that is none."""
    if not webhook:
        return ""
    if not re.fullmatch(r"https?://[^\s/]+(/\S*)?", webhook):
        raise MintError(f"--webhook {webhook}: needed: a URL such as https://chat.example/hooks/mint")
    if not _file(file, "--webhook-secret"):
        raise MintError("--webhook needs --webhook-secret FILE, with at least 16 characters that the receiver knows")
    assert file
    check_private(file, "secret")
    secret = read_text(file, "a secret").strip()
    if len(secret) < 16:
        raise MintError(f"--webhook-secret {file}: needed: at least 16 characters")
    return secret


def _file(path: Path | None, option: str) -> Path | None:
    if path and not path.is_file():
        raise MintError(f"{option} {path}: no such file")
    return path
