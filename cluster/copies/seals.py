"""The secret of one run, and what is proved with it: that who asks for bytes may have them, that they are the bytes.

The key is derived from the cluster's token and a number made for the run, so the token itself is never sent. A seal is
good for one range of one shard: whoever overhears it can ask again for what was just overheard, and for nothing else.
The seal of an answer covers its content, so bytes that were changed on their way are known also without TLS.
"""

import hashlib
import hmac
import os
import secrets
import ssl
from collections.abc import Mapping
from pathlib import Path

from cluster.settings import TLS_FILES, checked_token, token_place

_PURPOSE = b"mint share 1\0"


def new_run() -> bytes:
    """A number for a run that no other run has."""
    return secrets.token_bytes(32)


def run_key(token: Path, run: bytes) -> bytes:
    """The key of a run, the same on every machine that has the cluster's token."""
    return hmac.digest(token.read_text().strip().encode(), _PURPOSE + run, "sha256")


def secrets_of(run: bytes, side: int) -> tuple[bytes, ssl.SSLContext | None]:
    """The key of a run, and this machine's side of a connection, from the token and the environment of its node."""
    return run_key(checked_token(token_place()), run), tls_context(os.environ, side)


def request_seal(key: bytes, shard: str, start: int, nbytes: int) -> str:
    """What a request for a range carries."""
    return hmac.digest(key, _message("ask", shard, start, nbytes), "sha256").hex()


def content_seal(key: bytes, shard: str, start: int, content: bytes) -> str:
    """What the answer carries: only who has the key can make it, and only for this content."""
    digest = hashlib.sha256(content).digest()
    return hmac.digest(key, _message("content", shard, start, len(content)) + digest, "sha256").hex()


def is_seal(found: str, expected: str) -> bool:
    """Whether two seals are the same, told in a time that does not depend on where they differ."""
    return hmac.compare_digest(found.encode(), expected.encode())


def tls_context(environment: Mapping[str, str], side: int) -> ssl.SSLContext | None:
    """One side of a connection as Ray itself makes it: both show a certificate of the cluster. None without TLS."""
    if environment.get("RAY_USE_TLS") != "1":
        return None
    certificate, key, authority = (environment[variable] for variable in TLS_FILES)
    context = ssl.SSLContext(side)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(authority)
    context.load_cert_chain(certificate, key)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def _message(what: str, shard: str, start: int, nbytes: int) -> bytes:
    return f"{what}\0{shard}\0{start}\0{nbytes}\0".encode()
