"""The machines, their store, and the bytes of it that jobs have reserved."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Make their tables, and a column."""
    op.create_table(
        "hosts",
        sa.Column("name", sa.String(255), primary_key=True),
        sa.Column("slots", sa.Integer, nullable=False),
        sa.Column("free_bytes", sa.BigInteger, nullable=False),
        sa.Column("store_bytes", sa.BigInteger, nullable=False),
        sa.Column("cluster", sa.Text, nullable=False),
        sa.Column("seen_at", sa.Double, nullable=False),
    )
    op.create_table(
        "stores",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("place", sa.Text, nullable=False),
    )
    op.add_column("jobs", sa.Column("reserved_bytes", sa.BigInteger, nullable=False, server_default="0"))
