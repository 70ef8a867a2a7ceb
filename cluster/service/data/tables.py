"""The tables of the service, equal to the result of `migrations`; a test compares the two."""

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    text,
)

metadata = MetaData(
    naming_convention={"ix": "%(table_name)s_%(column_0_name)s", "uq": "%(table_name)s_%(column_0_name)s_once"}
)

people = Table(
    "people",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("served", Integer, nullable=False),  # rank of the last turn, in turns of all owners
    Column("active_quota", Integer),
    Column("queued_quota", Integer),
    Column("nbytes_quota", BigInteger),
)

tokens = Table(
    "tokens",
    metadata,
    Column("name", String(64), ForeignKey("people.name"), primary_key=True),
    Column("digest", String(64), nullable=False, unique=True),  # SHA-256 of the token, which is not stored
    Column("scopes", String(64), nullable=False),  # separated by commas
    Column("created_at", Double, nullable=False),
)

jobs = Table(
    "jobs",
    metadata,
    Column("number", Integer, primary_key=True),  # in the order of submission
    Column("id", String(32), nullable=False, unique=True),
    Column("model", Text, nullable=False),
    Column("identity", String(128), nullable=False, index=True),
    Column("budget", String(64), nullable=False),
    Column("options", JSON, nullable=False),
    Column("wish_key", String(64), nullable=False, index=True),
    Column("analysis_key", String(64), nullable=False),
    Column("state", String(16), nullable=False, index=True),
    Column("reason", Text, nullable=False),
    Column("owner", String(64), ForeignKey("people.name"), nullable=False, index=True),
    Column("priority", Integer, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("started_at", Double),
    Column("finished_at", Double),
    Column("host", String(255), nullable=False),
    Column("last_seq", Integer, nullable=False),
    Column("expected_bytes", BigInteger, nullable=False),  # upper bound of the result, for the quota
    Column("needed_bytes", BigInteger, nullable=False),
    # of the store, for the files that the job writes; 0 unless the state is one of ACTIVE
    Column("reserved_bytes", BigInteger, nullable=False, server_default="0"),
    Column("artifact", String(64), nullable=False, index=True),
    Column("result", JSON, nullable=False),
    Column("cancel_wanted", Boolean, nullable=False),
    Column("lease", String(32)),  # set exactly while the state is one of ACTIVE
    Column("lease_until", Double, index=True),
)
# the database itself enforces these two invariants
_LIVE = text("finished_at IS NULL AND NOT cancel_wanted")
_ACTIVE = text("lease IS NOT NULL")
Index("jobs_one_for_a_wish", jobs.c.wish_key, unique=True, sqlite_where=_LIVE, postgresql_where=_LIVE)
Index("jobs_one_for_an_analysis", jobs.c.analysis_key, unique=True, sqlite_where=_ACTIVE, postgresql_where=_ACTIVE)

watchers = Table(
    "watchers",
    metadata,
    Column("job", Integer, ForeignKey("jobs.number"), primary_key=True),
    Column("name", String(64), ForeignKey("people.name"), primary_key=True, index=True),
    Column("position", Integer, nullable=False),  # the first watcher that wants the job is its owner
    Column("priority", Integer, nullable=False),
    Column("wants", Boolean, nullable=False),  # false once cancelled
)

events = Table(
    "events",
    metadata,
    Column("job", Integer, ForeignKey("jobs.number"), primary_key=True),
    Column("seq", Integer, primary_key=True, autoincrement=False),
    Column("at", Double, nullable=False),
    Column("kind", String(16), nullable=False),
    Column("body", JSON, nullable=False),
)

artifacts = Table(
    "artifacts",
    metadata,
    Column("digest", String(64), primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("identity", String(128), nullable=False, index=True),
    Column("nbytes", BigInteger, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("used_at", Double, nullable=False, index=True),
)

artifact_files = Table(
    "artifact_files",
    metadata,
    Column("artifact", String(64), ForeignKey("artifacts.digest"), primary_key=True),
    Column("name", String(512), primary_key=True),
    Column("digest", String(64), nullable=False, index=True),
    Column("nbytes", BigInteger, nullable=False),
)

holds = Table(
    "holds",
    metadata,
    Column("artifact", String(64), ForeignKey("artifacts.digest"), primary_key=True),
    Column("holder", String(128), primary_key=True, index=True),  # a job or a download
    Column("until", Double, nullable=False),
)

hosts = Table(
    "hosts",
    metadata,
    Column("name", String(255), primary_key=True),
    Column("slots", Integer, nullable=False),
    Column("free_bytes", BigInteger, nullable=False),
    Column("store_bytes", BigInteger, nullable=False),
    Column("cluster", Text, nullable=False),
    Column("seen_at", Double, nullable=False),
)

stores = Table(
    "stores",
    metadata,
    Column("id", String(64), primary_key=True),  # one row: the store that all servers share
    Column("place", Text, nullable=False),  # its first path, for messages
)

identities = Table(
    "identities",
    metadata,
    Column("path", Text, primary_key=True),  # name of a model
    Column("stamp", Text, nullable=False),  # of its files at the time of reading
    Column("identity", String(128), nullable=False, index=True),
)
