"""The commands of `mint cluster`, which the command line of mint loads through an entry point.

Heavy modules, above all Ray, are imported inside the commands.
"""

import os
from pathlib import Path
from typing import Annotated

import typer

from cluster.settings import (
    PORT,
    TOKEN_VARIABLE,
    Address,
    checked_secrets,
    make_token,
    parse_address,
    tls_folder,
    token_path,
)
from cluster.transport.connect import driving, needing_ray
from mint.cli.options import NONE, Dtype, Json, Model, argument, flag, option
from mint.cli.terminal.foreign import echo
from mint.cli.terminal.screen import Screen
from mint.core.errors import MintError

app = typer.Typer(
    name="cluster",
    help="Use several machines as one, for --cluster.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Head = Annotated[str, argument("[tls://]HOST[:PORT]", f"The head of the cluster; the default port is {PORT}.")]
TokenFile = Annotated[
    Path | None, option("FILE", f"The token of the cluster; default: {TOKEN_VARIABLE}, or the token that up makes.")
]
ModelRoots = Annotated[
    list[Path], option("DIR", "A folder with models, or a hub cache, on this machine. May be repeated.")
]
Tls = Annotated[bool, flag("Encrypt all traffic with the certificates of mint cluster certs.", "--tls")]
HERE = f"127.0.0.1:{PORT}"


@app.command()
def up(
    head: Annotated[bool, flag("Start the head, which works too.", "--head")] = False,
    address: Annotated[
        str, option("IP", "The address of this machine for the other nodes; default: this machine only.")
    ] = "127.0.0.1",
    port: Annotated[int, option("", "The port of the head.", min=1, max=65535)] = PORT,
    token_file: TokenFile = None,
    model_root: ModelRoots = NONE,
    tls: Tls = False,
) -> None:
    """Start the head of a cluster in the foreground, until Ctrl-C.

    Example: mint cluster up --head --address 10.0.0.1
    """
    if not head:
        raise MintError("needed: --head to start a cluster here, or mint cluster join HOST:PORT to join one")
    head_address = parse_address(f"{address}:{port}", tls)
    token = token_file or token_path()
    is_new = make_token(token)
    with needing_ray():
        from cluster.ops.nodes import NodeStart, require_free, run_node

        secrets = checked_secrets(head_address, token)
        start = NodeStart(head_address, address, True, secrets, _folders(model_root))
        require_free(head_address)
        echo(f"token: {token} ({'new' if is_new else 'existing'}; anyone who has it can run programs here)")
        raise typer.Exit(run_node(start, lambda: _print_next_steps(head_address, token)))


@app.command()
def join(head: Head, token_file: TokenFile = None, model_root: ModelRoots = NONE, tls: Tls = False) -> None:
    """Join this machine to a cluster, in the foreground, until Ctrl-C.

    Example: mint cluster join 10.0.0.1:6379 --token-file token --model-root ~/models
    """
    address = parse_address(head, tls)
    secrets, roots = checked_secrets(address, token_file), _folders(model_root)
    with needing_ray():
        from cluster.head.handshake import knock
        from cluster.ops.nodes import NodeStart, own_address, run_node

        own = own_address(address)
        if knock(address, secrets).has(own):
            raise MintError(f"this machine ({own}) is already a node of {address}; needed: one node per machine")
        start = NodeStart(address, own, False, secrets, roots)
        raise typer.Exit(run_node(start, lambda: echo(f"joined {address} as {own}. Press Ctrl-C to leave")))


@app.command()
def status(head: Head = HERE, token_file: TokenFile = None, tls: Tls = False, as_json: Json = False) -> None:
    """Show the nodes of a cluster, their models and their measured rates."""
    with Screen(as_json) as screen, driving(parse_address(head, tls), token_file) as answer:
        from cluster.ops.status import ANSWER_SECONDS, cluster_record, pack_node
        from cluster.transport.survey import survey

        assert answer
        record = cluster_record(answer, survey(pack_node, ANSWER_SECONDS))
    screen.answer(record)


@app.command()
def certs(
    hosts: Annotated[list[str], argument("HOST...", "The address or name of every machine.")],
    output: Annotated[Path, option("", "The output folder; gets one folder for each machine.", "--output", "-o")],
) -> None:
    """Make certificates for --tls: an authority, and a certificate for every machine. Run it again to add some."""
    from cluster.ops.certificates import make_certificates

    for folder in make_certificates(hosts, output):
        echo(f"{folder}: copy it to {tls_folder()} on {folder.name}")


@app.command()
def plan(
    model: Model,
    machines: Annotated[int, option("", "Number of machines like this one.", min=2)] = 2,
    rounding: Annotated[str, option("NAME", "The rounding to measure: nearest or search.")] = "nearest",
    dtype: Dtype = "",
    as_json: Json = False,
) -> None:
    """Measure this machine for a few seconds and predict if a cluster is worth it for MODEL.

    Compares one machine, local copies, a shared folder and a file server, over several links.
    """
    from cluster.forecast.forecast import plan_cluster
    from mint.formats.rounding import parse_rounding

    parse_rounding(rounding)
    with Screen(as_json) as screen:
        outlook = plan_cluster(model, machines=machines, dtype=dtype, rounding=rounding, on_progress=screen.on_progress)
    if as_json:
        screen.answer(outlook.record())
    else:
        echo(*outlook.table().splitlines())


@app.command("service-file")
def service_file(
    role: Annotated[str, argument("head|worker", "The role of this machine.")],
    address: Annotated[
        str, option("IP[:PORT]", "head: the address of this machine for the others; worker: the address of the head.")
    ],
    token_file: TokenFile = None,
    model_root: ModelRoots = NONE,
    tls: Tls = False,
    kind: Annotated[str, option("launchd|systemd", "Default: the kind of this system.")] = "",
) -> None:
    """Print a service file that starts the node of this machine at boot, for launchd or systemd.

    Example: mint cluster service-file worker --address 10.0.0.1 --model-root ~/models > mint-cluster-worker.plist
    """
    import getpass
    import sys

    from cluster.autostart import KINDS, LAUNCHD, SYSTEMD, BootService, install_hint

    if role not in ("head", "worker"):
        raise typer.BadParameter(f"found {role!r}, needed head or worker", param_hint="head|worker")
    kind = kind or (LAUNCHD if sys.platform == "darwin" else SYSTEMD)
    if kind not in KINDS:
        raise typer.BadParameter(f"found {kind!r}, needed {' or '.join(KINDS)}", param_hint="--kind")
    head = parse_address(address, tls)
    up = ["up", "--head", "--address", head.host, "--port", str(head.port)]
    command = [
        *(str(Path(sys.executable).with_name("mint")), "cluster"),
        *(up if role == "head" else ["join", str(head)]),
        *("--token-file", str((token_file or token_path()).absolute())),
        *(word for root in _folders(model_root) for word in ("--model-root", str(root))),
        *(["--tls"] if head.tls else []),
    ]
    variables = {name: os.environ[name] for name in ("MINT_CACHE", "MINT_CONFIG") if name in os.environ}
    service = BootService(f"mint-cluster-{role}", command, getpass.getuser(), str(Path.home()), variables)
    echo(*KINDS[kind](service).splitlines())
    echo(*install_hint(kind, service.name).splitlines(), error=True)


def _print_next_steps(address: Address, token: Path) -> None:
    url = f"tls://{address}" if address.tls else str(address)
    if address.is_loopback:
        echo("The head is up, for this machine only; for other machines, give --address with this one's address")
    else:
        echo(
            "The head is up. On every other machine, with a copy of the token (chmod 600), run:",
            f"  mint cluster join {url} --token-file TOKEN --model-root DIR",
            "Ray now listens on all networks of this machine; it accepts nobody without the token.",
        )
    variable = "" if token == token_path() else f"{TOKEN_VARIABLE}={token} "
    echo("Then run on any of them:", f"  {variable}mint quantize MODEL --budget 64GB --cluster {url}")
    echo("Ctrl-C stops the head and thereby the cluster.")


def _folders(roots: list[Path]) -> tuple[Path, ...]:
    for root in roots:
        if not root.is_dir():
            raise MintError(f"--model-root {root}: no such folder")
    return tuple(root.resolve() for root in roots)
