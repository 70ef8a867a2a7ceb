"""Backup while the service runs, restoration and check: nothing is lost, and every fault is named."""

import sqlite3
from pathlib import Path

import pytest

from cluster.service.data.catalog import Catalog
from cluster.service.data.database import connect
from cluster.service.operations.backup import DATABASE, backup, check, restore
from cluster.service.queue.queue import Queue
from cluster.service.settings import file_url
from cluster.service.store.store import Store
from mint.core.errors import MintError
from tests.worlds.service_world import ANN, model_request, submit


class Lab:
    """The data of a service, opened as the service does."""

    def __init__(self, data: Path) -> None:
        data.mkdir(parents=True, exist_ok=True)
        self.data, self.database = data, connect(file_url(data / DATABASE))
        self.queue, self.catalog = Queue(self.database), Catalog(self.database)
        self.store = Store(data / "store", self.catalog)

    def put(self, name: str, content: str) -> str:
        """Store a model with one file."""
        file = self.data / name
        file.write_text(content)
        digest = self.store.put("model", "one", {"model.safetensors": file}).digest
        file.unlink()
        return digest


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path / "data")


def test_a_restored_backup_has_every_job_and_every_file(lab: Lab, tmp_path: Path) -> None:
    job, _ = submit(lab.queue, model_request(), ANN)
    digests = [lab.put("a", "weights"), lab.put("b", "more weights")]
    copied = backup(lab.data, tmp_path / "backup")
    assert (copied.files, copied.copied_files) == (2, 2)
    restore(tmp_path / "backup", tmp_path / "again")
    again = Lab(tmp_path / "again")
    assert again.queue.get(job.id) == lab.queue.get(job.id)
    assert sorted(artifact.digest for artifact in again.catalog.find()) == sorted(digests)
    assert check(again.data, reads_files=True).faults == ()
    assert again.store.sweep() == (0, 0)


def test_a_second_backup_copies_only_new_files_and_forgets_removed_ones(lab: Lab, tmp_path: Path) -> None:
    first = lab.put("a", "weights")
    backup(lab.data, tmp_path / "backup")
    lab.put("b", "more weights")
    assert backup(lab.data, tmp_path / "backup").copied_files == 1
    lab.catalog.remove(first)
    assert backup(lab.data, tmp_path / "backup").copied_files == 0
    assert len(list((tmp_path / "backup" / "store").glob("??/*"))) == 1
    assert check(tmp_path / "backup", reads_files=True).faults == ()


def test_nothing_is_evicted_while_a_backup_copies(lab: Lab, tmp_path: Path) -> None:
    lab.put("a", "weights")
    lab.put("b", "more weights")
    evicted = []

    def write_beside(done: int, total: int, name: str) -> None:
        evicted.append(Store(lab.data / "store", lab.catalog, max_bytes=1).evict())
        submit(lab.queue, model_request(name), ANN)

    backup(lab.data, tmp_path / "backup", write_beside)
    assert evicted == [0, 0]
    assert check(tmp_path / "backup", reads_files=True).faults == ()
    assert Store(lab.data / "store", lab.catalog, max_bytes=1).evict() == 2, "the holds end with the backup"


def test_a_check_names_what_is_missing_cut_or_changed(lab: Lab) -> None:
    for name in ("missing", "cut", "changed"):
        lab.put(name, f"weights of {name}")
    paths = {path.read_text().split()[-1]: path for path in lab.store.folder.glob("??/*")}
    paths["missing"].unlink()
    paths["cut"].write_text("cut")
    paths["changed"].write_text("weights of a crowd!"[: len("weights of changed")])
    assert {fault.partition(": ")[2] for fault in check(lab.data).faults} == {"missing", "3 bytes, needed 14"}
    assert any("SHA-256" in fault for fault in check(lab.data, reads_files=True).faults)


def test_a_damaged_database_is_a_fault(lab: Lab, tmp_path: Path) -> None:
    backup(lab.data, tmp_path / "backup")
    file = tmp_path / "backup" / DATABASE
    file.write_bytes(file.read_bytes()[:5000] + b"x" * 5000)
    assert check(tmp_path / "backup").faults
    connection = sqlite3.connect(lab.data / DATABASE)
    connection.execute("INSERT INTO artifact_files VALUES ('gone', 'a', 'b', 1)")
    connection.commit()
    assert any("missing row of artifacts" in fault for fault in check(lab.data).faults)


def test_a_damaged_file_is_never_restored(lab: Lab, tmp_path: Path) -> None:
    lab.put("a", "weights")
    backup(lab.data, tmp_path / "backup")
    next((tmp_path / "backup" / "store").glob("??/*")).write_text("weighty")
    with pytest.raises(MintError, match="the backup is damaged"):
        restore(tmp_path / "backup", tmp_path / "again")
    assert not (tmp_path / "again" / DATABASE).exists()


def test_nothing_is_overwritten(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "a").write_text("dear")
    with pytest.raises(MintError, match="no backup"):
        backup(lab.data, tmp_path / "letters")
    backup(lab.data, tmp_path / "backup")
    with pytest.raises(MintError, match="holds a service already"):
        restore(tmp_path / "backup", lab.data)
    with pytest.raises(MintError, match="pg_dump"):
        backup(tmp_path / "letters", tmp_path / "b")


def test_the_database_of_a_backup_opens_as_that_of_a_service(lab: Lab, tmp_path: Path) -> None:
    backup(lab.data, tmp_path / "backup")
    connect(file_url(tmp_path / "backup" / DATABASE)).close()
