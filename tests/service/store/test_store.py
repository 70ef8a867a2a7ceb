"""Files in the store never change, held artifacts stay, and names resolve only to models below the roots."""

import hashlib
import json
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import select

from cluster.service.data.catalog import Catalog
from cluster.service.data.database import Database, connect
from cluster.service.data.records import Artifact
from cluster.service.data.tables import identities
from cluster.service.errors import NotFetchedError, NotFoundError
from cluster.service.store.model_roots import Roots
from cluster.service.store.store import ORPHAN_SECONDS, Store
from mint.core.errors import MintError
from mint.model.source import open_source


class Clock:
    """The time of this machine, plus an offset."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        import time

        return time.time() + self.ahead


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Database]:
    database = connect(f"sqlite:///{tmp_path / 'service.db'}")
    yield database
    database.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def catalog(here: Database, clock: Clock) -> Catalog:
    return Catalog(here, clock)


@pytest.fixture
def store(tmp_path: Path, catalog: Catalog, clock: Clock) -> Store:
    return Store(tmp_path / "store", catalog, clock=clock)


def _put(store: Store, folder: Path, **texts: str) -> Artifact:
    folder.mkdir(exist_ok=True)
    files = {name: folder / name for name in texts}
    for name, text in texts.items():
        files[name].write_text(text)
    artifact = store.put("model", "one", files)
    shutil.rmtree(folder)
    return artifact


def _stored(store: Store) -> set[str]:
    return {path.name for path in store.folder.rglob("*") if path.is_file()}


# the store


def test_a_file_is_stored_once_under_its_digest_for_all_artifacts(store: Store, tmp_path: Path) -> None:
    one = _put(store, tmp_path / "one", weights="w", shared="the same")
    two = _put(store, tmp_path / "two", weights="v", shared="the same")
    expected = {hashlib.sha256(text.encode()).hexdigest() for text in ("w", "v", "the same")}
    assert _stored(store) == expected
    assert {file.digest for file in (*one.files, *two.files)} == expected
    assert store.path(one.files[0].digest).read_bytes() == b"the same"


def test_putting_equal_files_gives_the_same_artifact(store: Store, tmp_path: Path) -> None:
    first, second = (_put(store, tmp_path / "one", weights="w") for _ in range(2))
    assert first == second
    assert len(store.catalog.find()) == 1


def test_eviction_removes_the_fewest_least_recently_used_artifacts(
    store: Store, catalog: Catalog, clock: Clock, tmp_path: Path
) -> None:
    store.max_bytes = 30
    made = []
    for name in "abc":
        clock.ahead += 1
        made.append(_put(store, tmp_path / "one", weights=name * 10))
    clock.ahead += 1
    catalog.hold(made[0].digest, "a download", 0)
    clock.ahead += 1
    last = _put(store, tmp_path / "one", weights="d" * 10)
    assert {artifact.digest for artifact in catalog.find()} == {made[0].digest, made[2].digest, last.digest}
    assert _stored(store) == {artifact.files[0].digest for artifact in (made[0], made[2], last)}


def test_a_held_artifact_is_never_evicted(store: Store, catalog: Catalog, clock: Clock, tmp_path: Path) -> None:
    downloaded = _put(store, tmp_path / "one", weights="a" * 10)
    other = _put(store, tmp_path / "one", weights="b" * 10)
    catalog.hold(downloaded.digest, "a download", 60)
    store.max_bytes = 5
    assert store.evict() == 1
    assert [artifact.digest for artifact in catalog.find()] == [downloaded.digest]
    assert other.files[0].digest not in _stored(store)
    catalog.drop("a download")
    assert store.evict() == 1
    assert not _stored(store)


def test_a_view_stays_whole_when_its_artifact_is_evicted(store: Store, tmp_path: Path) -> None:
    made = _put(store, tmp_path / "one", weights="a" * 10, config="{}")
    store.link_out(made, tmp_path / "view")
    store.max_bytes = 0
    assert store.evict() == 1
    assert (tmp_path / "view" / "weights").read_text() == "a" * 10
    with pytest.raises(NotFoundError):
        store.link_out(made, tmp_path / "another")
    assert not list(tmp_path.glob("another*"))


def test_old_files_without_an_artifact_are_swept(store: Store, clock: Clock, tmp_path: Path) -> None:
    made = _put(store, tmp_path / "one", weights="a")
    orphan = store.path("f" * 64)
    orphan.parent.mkdir()
    orphan.write_text("left by a killed process")
    assert store.sweep() == (0, 0)  # its row may still follow
    clock.ahead = ORPHAN_SECONDS + 1
    assert store.sweep() == (1, 0)
    assert _stored(store) == {made.files[0].digest}


def test_an_artifact_with_a_missing_file_is_removed(store: Store, catalog: Catalog, tmp_path: Path) -> None:
    broken = _put(store, tmp_path / "one", weights="a", shared="s")
    whole = _put(store, tmp_path / "one", weights="b", shared="s")
    store.path(hashlib.sha256(b"a").hexdigest()).unlink()
    assert store.sweep() == (0, 1)
    assert [artifact.digest for artifact in catalog.find()] == [whole.digest]
    assert _stored(store) == {file.digest for file in whole.files}
    assert broken.digest != whole.digest


def test_putting_a_file_again_repairs_a_stored_file_of_another_size(store: Store, tmp_path: Path) -> None:
    made = _put(store, tmp_path / "one", weights="whole")
    path = store.path(made.files[0].digest)
    path.write_text("cut")
    _put(store, tmp_path / "one", weights="whole")
    assert path.read_text() == "whole"


def test_the_shortage_counts_evictable_but_not_held_artifacts(store: Store, catalog: Catalog, tmp_path: Path) -> None:
    made = _put(store, tmp_path / "one", weights="a" * 10)
    store.max_bytes = 12
    assert store.free_bytes() == 2
    assert not store.shortage(12)
    assert store.shortage(13)
    catalog.hold(made.digest, "a job", 60)
    assert not store.shortage(2)
    assert "needs 3 B, 2 B free" in store.shortage(3)
    store.max_bytes = None
    assert "free" in store.shortage(shutil.disk_usage(tmp_path).total)


def test_with_many_threads_every_row_keeps_its_files(store: Store, catalog: Catalog, tmp_path: Path) -> None:
    store.max_bytes = 25
    broken: list[str] = []

    def work(name: str) -> None:
        for count in range(6):
            made = _put(store, tmp_path / name, weights=f"{name}{count % 2}" * 5, shared="s" * 5)
            store.evict()
            if any(not store.path(file.digest).exists() for file in made.files) and _known(catalog, made):
                broken.append(made.digest)

    threads = [threading.Thread(target=work, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rows = {file.digest for artifact in catalog.find() for file in artifact.files}
    assert rows == _stored(store)
    assert catalog.nbytes() <= 25 + 15  # the next put evicts the last ones


def _known(catalog: Catalog, artifact: Artifact) -> bool:
    return artifact.digest in {stored.digest for stored in catalog.find()}


@pytest.mark.parametrize("digest", ["", "..", "a" * 63, "A" * 64, "../" * 21 + "a", "a" * 64 + "\n"])
def test_a_bad_digest_has_no_path(store: Store, digest: str) -> None:
    with pytest.raises(MintError, match="no digest"):
        store.path(digest)


# the roots


@pytest.fixture
def roots(tmp_path: Path, llama: Path, catalog: Catalog) -> Roots:
    (tmp_path / "root" / "team").mkdir(parents=True)
    shutil.copytree(llama, tmp_path / "root" / "llama")
    shutil.copytree(llama, tmp_path / "root" / "team" / "lläma")
    shutil.copytree(llama, tmp_path / "outside")
    return Roots([tmp_path / "root"], catalog)


def test_models_are_found_by_their_paths_below_the_roots(roots: Roots, llama: Path) -> None:
    assert roots.names() == ["llama", "team/lläma"]
    for name in roots.names():
        assert roots.identify(name)[1] == open_source(llama).identity


@pytest.mark.parametrize(
    "name",
    [
        "", ".", "..", "../outside", "llama/../../outside", "llama/..", "./llama", "llama/", "team//lläma", "/etc",
        "llama\0", "\0", "llama\n", "..\\outside", "\\\\server\\share", "\udcff", "\ud800", "a" * 5000, "~/models",
        "team", "nothing", "%2e%2e/outside", "．．/outside", "llama/config.json", "C:/models",
        "../a.gguf", "llama/../a.gguf", "a\n.gguf", ".gguf",
    ],
)  # fmt: skip
def test_no_name_leads_out_of_the_roots(roots: Roots, name: str) -> None:
    with pytest.raises(MintError) as error:
        roots.identify(name)
    str(error.value).encode()  # it can be written into a database and an answer


def test_an_absolute_name_of_a_model_below_a_root_is_refused_too(roots: Roots, tmp_path: Path) -> None:
    with pytest.raises(MintError, match="no name of a model"):
        roots.identify(str(tmp_path / "root" / "llama"))


def test_a_link_out_of_the_roots_is_no_model(roots: Roots, tmp_path: Path) -> None:
    (tmp_path / "root" / "link").symlink_to(tmp_path / "outside")
    (tmp_path / "root" / "team" / "up").symlink_to("../..")
    assert roots.names() == ["llama", "team/lläma"]
    for name in ("link", "team/up/outside"):
        with pytest.raises(MintError, match="there is no model"):
            roots.identify(name)


def test_a_gguf_file_is_a_model_once_it_is_converted(roots: Roots, llama: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    from mint.model.locate import locate
    from tests.worlds.gguf_world import write_gguf

    (tmp_path / "root" / "gguf").mkdir()
    write_gguf(llama, tmp_path / "root" / "gguf" / "tiny.gguf")
    assert roots.names() == ["gguf/tiny.gguf", "llama", "team/lläma"]
    with pytest.raises(NotFetchedError, match=r"gguf/tiny.gguf is not converted yet; needed: convert it first with"):
        roots.identify("gguf/tiny.gguf")
    folder = locate(tmp_path / "root" / "gguf" / "tiny.gguf")
    assert roots.identify("gguf/tiny.gguf") == (folder, open_source(folder).identity)


@pytest.mark.parametrize("name", ["tiny.gguf", "vocab.json", "tiny-00002-of-00002.gguf"])
def test_no_file_of_a_gguf_model_is_a_link_out_of_the_roots(name: str, roots: Roots, tmp_path: Path) -> None:
    folder = tmp_path / "root" / "gguf"
    folder.mkdir()
    model = "tiny-00001-of-00002.gguf" if name.startswith("tiny-") else "tiny.gguf"
    for file in (model, name):
        (folder / file).write_bytes(b"GGUF")
    assert f"gguf/{model}" in roots.names()
    (folder / name).replace(tmp_path / "secret")
    (folder / name).symlink_to(tmp_path / "secret")
    with pytest.raises(MintError, match="there is no model" if name == model else "a link that leads out"):
        roots.identify(f"gguf/{model}")
    assert (f"gguf/{model}" in roots.names()) == (name != model)


def test_a_file_that_is_a_link_out_of_the_roots_is_refused(roots: Roots, tmp_path: Path) -> None:
    (tmp_path / "secret.json").write_text("{}")
    (tmp_path / "root" / "llama" / "vocab.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(MintError, match="a link that leads out"):
        roots.identify("llama")


def test_links_below_the_roots_are_followed(roots: Roots, tmp_path: Path, llama: Path) -> None:
    snapshot = tmp_path / "root" / "models--a--b" / "snapshots" / "1"
    snapshot.mkdir(parents=True)
    for file in (tmp_path / "root" / "llama").iterdir():
        (snapshot / file.name).symlink_to(os.path.relpath(file, snapshot))
    assert roots.identify("models--a--b/snapshots/1")[1] == open_source(llama).identity
    assert "models--a--b/snapshots/1" in roots.names()


def test_a_file_that_is_not_regular_is_refused(roots: Roots, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "root" / "llama" / "generation_config.json")
    with pytest.raises(MintError, match="no regular file"):
        roots.identify("llama")


def test_names_with_invalid_characters_are_not_listed(roots: Roots, tmp_path: Path, llama: Path) -> None:
    shutil.copytree(llama, tmp_path / "root" / os.fsdecode(b"caf\xe9"))
    shutil.copytree(llama, tmp_path / "root" / "two\nlines")
    assert roots.names() == ["llama", "team/lläma"]


def test_an_identity_is_cached_until_a_file_changes(roots: Roots, here: Database) -> None:
    path, before = roots.identify("llama")
    assert [tuple(row) for row in here.rows(select(identities.c.path, identities.c.identity))] == [("llama", before)]
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"rope_theta": 5000.0}))
    assert roots.identify("llama")[1] != before


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ('{"model_type": "llama", "model_file": "evil.py"}', "never run"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "no JSON object"),
        ("\xff", "not valid JSON"),
    ],
)
def test_a_config_with_code_or_bad_json_is_refused(roots: Roots, tmp_path: Path, config: str, message: str) -> None:
    (tmp_path / "root" / "llama" / "config.json").write_text(config, encoding="latin-1")
    with pytest.raises(MintError, match=message):
        roots.identify("llama")
