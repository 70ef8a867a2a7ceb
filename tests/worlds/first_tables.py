"""The tables of a service's database at revision 0001, as databases of that time still have them."""

import sqlalchemy as sa
from alembic.operations import Operations


def create_first_tables(op: Operations) -> None:
    """Make every table of revision 0001."""
    op.create_table(
        "people",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("served", sa.Integer, nullable=False),
        sa.Column("active_quota", sa.Integer),
        sa.Column("queued_quota", sa.Integer),
        sa.Column("nbytes_quota", sa.BigInteger),
    )
    op.create_table(
        "tokens",
        sa.Column("name", sa.String(64), sa.ForeignKey("people.name"), primary_key=True),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("scopes", sa.String(64), nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.UniqueConstraint("digest", name="tokens_digest_once"),
    )
    _create_jobs(op)
    _create_catalog(op)


def _create_jobs(op: Operations) -> None:
    op.create_table(
        "jobs",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("identity", sa.String(128), nullable=False),
        sa.Column("budget", sa.String(64), nullable=False),
        sa.Column("options", sa.JSON, nullable=False),
        sa.Column("wish_key", sa.String(64), nullable=False),
        sa.Column("analysis_key", sa.String(64), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("owner", sa.String(64), sa.ForeignKey("people.name"), nullable=False),
        sa.Column("priority", sa.Integer, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("started_at", sa.Double),
        sa.Column("finished_at", sa.Double),
        sa.Column("host", sa.String(255), nullable=False),
        sa.Column("last_seq", sa.Integer, nullable=False),
        sa.Column("expected_bytes", sa.BigInteger, nullable=False),
        sa.Column("needed_bytes", sa.BigInteger, nullable=False),
        sa.Column("artifact", sa.String(64), nullable=False),
        sa.Column("result", sa.JSON, nullable=False),
        sa.Column("cancel_wanted", sa.Boolean, nullable=False),
        sa.Column("lease", sa.String(32)),
        sa.Column("lease_until", sa.Double),
        sa.UniqueConstraint("id", name="jobs_id_once"),
    )
    for column in ("identity", "wish_key", "state", "owner", "artifact", "lease_until"):
        op.create_index(f"jobs_{column}", "jobs", [column])
    live, active = sa.text("finished_at IS NULL AND NOT cancel_wanted"), sa.text("lease IS NOT NULL")
    for name, column, where in (
        ("jobs_one_for_a_wish", "wish_key", live),
        ("jobs_one_for_an_analysis", "analysis_key", active),
    ):
        op.create_index(name, "jobs", [column], unique=True, sqlite_where=where, postgresql_where=where)
    op.create_table(
        "watchers",
        sa.Column("job", sa.Integer, sa.ForeignKey("jobs.number"), primary_key=True),
        sa.Column("name", sa.String(64), sa.ForeignKey("people.name"), primary_key=True),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("priority", sa.Integer, nullable=False),
        sa.Column("wants", sa.Boolean, nullable=False),
    )
    op.create_index("watchers_name", "watchers", ["name"])
    op.create_table(
        "events",
        sa.Column("job", sa.Integer, sa.ForeignKey("jobs.number"), primary_key=True),
        sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("body", sa.JSON, nullable=False),
    )


def _create_catalog(op: Operations) -> None:
    op.create_table(
        "artifacts",
        sa.Column("digest", sa.String(64), primary_key=True),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("identity", sa.String(128), nullable=False),
        sa.Column("nbytes", sa.BigInteger, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("used_at", sa.Double, nullable=False),
    )
    op.create_index("artifacts_identity", "artifacts", ["identity"])
    op.create_index("artifacts_used_at", "artifacts", ["used_at"])
    op.create_table(
        "artifact_files",
        sa.Column("artifact", sa.String(64), sa.ForeignKey("artifacts.digest"), primary_key=True),
        sa.Column("name", sa.String(512), primary_key=True),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("nbytes", sa.BigInteger, nullable=False),
    )
    op.create_index("artifact_files_digest", "artifact_files", ["digest"])
    op.create_table(
        "holds",
        sa.Column("artifact", sa.String(64), sa.ForeignKey("artifacts.digest"), primary_key=True),
        sa.Column("holder", sa.String(128), primary_key=True),
        sa.Column("until", sa.Double, nullable=False),
    )
    op.create_index("holds_holder", "holds", ["holder"])
    op.create_table(
        "identities",
        sa.Column("path", sa.Text, primary_key=True),
        sa.Column("stamp", sa.Text, nullable=False),
        sa.Column("identity", sa.String(128), nullable=False),
    )
    op.create_index("identities_identity", "identities", ["identity"])
