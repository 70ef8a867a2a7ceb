"""Tokens: shown once, kept as digests, compared in constant time, worthless once revoked."""

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
from tests.worlds.service_world import Clock, wish


@pytest.fixture
def given(database: Database) -> Tokens:
    return Tokens(database, Clock())


def test_a_token_names_who_has_it_and_what_they_may(given: Tokens) -> None:
    text = given.create("ann", ["submit", "read"], Quota(active=1, nbytes=10**12))
    person = given.verify(text)
    assert person is not None
    assert (person.name, person.scopes, person.quota) == ("ann", ("read", "submit"), Quota(active=1, nbytes=10**12))
    assert (person.may("submit"), person.may("admin")) == (True, False)


def test_a_token_has_32_random_bytes_and_no_two_are_alike(given: Tokens) -> None:
    texts = {given.create(f"person{n}", ["read"]) for n in range(20)}
    assert len(texts) == 20
    assert all(text.startswith(PREFIX) and len(text) == len(PREFIX) + 43 for text in texts)


def test_nothing_but_the_token_itself_is_let_in(given: Tokens) -> None:
    text = given.create("ann", ["admin"])
    given.create("bob", ["read"])
    digest = hashlib.sha256(text.encode()).hexdigest()
    near = [text[:-1], text + "A", text[:-1] + ("A" if text[-1] != "A" else "B"), text.upper(), f" {text}", text + "\n"]
    for wrong in ("", "mint_", digest, *near, "\udc80", "ü" * 48, "\0", "x" * 100_000):
        assert given.verify(wrong) is None


def test_a_token_is_kept_as_its_digest_only(tmp_path: Path, given: Tokens, database: Database) -> None:
    text = given.create("ann", ["read"])
    with database.read() as connection:
        kept = repr([connection.execute(select(table)).all() for table in metadata.sorted_tables])
    assert hashlib.sha256(text.encode()).hexdigest() in kept
    assert text not in kept
    assert text.removeprefix(PREFIX) not in kept

    file = connect(file_url(tmp_path / "service.db"))
    secret = Tokens(file).create("ann", ["read"]).removeprefix(PREFIX).encode()
    assert [path.name for path in tmp_path.iterdir() if secret in path.read_bytes()] == []
    file.close()


def test_every_digest_is_compared_in_constant_time(given: Tokens, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [given.create(f"person{n}", ["read"]) for n in range(5)]
    compare, compared = hmac.compare_digest, list[tuple[Any, Any]]()

    def watched(a: Any, b: Any) -> bool:
        compared.append((a, b))
        return compare(a, b)

    monkeypatch.setattr("hmac.compare_digest", watched)
    for text in (texts[0], texts[4], "mint_wrong"):
        compared.clear()
        given.verify(text)
        assert len(compared) == 5  # wherever the right one is, and if there is none


def test_a_revoked_token_is_worthless_and_its_name_is_free_again(given: Tokens) -> None:
    text = given.create("ann", ["read"])
    given.revoke("ann")
    assert given.verify(text) is None
    assert not given.any()
    again = given.create("ann", ["submit"])
    assert given.verify(text) is None
    assert given.verify(again) is not None


def test_who_has_jobs_can_lose_the_token_and_keeps_the_jobs(given: Tokens, database: Database) -> None:
    ann = given.verify(given.create("ann", ["submit"]))
    assert ann is not None
    job, _ = Queue(database).submit(wish(), ann)
    given.revoke("ann")
    assert Queue(database).get(job.id).owner == "ann"


def test_one_has_one_token(given: Tokens) -> None:
    text = given.create("ann", ["read"])
    with pytest.raises(MintError, match="mint token revoke ann"):
        given.create("ann", ["admin"])
    person = given.verify(text)
    assert person is not None
    assert person.scopes == ("read",)


def test_those_who_have_tokens_are_listed_without_them(given: Tokens) -> None:
    assert (given.list(), given.any()) == ([], False)
    texts = [given.create("bob", ["admin"], Quota(queued=3)), given.create("ann", ["read"])]
    assert [(grant.person.name, grant.person.scopes, grant.created_at) for grant in given.list()] == [
        ("ann", ("read",), Clock().now),
        ("bob", ("admin",), Clock().now),
    ]
    assert given.list()[1].person.quota == Quota(queued=3)
    assert given.any()
    assert not any(text in repr(given.list()) for text in texts)


@pytest.mark.parametrize("name", ["", " ", "a b", "a\nb", "../x", "-x", "ü", "a" * 65, "x\0"])
def test_a_name_that_could_be_mistaken_is_refused(given: Tokens, name: str) -> None:
    with pytest.raises(MintError, match="is no name"):
        given.create(name, ["read"])


@pytest.mark.parametrize("scopes", [[], ["write"], ["read", ""], ["read,admin"]])
def test_a_scope_that_is_none_is_refused(given: Tokens, scopes: list[str]) -> None:
    with pytest.raises(MintError, match="needed one or more of: read, submit, admin"):
        given.create("ann", scopes)
    assert not given.any()


def test_a_token_that_was_never_given_cannot_be_revoked(given: Tokens, database: Database) -> None:
    with pytest.raises(NotFoundError, match="mint token list"):
        given.revoke("eve")
    with database.read() as connection:
        assert connection.execute(select(tokens)).all() == []
