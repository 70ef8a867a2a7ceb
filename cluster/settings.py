"""Where a cluster is, its secrets, and the environment that Ray reads when it is imported.

Token authentication is always on and always set explicitly: Ray's own default depends on files that happen to exist.
The token and the keys lie in the user's configuration folder (`MINT_CONFIG` moves it), readable by their owner only.
"""

import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from mint.client.http import check_private, is_loopback
from mint.core.errors import MintError

TOKEN_VARIABLE = "RAY_AUTH_TOKEN_PATH"
UNWANTED = ("RAY_AUTH_TOKEN", "RAY_ADDRESS", "RAY_NAMESPACE")  # they would win over what is set here
PORT = 6379
RESOURCE = "mlx"  # one worker of mint a node; Ray itself knows no Apple GPU
STORE_BYTES = 200_000_000  # Ray's object store of a node: what is on its way, in pieces
MISSED_CHECKS = 15  # 3 to 13 s each, until Ray calls a node dead, which then ends; its 5 end it for a cable out 40 s
TLS_SCHEME = "tls://"
TLS_FILES = {"RAY_TLS_SERVER_CERT": "node.pem", "RAY_TLS_SERVER_KEY": "node.key", "RAY_TLS_CA_CERT": "ca.pem"}


@dataclass(frozen=True, slots=True)
class Address:
    """Where the head of a cluster listens, and whether it speaks TLS."""

    host: str
    port: int
    tls: bool = False

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return is_loopback(self.host)


def parse_address(text: str) -> Address:
    """`HOST:PORT` or `tls://HOST:PORT`; without a port it is 6379. Raises `MintError` for anything else."""
    tls = text.startswith(TLS_SCHEME)
    host, colon, port = text.removeprefix(TLS_SCHEME).partition(":")
    if not host or "/" in text.removeprefix(TLS_SCHEME) or (colon and not port.isdigit()):
        raise MintError(f"{text!r} is no address; needed HOST:PORT such as 10.0.0.1:{PORT}, or tls://HOST:PORT")
    if int(port or PORT) > 65535:
        raise MintError(f"{text!r}: {port} is no port; needed at most 65535")
    return Address(host, int(port or PORT), tls)


def config_folder() -> Path:
    """Where this user's secrets of clusters lie."""
    return Path(os.environ.get("MINT_CONFIG") or platformdirs.user_config_dir("mint")) / "cluster"


def token_place() -> Path:
    """Where the token lies: where the variable says, else where `mint cluster up` makes it."""
    return Path(os.environ.get(TOKEN_VARIABLE) or config_folder() / "token")


def tls_place() -> Path:
    """Where this machine's certificate, key and authority lie."""
    return config_folder() / "tls"


def make_token(path: Path) -> bool:
    """Make a token that only its owner can read, unless there is one; whether it was made."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return False
    with os.fdopen(file, "w") as out:
        out.write(secrets.token_hex(32))
    return True


def checked_token(path: Path) -> Path:
    """The path of a token that may be used; raises `MintError` when it is not there, empty, or others can read it."""
    if not path.is_file():
        raise MintError(
            f"no token at {path}; needed: the token of the cluster, copied from the head "
            f"(mint cluster up says where it lies), or its path in {TOKEN_VARIABLE}"
        )
    check_private(path, "token")
    if not path.read_text().strip():
        raise MintError(f"{path} is empty; needed: the token of the cluster, copied from the head")
    return path.resolve()


def checked_tls(folder: Path) -> Path:
    """A folder with a certificate, its key and the authority; raises `MintError` for what is missing or not private."""
    missing = [name for name in TLS_FILES.values() if not (folder / name).is_file()]
    if missing:
        raise MintError(
            f"{folder}: no {', '.join(missing)}; needed for TLS: the folder that `mint cluster certs` made for this "
            "machine"
        )
    check_private(folder / TLS_FILES["RAY_TLS_SERVER_KEY"], "key")
    return folder.resolve()


def ray_environment(*, token: Path, loopback: bool, tls: Path | None = None) -> dict[str, str]:
    """The variables of Ray for a node or a driver; they name files, and hold no secret themselves."""
    variables = {
        "RAY_AUTH_MODE": "token",
        TOKEN_VARIABLE: str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_COLOR_PREFIX": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0" if loopback else "1",
        "RAY_health_check_failure_threshold": str(MISSED_CHECKS),
        "RAY_USE_TLS": "1" if tls else "0",
    }
    if tls:
        variables |= {variable: str(tls / name) for variable, name in TLS_FILES.items()}
    return variables


def without_unwanted(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment without the variables that would win over ours."""
    return {name: value for name, value in environment.items() if name not in UNWANTED}
