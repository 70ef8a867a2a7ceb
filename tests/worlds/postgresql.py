"""A real PostgreSQL for tests: started from Debian's package in a folder of its own, on a free port of loopback."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psycopg
from psycopg import sql

_NOT_FOR_ROOT = "postgres"  # PostgreSQL refuses to run as root; the package makes this user


def binaries() -> Path | None:
    """The folder of the newest PostgreSQL on this machine, from Debian's package or the search path."""
    folders = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/postgres")]
    if folders:
        return max(folders, key=lambda folder: float(folder.parent.name))
    found = shutil.which("postgres")
    return Path(found).resolve().parent if found else None


def why_not() -> str:
    """Why there can be no PostgreSQL here; empty if there can."""
    if sys.platform == "win32" or binaries() is None:
        return "PostgreSQL is not installed: apt-get install postgresql"
    if os.geteuid() == 0 and not _user_exists():
        return f"PostgreSQL does not run as root, and there is no user {_NOT_FOR_ROOT}"
    return ""


@contextmanager
def running() -> Iterator[str]:
    """The address of a server that ends with the block; its data are gone then. Durable it need not be."""
    home = binaries()
    assert home is not None
    user = pwd.getpwnam(_NOT_FOR_ROOT) if os.geteuid() == 0 else None
    identity: dict[str, object] = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []} if user else {}
    folder = Path(tempfile.mkdtemp(prefix="mint-postgres-"))  # not pytest's: others may not look into that
    try:
        if user:
            os.chown(folder, user.pw_uid, user.pw_gid)
        data, log = folder / "data", folder / "log"
        initdb = [str(home / "initdb"), "--pgdata", str(data), "--username", "mint", "--auth", "trust", "--no-sync"]
        made = subprocess.run(
            [*initdb, "--encoding", "UTF8", "--locale", "C"], cwd=folder, capture_output=True, text=True, **identity
        )  # type: ignore[call-overload]
        assert made.returncode == 0, made.stderr
        port = _free_port()
        settings = {
            "listen_addresses": "127.0.0.1", "port": port, "unix_socket_directories": "", "fsync": "off",
            "synchronous_commit": "off", "full_page_writes": "off", "max_connections": 100,
        }  # fmt: skip
        options = [word for key, value in settings.items() for word in ("-c", f"{key}={value}")]
        with log.open("wb") as output:
            server = subprocess.Popen(
                [str(home / "postgres"), "-D", str(data), *options],
                cwd=folder,
                stdout=output,
                stderr=output,
                **identity,
            )  # type: ignore[call-overload]
        try:
            url = f"postgresql://mint@127.0.0.1:{port}/postgres"
            _wait(url, server, log)
            yield url
        finally:
            server.send_signal(signal.SIGQUIT)  # at once, without saving what is deleted anyway
            server.wait()
    finally:
        shutil.rmtree(folder)


def new_database(server: str, name: str) -> str:
    """The address of a new, empty database of a server."""
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    return server.rpartition("/")[0] + "/" + name


def _user_exists() -> bool:
    try:
        pwd.getpwnam(_NOT_FOR_ROOT)
    except KeyError:
        return False
    return True


def _free_port() -> int:
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _wait(url: str, server: "subprocess.Popen[bytes]", log: Path) -> None:
    """Until it answers, which psycopg tries for as long as the server lives."""
    while True:
        try:
            psycopg.connect(url, connect_timeout=1).close()
            return
        except psycopg.OperationalError:
            assert server.poll() is None, log.read_text()
