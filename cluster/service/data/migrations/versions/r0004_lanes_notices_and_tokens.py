"""Lanes, deadlines and notices of jobs; expiry, last use and rotation of tokens."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add columns; the end of an older job is not reported."""
    for column in (
        sa.Column("queued_at", sa.Double, nullable=False, server_default="0"),
        sa.Column("yields_to", sa.String(16), nullable=False, server_default=sa.text("''")),
        sa.Column("source_bytes", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("expected_seconds", sa.Double, nullable=False, server_default="0"),
        sa.Column("expected_stages", sa.JSON),
        sa.Column("worked_seconds", sa.Double, nullable=False, server_default="0"),
        sa.Column("deadline_seconds", sa.Double),
        sa.Column("notice_at", sa.Double),
        sa.Column("notice_tries", sa.Integer, nullable=False, server_default="0"),
    ):
        op.add_column("jobs", column)
    op.create_index("jobs_notice_at", "jobs", ["notice_at"])
    for column in (
        sa.Column("expires_at", sa.Double),
        sa.Column("used_at", sa.Double),
        sa.Column("previous_digest", sa.String(64), nullable=False, server_default=sa.text("''")),
        sa.Column("previous_until", sa.Double, nullable=False, server_default="0"),
    ):
        op.add_column("tokens", column)
