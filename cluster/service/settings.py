"""How a service runs: where its data lies, where it listens, what it lets in."""

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import platformdirs

from mint.client.http import is_loopback

PORT = 8420


def data_place() -> Path:
    """Where the service keeps everything unless --data says otherwise."""
    return Path(platformdirs.user_data_dir("mint")) / "service"


def file_url(path: Path) -> str:
    """The address of an SQLite database in a file, whatever is in its name."""
    return f"sqlite:///{quote(str(path))}"


@dataclass(frozen=True, slots=True)
class Settings:
    """What `mint serve` was told. Times are seconds, sizes bytes."""

    data: Path
    host: str = "127.0.0.1"
    port: int = PORT
    database: str = ""  # URL; empty: SQLite in `data`
    roots: tuple[Path, ...] = ()
    allow_hub: bool = False
    cluster: str = ""  # of Ray, for the runners
    slots: int = 1  # jobs at a time on this host; 0: serve only
    max_store_bytes: int | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    insecure: bool = False  # plain HTTP beyond loopback
    names: tuple[str, ...] = ()  # further host names that the service is called by
    requests_per_second: float = 100.0  # of one person; of one address ten times that
    streams_each: int = 100  # of events, that one person may have open

    @property
    def database_url(self) -> str:
        """Where jobs, tokens and artifacts are written down."""
        return self.database or file_url(self.data / "service.db")

    @property
    def is_local(self) -> bool:
        """Whether only programs on this machine can reach it."""
        return is_loopback(self.host)

    @property
    def url(self) -> str:
        """What to type into a browser on this machine."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls_cert else 'http'}://{host}:{self.port}"
