"""People who sign in at a proxy: its header is believed from the proxy alone, here through a real nginx."""

import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from cluster.service.commands.serve import serve
from cluster.service.data.database import connect
from cluster.service.data.tokens import Tokens
from cluster.service.settings import Settings
from mint.core.errors import MintError
from tests.service.http.test_proxy import NGINX, NGINX_CONFIG, through
from tests.service.http.test_server import serving
from tests.worlds.served import served
from tools.house import ROOT

HEADER = "X-Auth-Request-User"


def test_the_header_is_believed_from_the_proxy_alone(tmp_path: Path) -> None:
    with served(tmp_path, trusted_proxies=("10.0.0.0/8",), user_header=HEADER) as world:
        world.service.tokens.create("root", ["admin"])
        assert world.client.get("/v1/me", headers={HEADER: "root"}).status_code == 401


@pytest.mark.parametrize("options", [{"user_header": HEADER}, {"user_header": "a b", "trusted_proxies": ["127.0.0.1"]}])
def test_a_header_needs_a_trusted_proxy(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(MintError, match="--trusted-proxy"):
        serve(tmp_path, **options)


def test_a_person_who_signed_in_reads_and_submits_and_has_the_scopes_of_a_token(tmp_path: Path) -> None:
    with closing(connect(Settings(tmp_path).database_url)) as database:
        tokens = Tokens(database)
        tokens.create("root", ["admin"], groups=["vision"])
        tokens.create("eve", ["read"])
        tokens.revoke("eve")
        root, ada = tokens.signed_in("root"), tokens.signed_in("ada@lab.example")
        assert root and (root.scopes, root.groups) == (("admin",), ("vision",))
        assert ada and ada.scopes == ("read", "submit")
        assert [tokens.signed_in(name) for name in ("eve", "local", "", "a b", "x" * 65, "-a")] == [None] * 6


class _SignIn(BaseHTTPRequestHandler):
    """The answers of oauth2-proxy: the cookie is the name."""

    def do_GET(self) -> None:
        person = self.headers.get("Cookie", "").removeprefix("person=")
        self.send_response(
            202 if person and self.path == "/oauth2/auth" else 401 if self.path == "/oauth2/auth" else 200
        )
        if person:
            self.send_header("X-Auth-Request-Preferred-Username", person)
        text = b"sign in first"
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextmanager
def _sign_in() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _SignIn)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.skipif(not NGINX, reason="needs nginx")
def test_the_documented_nginx_signs_people_in_and_lets_tokensthrough(tmp_path: Path) -> None:
    with closing(connect(Settings(tmp_path).database_url)) as database:
        token = Tokens(database).create("ann", ["read"])
        Tokens(database).create("root", ["admin"])
    options = ("--slots", "0", "--trusted-proxy", "127.0.0.1", "--user-header", HEADER, "--name", "lab.example")
    config = (ROOT / "deploy" / "nginx-oidc.conf").read_text()
    with serving(tmp_path, *options) as server, _sign_in() as port:
        locations = config.replace("8420", str(server.port)).replace("4180", str(port))
        (tmp_path / "nginx.conf").write_text(NGINX_CONFIG.format(folder=tmp_path, locations=locations))
        command = [NGINX, "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf")]
        with subprocess.Popen(command) as nginx, through(tmp_path / "nginx.sock") as client:
            try:
                assert "sign in first" in client.get("/").text
                assert "sign in first" in client.get("/v1/me", headers={HEADER: "root"}).text
                ada = {"Cookie": "person=ada"}
                assert client.get("/v1/me", headers=ada).json()["name"] == "ada"
                assert client.get("/v1/me", headers={**ada, HEADER: "root"}).json()["name"] == "ada"
                program = {"Authorization": f"Bearer {token}", HEADER: "root"}
                assert client.get("/v1/me", headers=program).json()["name"] == "ann"
                wrong = client.get("/v1/me", headers={"Authorization": "Bearer x", HEADER: "root"})
                assert wrong.status_code == 401
                foreign = {**ada, "Origin": "https://evil.example", "Content-Type": "application/json"}
                assert client.post("/v1/jobs", headers=foreign, content="{}").status_code == 403
            finally:
                nginx.terminate()
