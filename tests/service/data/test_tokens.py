"""Tokens: shown once, stored as digests, compared in constant time, invalid once revoked."""

import hashlib
import hmac
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from cluster.service.data.database import Database, connect
from cluster.service.data.records import Quota
from cluster.service.data.tables import metadata, tokens
from cluster.service.data.tokens import PREFIX, Tokens
from cluster.service.errors import NotFoundError
from cluster.service.queue.queue import Queue
from cluster.service.settings import file_url
from mint.core.errors import MintError
from tests.worlds.service_world import Clock, model_request, submit


@pytest.fixture
def access(database: Database) -> Tokens:
    return Tokens(database, Clock())


def test_a_token_gives_its_person_scopes_and_quota(access: Tokens) -> None:
    text = access.create("ann", ["submit", "read"], Quota(active=1, nbytes=10**12))
    person = access.verify(text)
    assert person is not None
    assert (person.name, person.scopes, person.quota) == ("ann", ("read", "submit"), Quota(active=1, nbytes=10**12))
    assert (person.may("submit"), person.may("admin")) == (True, False)


def test_a_token_has_32_random_bytes_and_no_two_are_alike(access: Tokens) -> None:
    texts = {access.create(f"person{n}", ["read"]) for n in range(20)}
    assert len(texts) == 20
    assert all(text.startswith(PREFIX) and len(text) == len(PREFIX) + 43 for text in texts)


def test_only_the_token_itself_is_accepted(access: Tokens) -> None:
    text = access.create("ann", ["admin"])
    access.create("bob", ["read"])
    digest = hashlib.sha256(text.encode()).hexdigest()
    near = [text[:-1], text + "A", text[:-1] + ("A" if text[-1] != "A" else "B"), text.upper(), f" {text}", text + "\n"]
    for wrong in ("", "mint_", digest, *near, "\udc80", "ü" * 48, "\0", "x" * 100_000):
        assert access.verify(wrong) is None


def test_a_token_is_stored_as_its_digest_only(tmp_path: Path, access: Tokens, database: Database) -> None:
    text = access.create("ann", ["read"])
    with database.read() as connection:
        rows = repr([connection.execute(select(table)).all() for table in metadata.sorted_tables])
    assert hashlib.sha256(text.encode()).hexdigest() in rows
    assert text not in rows
    assert text.removeprefix(PREFIX) not in rows

    file = connect(file_url(tmp_path / "service.db"))
    secret = Tokens(file).create("ann", ["read"]).removeprefix(PREFIX).encode()
    assert [path.name for path in tmp_path.iterdir() if secret in path.read_bytes()] == []
    file.close()


def test_every_digest_is_compared_in_constant_time(access: Tokens, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [access.create(f"person{n}", ["read"]) for n in range(5)]
    compare, compared = hmac.compare_digest, list[tuple[Any, Any]]()

    def watched(a: Any, b: Any) -> bool:
        compared.append((a, b))
        return compare(a, b)

    monkeypatch.setattr("hmac.compare_digest", watched)
    for text in (texts[0], texts[4], "mint_wrong"):
        compared.clear()
        access.verify(text)
        assert len(compared) == 5  # wherever the right one is, and if there is none


def test_a_revoked_token_is_worthless_and_its_name_is_free_again(access: Tokens) -> None:
    text = access.create("ann", ["read"])
    access.revoke("ann")
    assert access.verify(text) is None
    assert not access.valid_digests()
    again = access.create("ann", ["submit"])
    assert access.verify(text) is None
    assert access.verify(again) is not None


def test_who_has_jobs_can_lose_the_token_and_keeps_the_jobs(access: Tokens, database: Database) -> None:
    ann = access.verify(access.create("ann", ["submit"]))
    assert ann is not None
    job, _ = submit(Queue(database), model_request(), ann)
    access.revoke("ann")
    assert Queue(database).get(job.id).owner == "ann"


def test_one_has_one_token(access: Tokens) -> None:
    text = access.create("ann", ["read"])
    with pytest.raises(MintError, match="mint token revoke ann"):
        access.create("ann", ["admin"])
    person = access.verify(text)
    assert person is not None
    assert person.scopes == ("read",)


def test_those_who_have_tokens_are_listed_without_them(access: Tokens) -> None:
    assert (access.list(), access.valid_digests()) == ([], frozenset())
    texts = [access.create("bob", ["admin"], Quota(queued=3)), access.create("ann", ["read"])]
    assert [(grant.person.name, grant.person.scopes, grant.created_at) for grant in access.list()] == [
        ("ann", ("read",), Clock().now),
        ("bob", ("admin",), Clock().now),
    ]
    assert access.list()[1].person.quota == Quota(queued=3)
    assert access.valid_digests()
    assert not any(text in repr(access.list()) for text in texts)


@pytest.mark.parametrize("name", ["", " ", "a b", "a\nb", "../x", "-x", "ü", "a" * 65, "x\0"])
def test_a_name_that_could_be_mistaken_is_refused(access: Tokens, name: str) -> None:
    with pytest.raises(MintError, match="is no name"):
        access.create(name, ["read"])


@pytest.mark.parametrize("scopes", [[], ["write"], ["read", ""], ["read,admin"]])
def test_an_unknown_scope_is_refused(access: Tokens, scopes: list[str]) -> None:
    with pytest.raises(MintError, match="needed: one or more of read, submit, admin"):
        access.create("ann", scopes)
    assert not access.valid_digests()


def test_a_missing_token_cannot_be_revoked(access: Tokens, database: Database) -> None:
    with pytest.raises(NotFoundError, match="mint token list"):
        access.revoke("eve")
    with database.read() as connection:
        assert connection.execute(select(tokens)).all() == []


def test_a_token_expires_and_a_new_one_can_be_made(database: Database) -> None:
    clock = Clock()
    access = Tokens(database, clock)
    text = access.create("ann", ["read"], seconds=60.0)
    assert access.verify(text) and access.valid_digests()
    clock.now += 60.0
    assert access.verify(text) is None and not access.valid_digests()
    assert access.create("ann", ["read"])


def test_a_rotated_token_has_the_same_rights_and_the_one_before_ends_after_its_grace(database: Database) -> None:
    clock = Clock()
    access = Tokens(database, clock)
    first = access.create("ann", ["submit"], Quota(active=2))
    second = access.rotate("ann", grace_seconds=60.0)
    assert access.verify(first) == access.verify(second)
    assert len(access.valid_digests()) == 2
    clock.now += 60.0
    assert access.verify(first) is None and access.verify(second)
    third = access.rotate("ann", grace_seconds=60.0)
    access.revoke("ann")
    assert access.verify(second) is None and access.verify(third) is None and not access.valid_digests()
    with pytest.raises(NotFoundError, match="no valid token"):
        access.rotate("ann")


def test_the_last_use_of_a_token_is_saved_to_the_minute(database: Database) -> None:
    clock = Clock()
    access = Tokens(database, clock)
    text = access.create("ann", ["read"])
    assert access.list()[0].used_at is None
    began = clock.now
    for seconds in (0.0, 30.0, 29.0):
        clock.now += seconds
        access.verify(text)
    assert access.list()[0].used_at == began
    clock.now += 1.0
    access.verify(text)
    assert access.list()[0].used_at == began + 60.0
