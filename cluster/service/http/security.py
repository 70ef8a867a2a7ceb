"""Security rules of the service, each against one known attack; pure functions.

- Beyond loopback nothing is open: without tokens, or with neither TLS nor --insecure, the service does not start.
- DNS rebinding: a page of another site lets its own name point at 127.0.0.1, and sends that name as Host. Only
  addresses, which cannot be rebound, and the service's own names are answered.
- Cross-site requests: a page of another site sends an Origin or Sec-Fetch-Site that says so, and is refused.
- Proxies: only one that --trusted-proxy names is believed about the client's address and scheme. Behind a proxy nothing
  is open, whatever the address.
- The service's own page runs no foreign or inline script, cannot be framed, and sends no Referer.

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
_SAFE_METHODS = ("GET", "HEAD")
_PROXY_HEADERS = ("forwarded", "via", "x-real-ip")


def need_safe(settings: Settings, *, has_tokens: bool) -> None:
    """Raise `MintError`, with the cure, for settings that would let strangers in."""
    if bool(settings.tls_cert) != bool(settings.tls_key):
        raise MintError("found one of --tls-cert and --tls-key; needed: both, as PEM files")
    if settings.is_local and not settings.is_behind_proxy:
        return
    if not has_tokens:
        way = "a proxy" if settings.is_local else f"--host {settings.host}"
        raise MintError(
            f"the service can be reached from other machines through {way}, and there is no token: anybody could use "
            "it. Make one first: mint token create NAME"
        )
    if not settings.is_local and not settings.tls_cert and not settings.insecure:
        raise MintError(
            f"--host {settings.host} can be reached from other machines, and without TLS everybody on the way can read "
            "the tokens. Give --tls-cert and --tls-key (mint cluster certs makes some), or, behind a proxy or VPN that "
            "encrypts, --insecure"
        )


def own_names(settings: Settings) -> frozenset[str]:
    """The names of the service in lower case, which a Host header may give beside addresses."""
    names = {"localhost", settings.host, *settings.names}
    if not settings.is_local:
        host = socket.gethostname()
        names |= {host, host.partition(".")[0], f"{host.partition('.')[0]}.local"}
    return frozenset(name.lower().rstrip(".") for name in names)


def is_own_host(host: str, names: frozenset[str]) -> bool:
    """True if a Host header, with or without a port, is an address or one of the names.

    Starlette's TrustedHostMiddleware compares names only: it cannot admit every address.
    """
    name = host[: host.rindex("]") + 1] if host.startswith("[") and "]" in host else host.partition(":")[0]
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return name.lower().rstrip(".") in names
    return True


def is_foreign(method: str, path: str, headers: Mapping[str, str], scheme: str) -> bool:
    """True if a page of another site made the request. A link to the page itself is not foreign.

    A browser that says `same-origin` compared the schemes itself, also where a proxy hides the scheme from the service.
    """
    site = headers.get("sec-fetch-site", "none")
    origin_scheme, _, origin_host = (
        headers.get("origin", f"{scheme}://{headers.get('host', '')}").lower().partition("://")
    )
    if origin_host != headers.get("host", "").lower() or (site != "same-origin" and origin_scheme != scheme):
        return True
    if site in ("none", "same-origin"):
        return False
    return not (method in _SAFE_METHODS and path in _PAGES and headers.get("sec-fetch-mode") == "navigate")


def is_page(path: str) -> bool:
    """True for the page and its files, which a browser may keep but revalidates each time."""
    return path in _PAGES or path.startswith("/static/")


def is_forwarded(names: Iterable[str]) -> bool:
    """True if headers of these names, in lower case, came through a proxy: then loopback is not this machine."""
    return any(name in _PROXY_HEADERS or name.startswith("x-forwarded-") for name in names)


def is_json(content_type: str) -> bool:
    """True if a Content-Type is JSON in UTF-8, which no form of another site can send without a preflight."""
    kind, _, parameter = content_type.partition(";")
    charset = parameter.strip().lower().removeprefix("charset=").strip('"')
    return kind.strip().lower() == "application/json" and charset in ("", "utf-8")
