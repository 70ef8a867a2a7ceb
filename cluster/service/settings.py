"""Settings of a service: its data folder, its address, its limits."""

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from mint.client.http import PORT, is_loopback


def file_url(path: Path) -> str:
    """The URL of an SQLite database in a file; special characters are quoted."""
    return f"sqlite:///{quote(str(path))}"


@dataclass(frozen=True, slots=True)
class Settings:
    """The options of `mint serve`, and three limits that no option sets. Times are seconds, sizes bytes."""

    data: Path
    host: str = "127.0.0.1"
    port: int = PORT
    database: str = ""  # URL; empty: SQLite in `data`
    roots: tuple[Path, ...] = ()
    group_roots: tuple[tuple[str, Path], ...] = ()  # a group, and a folder of models that only it sees
    allow_hub: bool = False
    cluster: str = ""  # of Ray, for the runners
    slots: int = 1  # jobs at a time on this host; 0: serve only
    max_store_bytes: int | None = None
    job_memory_bytes: int | None = None  # of a job; None: no limit
    job_cpus: int | None = None
    job_seconds: float | None = None  # of work
    tls_cert: Path | None = None
    tls_key: Path | None = None
    insecure: bool = False  # plain HTTP beyond loopback
    lease_seconds: float = 20.0  # that a runner may be silent for, where nobody sees its process
    retention_days: float = 30.0  # of events and logs, after the end of a job
    webhook: str = ""  # URL that is told of the end of jobs
    webhook_secret: str = ""
    notify: str = ""  # command, the same
    audit_bytes: int = 64 << 20  # of each of the five files of the audit log
    names: tuple[str, ...] = ()  # further host names of the service
    trusted_proxies: tuple[str, ...] = ()  # addresses or networks
    user_header: str = ""  # of the proxy, with the name of the person who signed in there
    root_path: str = ""  # prefix of all paths at the proxy, such as /mint
    requests_per_second: float = 100.0  # of one person; of one address ten times that
    streams_each: int = 100  # of events, that one person may have open
    body_seconds: float = 10.0  # for the body of a request
    chunk_bytes: int = 4 << 20  # of a download in memory
    token_seconds: float = 1.0  # from the revocation of a token to the end of its streams and downloads

    @property
    def database_url(self) -> str:
        """The URL of the database with jobs, tokens and artifacts."""
        return self.database or file_url(self.data / "service.db")

    @property
    def cache_folder(self) -> Path:
        """The cache of mint in the runners and in the children of the server."""
        return self.data / "cache"

    @property
    def work_folder(self) -> Path:
        """The folder of the runners' locks, and of a folder for each job that is not done."""
        return self.data / "work"

    def log_path(self, job: str) -> Path:
        """The output of a job's runners."""
        return self.data / "logs" / f"{job}.log"

    @property
    def is_local(self) -> bool:
        """True if only programs on this machine can reach the service."""
        return is_loopback(self.host)

    @property
    def is_behind_proxy(self) -> bool:
        """True if requests come through a proxy, from whatever address."""
        return bool(self.trusted_proxies or self.root_path)

    @property
    def url(self) -> str:
        """The address for a browser on this machine."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls_cert else 'http'}://{host}:{self.port}"
