"""Errors of the service; the HTTP layer maps each class to a status."""

from mint.core.errors import MintError


class NotFoundError(MintError):
    """No job, artifact or token has this name."""


class NotWatchingError(MintError):
    """Only a subscriber of a job, or an admin, may cancel it."""


class LeaseLostError(MintError):
    """The job belongs to another runner or to nobody; the former holder must stop writing."""


class YieldedError(MintError):
    """The job stops after a unit, and returns to the queue."""


class ArtifactInUseError(MintError):
    """A job or a download uses the artifact."""


class QuotaExceededError(MintError):
    """A person has reached a quota; after `retry_after` seconds it may be free again."""

    def __init__(self, message: str, *, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class NotFetchedError(MintError):
    """A model of the hub is not on this machine yet, or a GGUF file not converted; it can be fetched."""


class DatabaseUnavailableError(MintError):
    """The database does not answer or cannot write; the same call may work later."""

    retry_after = 5


class ServiceBusyError(MintError):
    """The service answers others; the same call may work later."""

    retry_after = 5
