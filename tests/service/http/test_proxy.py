"""Behind a proxy: addresses and schemes come from a trusted one only, and a prefix changes nothing else."""

import json
import os
import re
import shutil
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from cluster.service.commands.serve import serve
from cluster.service.data.database import connect
from cluster.service.data.tokens import Tokens
from cluster.service.http.security import need_safe
from cluster.service.settings import Settings
from mint.client.http import Connection, parse_server
from mint.core.errors import MintError
from tests.service.http.test_server import serving
from tests.worlds.served import Served, served
from tools.house import ROOT

NGINX = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin") or ""
CADDY = shutil.which("caddy") or ""
PROXY = "127.0.0.1"  # the address of the test client


def _events(world: Served) -> list[tuple[str, str]]:
    lines = map(json.loads, (world.service.settings.data / "audit.log").read_text().splitlines())
    return [(line["event"], line["client"]) for line in lines]


def test_people_behind_a_trusted_proxy_have_their_own_addresses(tmp_path: Path) -> None:
    with served(tmp_path, trusted_proxies=(PROXY, "10.0.0.0/8"), requests_per_second=1.0) as world:
        ann = world.token("ann")
        stranger = {"X-Forwarded-For": "192.0.2.66, 10.1.1.1"}
        answers = [world.client.get("/v1/me", headers=stranger).status_code for _ in range(60)]
        assert answers[-1] == 429
        honest = {**ann, "X-Forwarded-For": "192.0.2.66, 198.51.100.7"}  # the first one is its own invention
        assert world.client.get("/v1/me", headers=honest).status_code == 200
        world.client.get("/v1/me", headers={"X-Forwarded-For": "198.51.100.8", "Authorization": "Bearer x"})
        assert _events(world) == [("token.refused", "198.51.100.8")]


def test_a_proxy_that_nobody_named_is_not_believed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with served(tmp_path) as world:
        world.token("ann")
        for address in ("192.0.2.1", "192.0.2.2"):
            world.client.get("/v1/me", headers={"X-Forwarded-For": address, "Authorization": "Bearer x"})
        assert _events(world) == [("token.refused", PROXY)] * 2
    assert capfd.readouterr().err.count("--trusted-proxy 127.0.0.1") == 1


def test_a_trusted_proxy_says_which_scheme_the_page_has(tmp_path: Path) -> None:
    page = {"Origin": "https://127.0.0.1:8420"}
    with served(tmp_path, trusted_proxies=(PROXY,)) as world:
        ann = world.token("ann")
        assert world.client.get("/v1/me", headers={**ann, **page}).status_code == 403
        assert world.client.get("/v1/me", headers={**ann, **page, "X-Forwarded-Proto": "https"}).status_code == 200
        plain = {"Origin": "http://127.0.0.1:8420", "X-Forwarded-Proto": "https"}
        assert world.client.get("/v1/me", headers={**ann, **plain}).status_code == 403


@pytest.mark.parametrize("prefix", ["", "/mint"])  # a proxy takes it off, or does not
def test_all_paths_may_have_a_prefix(tmp_path: Path, prefix: str) -> None:
    with served(tmp_path, root_path="/mint") as world:
        ann = world.token("ann")
        assert world.client.get(f"{prefix}/v1/me", headers=ann).json()["name"] == "ann"
        page = world.client.get(f"{prefix}/")
        assert "MINT" in page.text
        assert page.headers["cache-control"] == "no-cache"
        assert world.client.get(f"{prefix}/static/app.js").headers["cache-control"] == "no-cache"
        assert world.client.get(f"{prefix}/openapi.json").json()["servers"] == [{"url": "/mint"}]
        assert world.client.get(f"{prefix}/v1/nothing").status_code == 404
        artifact = world.store("model", "0" * 64, a_bin=b"bytes")
        ticket = world.client.post(
            f"{prefix}/v1/artifacts/{artifact.digest}/tickets", json={"name": "a.bin"}, headers=ann
        )
        assert world.client.get(prefix + ticket.json()["url"]).content == b"bytes"


def test_the_prefix_alone_leads_to_the_page(tmp_path: Path) -> None:
    with served(tmp_path, root_path="/mint") as world:
        answer = world.client.get("/mint", follow_redirects=False)
        assert (answer.status_code, answer.headers["location"]) == (307, "/mint/")
        assert world.client.get("/mintage").status_code == 404


def test_no_page_names_a_path_that_a_prefix_would_break() -> None:
    web = Path(__file__).parents[3] / "cluster" / "service" / "web"
    assert '="/' not in (web / "index.html").read_text()
    for script in web.glob("*.js"):
        assert "fetch(path" not in script.read_text()


def test_behind_a_proxy_nothing_is_open(tmp_path: Path) -> None:
    behind: list[dict[str, Any]] = [{"trusted_proxies": ("10.0.0.1/32",)}, {"root_path": "/mint"}]
    for options in behind:
        with pytest.raises(MintError, match="mint token create"):
            need_safe(Settings(tmp_path, **options), has_tokens=False)
        with served(tmp_path / "data", **options) as world:
            assert world.client.get("/v1/me").status_code == 401


@pytest.mark.parametrize(
    ("options", "needed"),
    [
        ({"trusted_proxies": ["lab"]}, "10.0.0.5"),
        ({"root_path": "mint"}, "/mint"),
        ({"root_path": "/a b"}, "/mint"),
        ({"log_level": "loud"}, "warning"),
        ({"log_format": "xml"}, "json"),
    ],
)
def test_a_wrong_option_names_what_is_needed(tmp_path: Path, options: dict[str, Any], needed: str) -> None:
    with pytest.raises(MintError, match=needed):
        serve(tmp_path, **options)


NGINX_CONFIG = """
daemon off; pid {folder}/pid; error_log stderr;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    server {{ listen unix:{folder}/nginx.sock; {locations} }}
}}
"""


@pytest.mark.skipif(not NGINX, reason="needs nginx")
def test_the_documented_nginx_passes_pages_tokens_and_addresses_on(tmp_path: Path) -> None:
    block = re.findall(r"```nginx\n(.*?)```", (ROOT / "docs" / "service.md").read_text(), re.DOTALL)[0]
    options = ("--slots", "0", "--trusted-proxy", "127.0.0.1", "--root-path", "/mint", "--name", "lab.example")
    with closing(connect(Settings(tmp_path).database_url)) as database:
        token = Tokens(database).create("ann", ["read"])
    with serving(tmp_path, *options) as server:
        locations = block.replace("8420", str(server.port))
        assert locations != block
        (tmp_path / "nginx.conf").write_text(NGINX_CONFIG.format(folder=tmp_path, locations=locations))
        command = [NGINX, "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf")]
        with subprocess.Popen(command) as nginx, through(tmp_path / "nginx.sock") as client:
            try:
                assert "MINT" in client.get("/mint").text  # redirected
                assert client.get("/mint/v1/me", headers={"Authorization": f"Bearer {token}"}).json()["name"] == "ann"
                guess = {"Authorization": "Bearer x", "X-Forwarded-For": "192.0.2.66"}
                assert client.get("/mint/v1/me", headers=guess).status_code == 401
            finally:
                nginx.terminate()
    line = json.loads((tmp_path / "audit.log").read_text().splitlines()[-1])
    assert line["client"] == "unix:"  # nginx's own word for its client, not what the client says


@pytest.mark.skipif(not CADDY, reason="needs caddy")
def test_the_documented_caddy_passes_pages_tokens_and_addresses_on(tmp_path: Path) -> None:
    block = re.findall(r"Caddy:\n\n```\n(.*?)```", (ROOT / "docs" / "service.md").read_text(), re.DOTALL)[0]
    options = ("--slots", "0", "--trusted-proxy", "127.0.0.1", "--root-path", "/mint", "--name", "lab.example")
    with closing(connect(Settings(tmp_path).database_url)) as database:
        token = Tokens(database).create("ann", ["read"])
    with serving(tmp_path, *options) as server:
        site = f"http://lab.example {{\n    bind unix/{tmp_path}/caddy.sock"
        sites = block.replace("lab.example {", site).replace("8420", str(server.port))
        (tmp_path / "Caddyfile").write_text("{\n    admin off\n    auto_https off\n}\n" + sites)
        command = [CADDY, "run", "--config", str(tmp_path / "Caddyfile"), "--adapter", "caddyfile"]
        with (
            subprocess.Popen(command, env={**os.environ, "HOME": str(tmp_path)}, stderr=subprocess.DEVNULL) as caddy,
            through(tmp_path / "caddy.sock") as client,
        ):
            try:
                assert "MINT" in client.get("/mint").text  # redirected
                assert client.get("/mint/v1/me", headers={"Authorization": f"Bearer {token}"}).json()["name"] == "ann"
                guess = {"Authorization": "Bearer x", "X-Forwarded-For": "192.0.2.66"}
                assert client.get("/mint/v1/me", headers=guess).status_code == 401
            finally:
                caddy.terminate()
    line = json.loads((tmp_path / "audit.log").read_text().splitlines()[-1])
    assert line["client"] != "192.0.2.66"


def through(socket: Path) -> httpx.Client:
    transport = httpx.HTTPTransport(uds=str(socket), retries=5)
    return httpx.Client(transport=transport, base_url="http://lab.example", follow_redirects=True)


def test_a_client_takes_the_prefix_with_the_address() -> None:
    assert parse_server("https://lab.example/mint/") == "https://lab.example:443/mint"
    assert parse_server("lab") == "http://lab:8420"
    with Connection("https://lab.example/mint") as connection:
        assert str(connection.url) == "https://lab.example:443/mint"
