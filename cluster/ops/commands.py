"""`mint cluster`: the commands of a cluster, which the command line of mint finds through an entry point.

A thin rim: everything heavy, Ray above all, is imported inside the commands.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.settings import (
    PORT,
    TOKEN_VARIABLE,
    Address,
    checked_tls,
    checked_token,
    make_token,
    parse_address,
    tls_place,
    token_place,
)
from mint.cli.options import Dtype, Json, Model, checked_dtype
from mint.cli.screen import Screen
from mint.core.errors import MintError

if TYPE_CHECKING:
    from cluster.ops.doctor import Finding

app = typer.Typer(
    name="cluster",
    help="Several machines as one, for --cluster.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Where = Annotated[
    str, typer.Argument(metavar="[tls://]HOST[:PORT]", help=f"The head of the cluster; its port, if not {PORT}.")
]
TokenFile = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help=f"The cluster's token; default: {TOKEN_VARIABLE}, or where up makes one."),
]
ModelRoots = Annotated[
    list[Path],
    typer.Option(
        metavar="DIR", help="Where this machine has its models: folders of models, or a hub cache. May be repeated."
    ),
]
Tls = Annotated[bool, typer.Option("--tls", help="Encrypt everything, with the certificates of mint cluster certs.")]
HERE = f"127.0.0.1:{PORT}"


@app.command()
def up(
    head: Annotated[bool, typer.Option("--head", help="Start the head; it works too.")] = False,
    address: Annotated[
        str, typer.Option(metavar="IP", help="This machine's address for the others; default: for this machine alone.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Where the head listens.")] = PORT,
    token_file: TokenFile = None,
    model_root: ModelRoots = [],  # noqa: B006, typer copies it
    tls: Tls = False,
) -> None:
    """Start the head of a cluster in the foreground, until Ctrl-C.

    Example: mint cluster up --head --address 10.0.0.1
    """
    if not head:
        raise MintError("needed: --head to start a cluster here, or mint cluster join HOST:PORT to join one")
    where = parse_address(f"{address}:{port}")
    place = token_file or token_place()
    made = make_token(place)
    with _ray():
        from cluster.ops.nodes import Start, need_free, run_node

        start = Start(where, address, True, checked_token(place), _certificates(tls), _folders(model_root))
        need_free(where)
        typer.echo(f"token: {place} ({'made now' if made else 'as before'}; whoever has it can run programs here)")
        raise typer.Exit(run_node(start, lambda _: _say_how_to_join(start.address, place, tls)))


@app.command()
def join(
    head: Where,
    token_file: TokenFile = None,
    model_root: ModelRoots = [],  # noqa: B006, typer copies it
    tls: Tls = False,
) -> None:
    """Let this machine work for a cluster, in the foreground, until Ctrl-C.

    Example: mint cluster join 10.0.0.1:6379 --token-file token --model-root ~/models
    """
    where = parse_address(head)
    token, certificates = checked_token(token_file or token_place()), _certificates(tls or where.tls)
    roots = _folders(model_root)
    with _ray():
        from cluster.ops.nodes import Start, own_address, run_node
        from cluster.transport.handshake import knock

        own = own_address(where)
        if knock(where, token=token, tls=certificates).has(own):
            raise MintError(f"this machine ({own}) is a node of {where} already; one is enough")
        start = Start(where, own, False, token, certificates, roots)
        raise typer.Exit(run_node(start, lambda _: typer.echo(f"joined {where} as {own}. Ctrl-C leaves")))


@app.command()
def status(
    head: Where = HERE,
    token_file: TokenFile = None,
    tls: Tls = False,
    as_json: Json = False,
) -> None:
    """Show the nodes of a cluster, what each of them holds, and how fast it was."""
    where = parse_address(head)
    where = replace(where, tls=where.tls or tls)
    with Screen(as_json) as screen, _ray():
        from cluster.ops.status import ANSWER_SECONDS, cluster_record, tell_node
        from cluster.transport.connect import driving

        with driving(where, token_file) as known:
            from cluster.transport.driver import survey

            assert known
            record = cluster_record(known, survey(tell_node, ANSWER_SECONDS))
    screen.answer(record)


@app.command()
def doctor(
    head: Annotated[
        str, typer.Argument(metavar="[[tls://]HOST[:PORT]]", help="Also see whether this cluster lets this machine in.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Check this machine for everything known to go wrong in a cluster, with its cure. The report holds no secret.

    Exit code 1 when something is bad.
    """
    from dataclasses import asdict

    from cluster.ops.doctor import examine, is_well
    from cluster.ops.machine import observe

    with Screen(as_json) as screen:
        machine = observe()
        findings = examine(machine)
        if head:
            findings.append(_knocked(head))
    record = {"checks": [asdict(finding) for finding in findings], "well": is_well(findings)}
    screen.answer(record | ({"machine": asdict(machine)} if as_json else {}))
    if not is_well(findings):
        raise typer.Exit(1)


@app.command()
def certs(
    hosts: Annotated[list[str], typer.Argument(metavar="HOST...", help="Address or name of every machine.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write, one folder in it for each machine.")],
) -> None:
    """Make certificates for --tls: an authority, and one certificate for every machine. More can be added later."""
    from cluster.ops.certificates import make_certificates

    for folder in make_certificates(hosts, output):
        typer.echo(f"{folder}: copy it to {tls_place()} on {folder.name}")


@app.command()
def plan(
    model: Model,
    machines: Annotated[int, typer.Option(min=2, help="How many machines like this one.")] = 2,
    rounding: Annotated[str, typer.Option(metavar="NAME", help="What is measured: nearest or search.")] = "nearest",
    dtype: Dtype = "",
    as_json: Json = False,
) -> None:
    """Is a cluster worth it for MODEL? Measures this machine for a few seconds and predicts minutes.

    Alone, with local copies, with a folder that one machine shares, and with a file server, over several links.
    """
    from cluster.forecast.forecast import plan_cluster
    from mint.formats.rounding import parse_rounding

    parse_rounding(rounding)
    with Screen(as_json) as screen:
        outlook = plan_cluster(
            model, machines=machines, dtype=checked_dtype(dtype), rounding=rounding, on_progress=screen.on_progress
        )
    if as_json:
        screen.answer(outlook.record())
    else:
        typer.echo(outlook.table())


@app.command("service-file")
def service_file(
    role: Annotated[str, typer.Argument(metavar="head|worker", help="Which node this machine shall be.")],
    address: Annotated[
        str,
        typer.Option(metavar="IP[:PORT]", help="head: this machine's address for the others; worker: the head's."),
    ],
    token_file: TokenFile = None,
    model_root: ModelRoots = [],  # noqa: B006, typer copies it
    tls: Tls = False,
    kind: Annotated[str, typer.Option(metavar="launchd|systemd", help="Default: what this system has.")] = "",
) -> None:
    """Print a file that lets this machine start its node by itself: a launchd property list, or a systemd unit.

    Example: mint cluster service-file worker --address 10.0.0.1 --model-root ~/models > mint-cluster-worker.plist
    """
    import getpass
    import sys

    from cluster.ops.autostart import KINDS, LAUNCHD, SYSTEMD, Service, how_to_install

    if role not in ("head", "worker"):
        raise typer.BadParameter(f"found {role!r}, needed head or worker", param_hint="head|worker")
    kind = kind or (LAUNCHD if sys.platform == "darwin" else SYSTEMD)
    if kind not in KINDS:
        raise typer.BadParameter(f"found {kind!r}, needed {' or '.join(KINDS)}", param_hint="--kind")
    where = parse_address(address)
    start = ["up", "--head", "--address", where.host, "--port", str(where.port)]
    command = [
        *(str(Path(sys.executable).with_name("mint")), "cluster"),
        *(start if role == "head" else ["join", str(where)]),
        *("--token-file", str((token_file or token_place()).absolute())),
        *(word for root in _folders(model_root) for word in ("--model-root", str(root))),
        *(["--tls"] if tls or where.tls else []),
    ]
    kept = {name: os.environ[name] for name in ("MINT_CACHE", "MINT_CONFIG") if name in os.environ}
    name = f"mint-cluster-{role}"
    home = str(Path.home())
    service = Service(name, command, getpass.getuser(), home, f"{home}/{name}.log", kept)
    typer.echo(KINDS[kind](service), nl=False)
    typer.echo(how_to_install(kind, name), err=True)


def _say_how_to_join(address: Address, token: Path, tls: bool) -> None:
    scheme = "tls://" if tls else ""
    if address.is_loopback:
        typer.echo("up, for this machine alone; for others: --address with this machine's address")
    else:
        typer.echo(
            f"up. On every other machine, with a copy of the token (chmod 600):\n"
            f"  mint cluster join {scheme}{address} --token-file TOKEN --model-root DIR\n"
            "Ray listens on all networks of this machine from now on; nobody is let in without the token."
        )
    variable = "" if token == token_place() else f"{TOKEN_VARIABLE}={token} "
    typer.echo(f"Then on any of them:\n  {variable}mint quantize MODEL --budget 64GB --cluster {scheme}{address}")
    typer.echo("Ctrl-C ends the head, and the cluster with it.")


def _knocked(head: str) -> "Finding":
    from cluster.ops.doctor import BAD, GOOD, Finding

    where = parse_address(head)
    try:
        with _ray():
            from cluster.transport.handshake import knock

            known = knock(where, token=checked_token(token_place()), tls=_certificates(where.tls))
    except MintError as error:
        return Finding("cluster", BAD, str(where), str(error))
    return Finding("cluster", GOOD, f"{where}: {len(known.living())} nodes, same versions, token accepted")


def _certificates(tls: bool) -> Path | None:
    return checked_tls(tls_place()) if tls else None


def _folders(roots: list[Path]) -> tuple[Path, ...]:
    for root in roots:
        if not root.is_dir():
            raise MintError(f"--model-root {root}: no such folder")
    return tuple(root.resolve() for root in roots)


@contextmanager
def _ray() -> Iterator[None]:
    """Name the extra where Ray or gRPC is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        from cluster.transport.connect import INSTALL

        if error.name and error.name.split(".")[0] in ("ray", "grpc", "cryptography"):
            raise MintError(f"{error.name} is not installed; needed: {INSTALL}") from error
        raise
