"""Who may talk to the service at all: pure rules, each of which answers one known attack.

- Beyond loopback nothing is open: without tokens, or with neither TLS nor --insecure, it does not start.
- A page of another site that has its own name point at 127.0.0.1 (DNS rebinding) sends that name as Host: only
  addresses, which cannot be rebound, and the service's own names are answered.
- A page of another site that posts here sends an Origin or Sec-Fetch-Site that says so: refused.
- A page of this site runs no foreign or inline script, is framed by nobody, and tells nobody where it was.

`Strict-Transport-Security` is left out on purpose: it covers all ports of a host, and other services of a lab's
machine speak plain HTTP.
"""

import ipaddress
import socket
from collections.abc import Iterable, Mapping

from cluster.service.settings import Settings
from mint.core.errors import MintError

HEADERS = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; "
    "object-src 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_PAGES = ("/", "/index.html")
_READING = ("GET", "HEAD")
_OF_PROXIES = ("forwarded", "via", "x-real-ip")


def need_safe(settings: Settings, *, has_tokens: bool) -> None:
    """Raise `MintError`, with the cure, for an address that would let strangers in."""
    if bool(settings.tls_cert) != bool(settings.tls_key):
        raise MintError("found one of --tls-cert and --tls-key; needed: both, as PEM files")
    if settings.is_local:
        return
    if not has_tokens:
        raise MintError(
            f"--host {settings.host} can be reached from other machines, and there is no token: anybody could use it. "
            "Make one first: mint token create NAME"
        )
    if not settings.tls_cert and not settings.insecure:
        raise MintError(
            f"--host {settings.host} can be reached from other machines, and without TLS everybody on the way can read "
            "the tokens. Give --tls-cert and --tls-key (mint cluster certs makes some), or, behind a proxy or VPN that "
            "encrypts, --insecure"
        )


def own_names(settings: Settings) -> frozenset[str]:
    """The names, in lower case, that a request may call the service by, beside addresses."""
    names = {"localhost", settings.host, *settings.names}
    if not settings.is_local:
        host = socket.gethostname()
        names |= {host, host.partition(".")[0], f"{host.partition('.')[0]}.local"}
    return frozenset(name.lower().rstrip(".") for name in names)


def is_own_host(host: str, names: frozenset[str]) -> bool:
    """Whether a Host header, with or without a port, is an address or one of the names."""
    name = host[: host.rindex("]") + 1] if host.startswith("[") and "]" in host else host.partition(":")[0]
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return name.lower().rstrip(".") in names
    return True


def is_foreign(method: str, path: str, headers: Mapping[str, str]) -> bool:
    """Whether a page of another site made the request. Following a link to the page itself is not foreign."""
    origin = headers.get("origin")
    if origin is not None and origin.partition("://")[2].lower() != headers.get("host", "").lower():
        return True
    if headers.get("sec-fetch-site", "none") in ("none", "same-origin"):
        return False
    return not (method in _READING and path in _PAGES and headers.get("sec-fetch-mode") == "navigate")


def is_forwarded(names: Iterable[str]) -> bool:
    """Whether headers with these names, in lower case, came through a proxy: then loopback is not this machine."""
    return any(name in _OF_PROXIES or name.startswith("x-forwarded-") for name in names)


def is_json(content_type: str) -> bool:
    """Whether a Content-Type is JSON in UTF-8, which no form of another site can send without being asked first."""
    kind, _, parameter = content_type.partition(";")
    charset = parameter.strip().lower().removeprefix("charset=").strip('"')
    return kind.strip().lower() == "application/json" and charset in ("", "utf-8")
