"""The one exception for errors that a user can fix. Everything else that is raised is a bug."""


class MintError(Exception):
    """An error that a user can fix; the message says found, needed, do this, and is shown without a traceback."""


class DiskFullError(MintError):
    """There is no room on a disk; there may be later."""
