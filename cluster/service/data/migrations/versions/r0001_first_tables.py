"""The first tables. A new database has the tables of today at once, so no database is migrated to this revision."""

revision = "0001"
down_revision = None
