"""The progress of attempts; no query compares the end of a lease any more."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add two columns, and drop an index."""
    op.drop_index("jobs_lease_until", "jobs")
    op.add_column("jobs", sa.Column("reached", sa.Double, nullable=False, server_default="0"))
    op.add_column("jobs", sa.Column("has_progressed", sa.Boolean, nullable=False, server_default=sa.false()))
