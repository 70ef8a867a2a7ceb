"""The name of a signed-in person in a header of a trusted proxy, which did the sign-in (OpenID Connect).

The header is believed from the proxy alone: from any other address it is removed before anybody reads it. The proxy
must set it on every request, so that no client can.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_network

from starlette.types import ASGIApp, Receive, Scope, Send


@dataclass
class UserHeader:
    """Removes `header` from requests that come from none of the `proxies`; looks at the address of the connection."""

    app: ASGIApp
    header: str
    proxies: Sequence[str]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self._is_proxy(scope):
            name = self.header.lower().encode()
            scope = {**scope, "headers": [(key, value) for key, value in scope["headers"] if key.lower() != name]}
        await self.app(scope, receive, send)

    def _is_proxy(self, scope: Scope) -> bool:
        client = scope.get("client")
        try:
            address = ip_address(client[0] if client else "")
        except ValueError:
            return False
        return any(address in ip_network(proxy) for proxy in self.proxies)
