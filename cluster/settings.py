"""The address of a cluster, its secrets, and the environment that Ray reads when it is imported.

Token authentication is always on and always set explicitly: Ray's own default depends on files that happen to exist.
The token and the keys lie in the user's configuration folder (`MINT_CONFIG` moves it), readable by their owner only.
"""

import os
import socket
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from secrets import token_hex

from mint.client.http import check_private, is_loopback
from mint.core.cache import config_folder as user_folder
from mint.core.errors import MintError
from mint.core.files import read_text

TOKEN_VARIABLE = "RAY_AUTH_TOKEN_PATH"
UNWANTED = ("RAY_AUTH_TOKEN", "RAY_ADDRESS", "RAY_NAMESPACE")  # they would override the variables that are set here
PORT = 6379
RESOURCE = "mlx"  # one worker of mint a node; Ray itself knows no Apple GPU
STORE_BYTES = 200_000_000  # Ray's object store of a node: results on their way, in pieces
MISSED_CHECKS = 15  # 3 to 13 s each, until Ray calls a node dead, which then ends; its 5 end it for a cable out 40 s
TLS_SCHEME = "tls://"
TLS_CERTIFICATE, TLS_KEY, TLS_AUTHORITY = "node.pem", "node.key", "ca.pem"


@dataclass(frozen=True, slots=True)
class Address:
    """The host and port of the head of a cluster; `tls` if it speaks TLS."""

    host: str
    port: int
    tls: bool = False

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """True if only this machine can reach it."""
        return is_loopback(self.host)

    def trouble(self, seconds: float) -> OSError | None:
        """The error of a try to connect; None if a program listens there."""
        try:
            socket.create_connection((self.host, self.port), timeout=seconds).close()
        except OSError as error:
            return error
        return None


def parse_address(text: str, tls: bool = False) -> Address:
    """`HOST:PORT` or `tls://HOST:PORT`; without a port it is 6379. Raises `MintError` for anything else."""
    rest = text.removeprefix(TLS_SCHEME)
    host, colon, port = rest.partition(":")
    if not host or "/" in rest or (colon and not port.isdecimal()):
        raise MintError(f"{text!r} is no address; needed HOST:PORT such as 10.0.0.1:{PORT}, or tls://HOST:PORT")
    if int(port or PORT) > 65535:
        raise MintError(f"{text!r}: {port} is no port; needed at most 65535")
    return Address(host, int(port or PORT), tls or rest != text)


def config_folder() -> Path:
    """The folder of this user's secrets of clusters."""
    return user_folder() / "cluster"


def token_path() -> Path:
    """The file of the token: the one that the variable names, else the one that `mint cluster up` makes."""
    return Path(os.environ.get(TOKEN_VARIABLE) or config_folder() / "token")


def tls_folder() -> Path:
    """The folder of this machine's certificate, key and authority."""
    return config_folder() / "tls"


def make_token(path: Path) -> bool:
    """Make a token that only its owner can read; False if there is one already."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        write_private(path, token_hex(32).encode())
    except FileExistsError:
        return False
    return True


def write_private(path: Path, content: bytes) -> None:
    """Make a file that only its owner can read; raises `FileExistsError` if there is one."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)


@dataclass(frozen=True, slots=True)
class Secrets:
    """The files that open a cluster: the token and, for TLS, the folder of certificates."""

    token: Path
    tls: Path | None = None


def checked_secrets(address: Address, token: Path | None = None) -> Secrets:
    """This machine's secrets for the cluster at `address`; raises `MintError` for one that cannot be used."""
    return Secrets(checked_token(token or token_path()), checked_tls(tls_folder()) if address.tls else None)


def checked_token(path: Path) -> Path:
    """The path of a token that may be used; raises `MintError` when it is not there, empty, or others can read it."""
    if not path.is_file():
        raise MintError(
            f"no token at {path}; needed: the token of the cluster, copied from the head "
            f"(mint cluster up prints its path), or its path in {TOKEN_VARIABLE}"
        )
    check_private(path, "token")
    if not read_text(path, "a token").strip():
        raise MintError(f"{path} is empty; needed: the token of the cluster, copied from the head")
    return path.resolve()


def checked_tls(folder: Path) -> Path:
    """A folder with a certificate, its key and the authority; raises `MintError` for a missing or readable file."""
    if missing := [name for name in (TLS_CERTIFICATE, TLS_KEY, TLS_AUTHORITY) if not (folder / name).is_file()]:
        raise MintError(
            f"{folder}: no {', '.join(missing)}; needed for TLS: the folder that `mint cluster certs` made for this "
            "machine"
        )
    check_private(folder / TLS_KEY, "key")
    return folder.resolve()


def ray_environment(secrets: Secrets, address: Address | None = None) -> dict[str, str]:
    """The variables of Ray for a node or a driver of the cluster at `address` (default: this machine alone).

    They name files, and hold no secret themselves.
    """
    variables = {
        "RAY_AUTH_MODE": "token",
        TOKEN_VARIABLE: str(secrets.token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_COLOR_PREFIX": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0" if not address or address.is_loopback else "1",
        "RAY_health_check_failure_threshold": str(MISSED_CHECKS),
        "RAY_USE_TLS": "1" if secrets.tls else "0",
    }
    if secrets.tls:
        variables["RAY_TLS_SERVER_CERT"] = str(secrets.tls / TLS_CERTIFICATE)
        variables["RAY_TLS_SERVER_KEY"] = str(secrets.tls / TLS_KEY)
        variables["RAY_TLS_CA_CERT"] = str(secrets.tls / TLS_AUTHORITY)
    return variables


def installed_version(package: str) -> str:
    """The version of a package; empty if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
