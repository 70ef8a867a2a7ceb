"""Certificates of a cluster: its machines accept each other and reject all others."""

import socket
import ssl
import threading
from pathlib import Path

import pytest

pytest.importorskip("cryptography", reason="the cluster's tests need: pip install 'mint-mlx[cluster]'")

from cluster.ops.certificates import make_certificates
from cluster.settings import TLS_AUTHORITY, TLS_CERTIFICATE, TLS_KEY, checked_tls
from mint.cli.main import run_command
from mint.core.errors import MintError


def context(folder: Path, side: int) -> ssl.SSLContext:
    """One side of a connection that requires a certificate of the other side."""
    side_context = ssl.SSLContext(side)
    side_context.load_verify_locations(folder / TLS_AUTHORITY)
    side_context.load_cert_chain(folder / TLS_CERTIFICATE, folder / TLS_KEY)
    side_context.verify_mode = ssl.CERT_REQUIRED
    return side_context


def connects(server: Path, client: ssl.SSLContext, name: str) -> bool:
    """True if the client can exchange data with a server that has the certificate of one machine."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            try:
                with context(server, ssl.PROTOCOL_TLS_SERVER).wrap_socket(connection, server_side=True) as secure:
                    secure.sendall(secure.recv(5))
            except (ssl.SSLError, OSError):
                connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            with (
                socket.create_connection(listener.getsockname(), timeout=10) as plain,
                client.wrap_socket(plain, server_hostname=name) as secure,
            ):
                secure.sendall(b"hello")
                return secure.recv(5) == b"hello"
        except (ssl.SSLError, OSError):
            return False
        finally:
            thread.join(10)


def test_machines_of_one_authority_accept_only_each_other(tmp_path: Path) -> None:
    head, worker = make_certificates(["10.0.0.1", "studio.lan"], tmp_path / "ours")
    (stranger,) = make_certificates(["10.0.0.1"], tmp_path / "theirs")
    member = context(worker, ssl.PROTOCOL_TLS_CLIENT)
    assert connects(head, member, "10.0.0.1")
    assert connects(head, member, "localhost")
    assert not connects(head, member, "10.0.0.2")
    assert not connects(stranger, member, "10.0.0.1")
    outsider = context(stranger, ssl.PROTOCOL_TLS_CLIENT)
    outsider.load_verify_locations(head / TLS_AUTHORITY)
    assert not connects(head, outsider, "10.0.0.1")


def test_keys_are_private_and_a_later_machine_has_the_same_authority(tmp_path: Path) -> None:
    (first,) = make_certificates(["a"], tmp_path)
    (later,) = make_certificates(["b"], tmp_path)
    assert (first / TLS_AUTHORITY).read_bytes() == (later / TLS_AUTHORITY).read_bytes()
    assert connects(first, context(later, ssl.PROTOCOL_TLS_CLIENT), "a")
    assert all(path.stat().st_mode & 0o077 == 0 for path in tmp_path.rglob("*.key"))
    assert checked_tls(first) == first.resolve()
    with pytest.raises(MintError, match="nothing is overwritten"):
        make_certificates(["c", "a"], tmp_path)
    assert not (tmp_path / "c").exists()


def test_the_command_says_where_each_folder_goes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["cluster", "certs", "10.0.0.1", "10.0.0.2", "--output", str(tmp_path / "tls")]) == 0
    output = capsys.readouterr().out
    assert all(f"on 10.0.0.{n}" in output for n in (1, 2))
    assert checked_tls(tmp_path / "tls" / "10.0.0.2")
