"""Hosts that begin no job; groups of people, and jobs that only a group sees."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Add a table and two columns; everybody sees the jobs of before."""
    op.create_table(
        "drains",
        sa.Column("host", sa.String(255), primary_key=True),
        sa.Column("by", sa.String(64), nullable=False),
    )
    op.add_column("people", sa.Column("groups", sa.Text, nullable=False, server_default=sa.text("''")))
    op.add_column("jobs", sa.Column("group", sa.String(64), nullable=False, server_default=sa.text("''")))
