"""What the service refuses, each with a name of its own, so that a server can answer each with its own status."""

# ruff: noqa: N818 (they say what is the case)

from mint.core.errors import MintError


class NotFound(MintError):
    """There is no such job, artifact or token."""


class NotWatching(MintError):
    """Who cancels a job for others, or never asked for it, is no admin."""


class LeaseLost(MintError):
    """The job was given to another, or taken back: whoever held it must stop writing."""


class Held(MintError):
    """A job or a download holds the artifact."""


class QuotaExceeded(MintError):
    """One has as much as one may have at a time; after `retry_after` seconds it may be less."""

    def __init__(self, message: str, *, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class NotFetched(MintError):
    """A model of the hub is not on this machine yet; it can be fetched."""


class Unavailable(MintError):
    """The database does not answer, or cannot write; it may be better soon."""
