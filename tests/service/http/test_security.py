"""Access to the service: each known attack is refused, and no log holds a secret."""

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.service.http.audit import Audit
from cluster.service.http.error_answers import ApiError
from cluster.service.http.grants import TICKET_SECONDS, Tickets
from cluster.service.http.middleware import MAX_BODY_BYTES, Guard
from cluster.service.http.rate_limit import TokenBucket
from cluster.service.http.security import HEADERS, is_foreign, is_json, is_own_host, need_safe, own_names
from cluster.service.settings import Settings
from mint.core.errors import MintError
from tests.worlds.served import Served, served

JSON = {"content-type": "application/json"}


class Clock:
    """A time that passes only when it is told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def world(tmp_path: Path, llama: Path) -> Iterator[Served]:
    with served(tmp_path / "data", roots=(llama.parent,)) as world:
        yield world


def _code(response: Any) -> str:
    code: str = response.json()["error"]["code"]
    return code


# tokens


def test_without_any_token_everybody_on_this_machine_may_all_and_with_one_nobody_else(world: Served) -> None:
    assert world.client.get("/v1/jobs").status_code == 200
    ann = world.token("ann")
    refused = world.client.get("/v1/jobs")
    assert refused.status_code == 401
    assert refused.headers["www-authenticate"] == "Bearer"
    assert world.client.get("/v1/jobs", headers=ann).status_code == 200


def test_a_request_that_a_proxy_passed_on_is_not_from_this_machine(world: Served) -> None:
    for header in ("X-Forwarded-For", "Forwarded", "X-Forwarded-Host", "Via", "X-Real-IP"):
        assert world.client.get("/v1/jobs", headers={header: "for=127.0.0.1"}).status_code == 401


def test_a_wrong_or_revoked_token_is_nobodys_and_it_stands_in_the_header_only(world: Served) -> None:
    ann = world.token("ann")
    text = ann["Authorization"].removeprefix("Bearer ")
    for header in ("Bearer", "Bearer ", f"Basic {text}", text, f"Bearer {text}x", f"Bearer {text[:-1]}", "Bearer \xe4"):
        answer = world.client.get("/v1/jobs", headers={b"Authorization": header.encode("latin-1")})
        assert answer.status_code == 401, header
    assert world.client.get("/v1/jobs", params={"token": text, "access_token": text}).status_code == 401
    assert world.client.get("/v1/jobs", headers={"Authorization": f"bearer {text}"}).status_code == 200
    world.service.tokens.revoke("ann")
    world.token("bob")
    assert world.client.get("/v1/jobs", headers=ann).status_code == 401


@pytest.mark.parametrize(
    ("scope", "method", "path", "status"),
    [
        ("read", "GET", "/v1/jobs", 200),
        ("read", "GET", "/metrics", 200),
        ("read", "POST", "/v1/jobs", 403),
        ("read", "DELETE", "/v1/jobs/0000000000000000", 403),
        ("submit", "DELETE", "/v1/jobs/0000000000000000", 404),
        ("submit", "GET", "/v1/jobs", 200),
        ("admin", "GET", "/v1/jobs", 200),
    ],
)
def test_a_token_allows_what_its_scope_says(world: Served, scope: str, method: str, path: str, status: int) -> None:
    headers = world.token("ann", scope)
    body = {"json": {"model": "llama"}} if method == "POST" else {}
    assert world.client.request(method, path, headers=headers, **body).status_code == status  # type: ignore[arg-type]


def test_nothing_but_the_page_and_its_health_is_answered_to_strangers(world: Served) -> None:
    world.token("ann")
    for path, operations in world.client.get("/openapi.json").json()["paths"].items():
        for method in operations:
            if path not in ("/healthz", "/readyz"):
                exact = path.format(id="0" * 16, digest="0" * 64, identity="0" * 64, name="a")
                answer = world.client.request(method, exact, headers=JSON, content=b"{}")
                assert answer.status_code == 401, (method, path)


# where it may listen


@pytest.mark.parametrize(
    ("more", "has_tokens", "cure"),
    [
        ({"host": "0.0.0.0"}, False, "mint token create"),
        ({"host": "10.0.0.1", "insecure": True}, False, "mint token create"),
        ({"host": "::"}, True, "--tls-cert"),
        ({"host": "lab.example"}, True, "--tls-cert"),
        ({"tls_cert": Path("c")}, True, "both"),
        ({"tls_key": Path("k")}, False, "both"),
    ],
)
def test_an_address_that_lets_strangers_in_is_refused_with_the_cure(
    more: dict[str, Any], has_tokens: bool, cure: str
) -> None:
    with pytest.raises(MintError, match=cure):
        need_safe(Settings(Path("d"), **more), has_tokens=has_tokens)


def test_loopback_needs_nothing_and_the_network_needs_tokens_with_tls_or_the_users_word() -> None:
    for host in ("127.0.0.1", "::1", "localhost", "127.8.8.8"):
        need_safe(Settings(Path("d"), host=host), has_tokens=False)
    need_safe(Settings(Path("d"), host="0.0.0.0", insecure=True), has_tokens=True)
    need_safe(Settings(Path("d"), host="0.0.0.0", tls_cert=Path("c"), tls_key=Path("k")), has_tokens=True)


# other sites


def test_a_name_that_was_pointed_here_is_not_ours(world: Served) -> None:
    for host in ("evil.example", "evil.example:8420", "127.0.0.1.evil.example", "localhost.evil.example", "", "[::1"):
        answer = world.client.get("/v1/jobs", headers={"host": host})
        assert (answer.status_code, _code(answer)) == (400, "bad_host"), host
    for host in ("127.0.0.1:8420", "localhost", "LOCALHOST:1", "[::1]:8420", "10.1.2.3", "localhost."):
        assert world.client.get("/v1/jobs", headers={"host": host}).status_code == 200, host
    named = own_names(Settings(Path("d"), names=("Mint.Lab",)))
    assert is_own_host("mint.lab:443", named)
    assert not is_own_host("lab", named)


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:9999"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"},
    ],
)
def test_a_page_of_another_site_is_refused(world: Served, headers: dict[str, str]) -> None:
    for method, path in (("GET", "/v1/jobs"), ("POST", "/v1/jobs"), ("DELETE", "/v1/jobs/0000000000000000")):
        answer = world.client.request(method, path, headers={**headers, **JSON})
        assert (answer.status_code, _code(answer)) == (403, "cross_site")
    own = {"origin": "http://127.0.0.1:8420", "sec-fetch-site": "same-origin"}
    assert world.client.get("/v1/jobs", headers=own).status_code == 200


def test_a_link_to_the_page_itself_may_stand_anywhere() -> None:
    link = {"host": "a", "sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    assert not is_foreign("GET", "/", link, "http")
    assert is_foreign("POST", "/", link, "http")
    assert is_foreign("GET", "/v1/jobs", link, "http")


@pytest.mark.parametrize(
    ("origin", "site", "scheme", "foreign"),
    [
        ("http://a", "none", "https", True),  # a page that somebody on the way could have written
        ("https://a", "none", "http", True),
        ("https://a", "none", "https", False),
        ("HTTPS://A", "none", "https", False),
        ("https://a", "same-origin", "http", False),  # behind a proxy that hides the scheme
        ("https://b", "same-origin", "https", True),
    ],
)
def test_a_page_of_another_scheme_is_another_site(origin: str, site: str, scheme: str, *, foreign: bool) -> None:
    headers = {"host": "a", "origin": origin, "sec-fetch-site": site}
    assert is_foreign("POST", "/v1/jobs", headers, scheme) is foreign


def test_no_answer_lets_another_site_read_it_or_frame_it(world: Served) -> None:
    world.token("ann")
    seen = set()
    for method, path, headers in (
        ("GET", "/healthz", {}), ("GET", "/v1/jobs", {}), ("GET", "/nothing", {}), ("PUT", "/v1/jobs", {}),
        ("GET", "/", {}), ("POST", "/v1/jobs", {}), ("GET", "/", {"host": "evil.example"}), ("OPTIONS", "/v1/jobs", {}),
    ):  # fmt: skip
        answer = world.client.request(method, path, headers=headers)
        seen.add(answer.status_code)
        for name, value in HEADERS.items():
            assert answer.headers[name] == value, (method, path)
        assert not any(name.startswith("access-control") for name in answer.headers)
        assert "unsafe" not in answer.headers["content-security-policy"]
    assert {200, 400, 401, 404, 405, 415} <= seen | {200}


# bodies


@pytest.mark.parametrize(
    ("content_type", "ok"),
    [
        ("application/json", True),
        ("application/json; charset=utf-8", True),
        ('Application/JSON;charset="UTF-8"', True),
        ("text/plain", False),
        ("application/x-www-form-urlencoded", False),
        ("multipart/form-data; boundary=x", False),
        ("application/json; charset=utf-16", False),
        ("", False),
    ],
)
def test_a_post_is_json_which_no_form_can_send(world: Served, content_type: str, ok: bool) -> None:
    assert is_json(content_type) is ok
    headers = {"content-type": content_type}
    answer = world.client.post("/v1/jobs", content=b'{"model": "llama"}', headers=headers)
    assert answer.status_code == (201 if ok else 415)


def test_a_huge_body_is_refused_whether_its_length_is_told_or_not(world: Served) -> None:
    huge = b" " * (MAX_BODY_BYTES + 1)
    announced = world.client.post("/v1/jobs", content=huge, headers=JSON)
    assert (announced.status_code, _code(announced)) == (413, "too_large")
    pieces = world.client.post("/v1/jobs", content=iter([huge[:1000]] * 70), headers=JSON)
    assert (pieces.status_code, _code(pieces)) == (413, "too_large")
    lied = world.client.post("/v1/jobs", content=b"{}", headers={**JSON, "content-length": str(10**12)})
    assert (lied.status_code, _code(lied)) == (413, "too_large")
    deep = b"[" * 60_000
    assert world.client.post("/v1/jobs", content=deep, headers=JSON).status_code == 400
    assert world.client.post("/v1/jobs", content=huge[:-20] + b'{"model": "llama"}', headers=JSON).status_code == 201


def _ask(guard: Guard, messages: list[dict[str, Any]], **scope: Any) -> tuple[int, dict[str, Any]]:
    """Status and body of what a guard answers to a request whose messages come one after another, and then none."""
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop(0)
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Any) -> None:
        sent.append(message)

    base = {"type": "http", "method": "POST", "path": "/", "headers": [], "client": ("10.0.0.1", 1)}
    asyncio.run(guard(base | scope, receive, send))
    return sent[0]["status"], json.loads(b"".join(message.get("body", b"") for message in sent))


def test_a_body_that_never_ends_runs_into_a_deadline() -> None:
    async def never(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("the request was let through")

    guard = Guard(never, names=frozenset(), rates=TokenBucket(10, 10), on_answered=lambda *_: None, body_seconds=0.01)
    headers = [(b"host", b"127.0.0.1"), (b"content-type", b"application/json"), (b"content-length", b"10")]
    status, body = _ask(guard, [{"type": "http.request", "body": b"{", "more_body": True}], headers=headers)
    assert (status, body["error"]["code"]) == (408, "too_slow")
    status, body = _ask(guard, [{"type": "http.disconnect"}], headers=headers)
    assert status == 400


# rates


def test_a_bucket_gives_its_burst_then_its_rate_and_says_how_long_to_wait() -> None:
    clock = Clock()
    rates = TokenBucket(2.0, 5.0, clock=clock)
    assert [rates.take("ann") for _ in range(5)] == [0.0] * 5
    assert rates.take("ann") == pytest.approx(0.5)
    assert rates.take("bob") == 0.0
    clock.now += 0.5
    assert rates.take("ann") == 0.0
    assert rates.take("ann") > 0
    clock.now += 1000
    assert [rates.take("ann") for _ in range(6)][-1] > 0  # it holds no more than its burst


def test_a_bucket_never_lets_more_through_than_its_burst_and_its_rate() -> None:
    clock = Clock()
    rates = TokenBucket(3.0, 4.0, clock=clock)
    let = 0
    for _ in range(500):
        let += rates.take("ann") == 0.0
        clock.now += 0.01
    assert 4 + 3 * 5 - 1 <= let <= 4 + 3 * 5


def test_too_many_requests_are_told_when_to_come_back(tmp_path: Path, llama: Path) -> None:
    with served(tmp_path / "data", roots=(llama.parent,), requests_per_second=1.0) as world:
        ann, bob = world.token("ann"), world.token("bob")
        answers = [world.client.get("/v1/me", headers=ann) for _ in range(8)]
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert _code(refused) == "too_many"
        assert int(refused.headers["retry-after"]) >= 1
        assert world.client.get("/v1/me", headers=bob).status_code == 200  # another person has another bucket


def test_guessing_tokens_costs_more_than_asking(tmp_path: Path, llama: Path) -> None:
    with served(tmp_path / "data", roots=(llama.parent,), requests_per_second=1.0) as world:
        world.token("ann")
        guesses = [world.client.get("/v1/me", headers={"Authorization": f"Bearer {n}"}).status_code for n in range(8)]
        assert guesses[:2] == [401, 401]
        assert guesses[-1] == 429


def test_wrong_tokens_lock_out_nobody_else_at_their_address(tmp_path: Path, llama: Path) -> None:
    with served(tmp_path / "data", roots=(llama.parent,), requests_per_second=2.0) as world:
        ann = world.token("ann")
        guesses = [world.client.get("/v1/me", headers={"Authorization": f"Bearer {n}"}).status_code for n in range(60)]
        assert guesses[-1] == 429
        assert world.client.get("/v1/me", headers=ann).status_code == 200


# tickets


def test_a_ticket_opens_one_file_once_within_a_minute() -> None:
    clock = Clock()
    tickets = Tickets(clock=clock)
    text = tickets.give("ann", "digest", "a")
    used = tickets.use(text, "digest", "a")
    assert used is not None
    assert used.person == "ann"
    assert tickets.use(text, "digest", "a") is None
    for artifact, name in (("other", "a"), ("digest", "b")):
        text = tickets.give("ann", "digest", "a")
        assert tickets.use(text, artifact, name) is None
        assert tickets.use(text, "digest", "a") is None  # trying another file uses it up
    text = tickets.give("ann", "digest", "a")
    clock.now += TICKET_SECONDS
    assert tickets.use(text, "digest", "a") is None
    assert tickets.use("", "digest", "a") is None


def test_a_browser_downloads_by_a_ticket_and_by_nothing_else(world: Served) -> None:
    artifact = world.store("model", "0" * 64, a_bin=b"bytes", b_bin=b"others")
    ann = world.token("ann", "read")
    path = f"/v1/artifacts/{artifact.digest}/tickets"
    assert world.client.post(path, json={"name": "a.bin"}).status_code == 401
    assert world.client.post(path, json={"name": "nothing"}, headers=ann).status_code == 404
    url = world.client.post(path, json={"name": "a.bin"}, headers=ann).json()["url"]
    assert url.startswith(f"/v1/artifacts/{artifact.digest}/files/a.bin?ticket=")
    assert world.client.get(url).content == b"bytes"
    assert world.client.get(url).status_code == 401
    other = world.client.post(path, json={"name": "a.bin"}, headers=ann).json()["url"].replace("a.bin", "b.bin")
    assert world.client.get(other).status_code == 401
    assert world.client.get(url.partition("?")[0]).status_code == 401


# logs


def test_the_audit_log_tells_who_did_what_and_no_secret(
    world: Served, llama: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from mint.core.log import configure_logging

    configure_logging(level="debug")
    try:
        artifact = world.store("model", "0" * 64, a_bin=b"bytes")
        ann = world.token("ann")
        world.submit("llama", "1GB", headers=ann)
        url = world.client.post(f"/v1/artifacts/{artifact.digest}/tickets", json={"name": "a.bin"}, headers=ann)
        world.client.get(url.json()["url"])
        world.client.get("/v1/jobs", headers={"Authorization": "Bearer mint_guessed"})
        eve = world.token("eve", "read")
        world.client.post("/v1/jobs", json={"model": "llama"}, headers=eve)
    finally:
        configure_logging(level="warning")
    path = world.service.settings.data / "audit.log"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["event"], line["person"]) for line in lines] == [
        ("job.submitted", "ann"), ("ticket.given", "ann"), ("file.sent", "ann"), ("token.refused", ""),
        ("scope.refused", "eve"),
    ]  # fmt: skip
    assert all(line["client"] == "127.0.0.1" and line["timestamp"] for line in lines)
    assert path.stat().st_mode & 0o777 == 0o600
    written = path.read_text() + capfd.readouterr().err
    assert "request.answered" in written
    secrets = [ann["Authorization"][7:], eve["Authorization"][7:], url.json()["url"].partition("ticket=")[2], "guessed"]
    assert not [secret for secret in secrets if secret in written]


def test_a_refusal_has_a_code_for_every_status_it_is_made_with() -> None:
    assert ApiError(429, "later").record == {"error": {"code": "too_many", "message": "later"}}


def test_who_may_ask_is_decided_by_where_the_service_listens_not_by_who_says_so(tmp_path: Path, llama: Path) -> None:
    with served(tmp_path / "data", roots=(llama.parent,), host="0.0.0.0", insecure=True) as world:
        assert world.client.get("/v1/jobs").status_code == 401  # the last token was revoked: nobody, not everybody
        assert replace(world.service.settings, host="127.0.0.1").is_local


def test_the_audit_log_is_rotated_and_five_files_are_kept(tmp_path: Path) -> None:
    audit = Audit(tmp_path / "audit.log", most_bytes=100)
    for number in range(12):
        audit.note(f"event.{number}", person="ann", client="here")
    files = [tmp_path / "audit.log", *(tmp_path / f"audit.log.{number}" for number in range(1, 5))]
    assert sorted(tmp_path.iterdir()) == files
    events = [json.loads(line)["event"] for file in files for line in file.read_text().splitlines()]
    assert events == [f"event.{number}" for number in range(11, 6, -1)]
    assert all(file.stat().st_mode & 0o077 == 0 for file in files)
