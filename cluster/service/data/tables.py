"""The tables of the service. `migrations` give older databases the same tables; a test compares the two."""

import sqlalchemy as sa

metadata = sa.MetaData(
    naming_convention={"ix": "%(table_name)s_%(column_0_name)s", "uq": "%(table_name)s_%(column_0_name)s_once"}
)

people = sa.Table(
    "people",
    metadata,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("served", sa.Integer, nullable=False),  # rank of the last turn, in turns of all owners
    sa.Column("active_quota", sa.Integer),
    sa.Column("queued_quota", sa.Integer),
    sa.Column("nbytes_quota", sa.BigInteger),
    sa.Column("groups", sa.Text, nullable=False, server_default=sa.text("''")),  # separated by commas
)

tokens = sa.Table(
    "tokens",
    metadata,
    sa.Column("name", sa.String(64), sa.ForeignKey("people.name"), primary_key=True),
    sa.Column("digest", sa.String(64), nullable=False, unique=True),  # SHA-256 of the token, which is not stored
    sa.Column("scopes", sa.String(64), nullable=False),  # separated by commas
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("expires_at", sa.Double),  # never, without a time
    sa.Column("used_at", sa.Double),  # of the last use, to the minute
    # the token before a rotation, and the time until which it is valid
    sa.Column("previous_digest", sa.String(64), nullable=False, server_default=sa.text("''")),
    sa.Column("previous_until", sa.Double, nullable=False, server_default="0"),
)

jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True),  # in the order of submission
    sa.Column("id", sa.String(32), nullable=False, unique=True),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("identity", sa.String(128), nullable=False, index=True),
    sa.Column("budget", sa.String(64), nullable=False),
    sa.Column("options", sa.JSON, nullable=False),
    sa.Column("wish_key", sa.String(64), nullable=False, index=True),
    sa.Column("analysis_key", sa.String(64), nullable=False),
    sa.Column("state", sa.String(16), nullable=False, index=True),
    sa.Column("reason", sa.Text, nullable=False, default=""),
    sa.Column("owner", sa.String(64), sa.ForeignKey("people.name"), nullable=False, index=True),
    sa.Column("priority", sa.Integer, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False, default=0),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("started_at", sa.Double),
    sa.Column("finished_at", sa.Double),
    sa.Column("host", sa.String(255), nullable=False, default=""),
    sa.Column("last_seq", sa.Integer, nullable=False, default=1),
    sa.Column("expected_bytes", sa.BigInteger, nullable=False),  # upper bound of the result, for the quota
    sa.Column("needed_bytes", sa.BigInteger, nullable=False, default=0),
    # of the store, for the files that the job writes; 0 unless the state is one of ACTIVE
    sa.Column("reserved_bytes", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("artifact", sa.String(64), nullable=False, index=True, default=""),
    sa.Column("result", sa.JSON, nullable=False, default=dict),
    sa.Column("cancel_wanted", sa.Boolean, nullable=False, default=False),
    sa.Column("lease", sa.String(32)),  # set exactly while the state is one of ACTIVE
    sa.Column("lease_until", sa.Double),  # changes with every renewal; nothing else is read from it
    # the farthest position of all attempts, and whether the latest attempt moved it
    sa.Column("reached", sa.Double, nullable=False, server_default="0"),
    sa.Column("has_progressed", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("queued_at", sa.Double, nullable=False, server_default="0"),  # when it last joined the queue
    # a state outside ACTIVE that the runner moves the job to after the unit at work; empty: it continues
    sa.Column("yields_to", sa.String(16), nullable=False, server_default=sa.text("''")),
    sa.Column("source_bytes", sa.BigInteger, nullable=False, server_default="0"),  # of the model's weights
    sa.Column("expected_seconds", sa.Double, nullable=False, server_default="0"),  # from earlier jobs
    sa.Column("expected_stages", sa.JSON),  # the same by stage
    sa.Column("worked_seconds", sa.Double, nullable=False, server_default="0"),  # of all runners before the one at work
    sa.Column("deadline_seconds", sa.Double),  # of work; none: the service's own limit
    # when its end is reported next, and the tries so far; none: nothing is to be reported
    sa.Column("notice_at", sa.Double, index=True),
    sa.Column("notice_tries", sa.Integer, nullable=False, server_default="0"),
    sa.Column("group", sa.String(64), nullable=False, server_default=sa.text("''")),  # that sees it; empty: everybody
)
# the database itself enforces these two invariants
_LIVE = sa.text("finished_at IS NULL AND NOT cancel_wanted")
_ACTIVE = sa.text("lease IS NOT NULL")
sa.Index("jobs_one_for_a_wish", jobs.c.wish_key, unique=True, sqlite_where=_LIVE, postgresql_where=_LIVE)
sa.Index("jobs_one_for_an_analysis", jobs.c.analysis_key, unique=True, sqlite_where=_ACTIVE, postgresql_where=_ACTIVE)

watchers = sa.Table(
    "watchers",
    metadata,
    sa.Column("job", sa.Integer, sa.ForeignKey("jobs.number"), primary_key=True),
    sa.Column("name", sa.String(64), sa.ForeignKey("people.name"), primary_key=True, index=True),
    sa.Column("position", sa.Integer, nullable=False),  # the first watcher that wants the job is its owner
    sa.Column("priority", sa.Integer, nullable=False),
    sa.Column("wants", sa.Boolean, nullable=False),  # false once cancelled
)

events = sa.Table(
    "events",
    metadata,
    sa.Column("job", sa.Integer, sa.ForeignKey("jobs.number"), primary_key=True),
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("at", sa.Double, nullable=False),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("body", sa.JSON, nullable=False),
)

artifacts = sa.Table(
    "artifacts",
    metadata,
    sa.Column("digest", sa.String(64), primary_key=True),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("identity", sa.String(128), nullable=False, index=True),
    sa.Column("nbytes", sa.BigInteger, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("used_at", sa.Double, nullable=False, index=True),
)

artifact_files = sa.Table(
    "artifact_files",
    metadata,
    sa.Column("artifact", sa.String(64), sa.ForeignKey("artifacts.digest"), primary_key=True),
    sa.Column("name", sa.String(512), primary_key=True),
    sa.Column("digest", sa.String(64), nullable=False, index=True),
    sa.Column("nbytes", sa.BigInteger, nullable=False),
)

holds = sa.Table(
    "holds",
    metadata,
    sa.Column("artifact", sa.String(64), sa.ForeignKey("artifacts.digest"), primary_key=True),
    sa.Column("holder", sa.String(128), primary_key=True, index=True),  # a job or a download
    sa.Column("until", sa.Double, nullable=False),
)

hosts = sa.Table(
    "hosts",
    metadata,
    sa.Column("name", sa.String(255), primary_key=True),
    sa.Column("slots", sa.Integer, nullable=False),
    sa.Column("free_bytes", sa.BigInteger, nullable=False),
    sa.Column("store_bytes", sa.BigInteger, nullable=False),
    sa.Column("cluster", sa.Text, nullable=False),
    sa.Column("seen_at", sa.Double, nullable=False),
)

drains = sa.Table(
    "drains",
    metadata,
    sa.Column("host", sa.String(255), primary_key=True),  # that begins no job
    sa.Column("by", sa.String(64), nullable=False),
)

stores = sa.Table(
    "stores",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),  # one row: the store that all servers share
    sa.Column("place", sa.Text, nullable=False),  # its first path, for messages
)

identities = sa.Table(
    "identities",
    metadata,
    sa.Column("path", sa.Text, primary_key=True),  # name of a model
    sa.Column("stamp", sa.Text, nullable=False),  # of its files at the time of reading
    sa.Column("identity", sa.String(128), nullable=False, index=True),
)
