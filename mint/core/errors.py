"""The one exception for what a user can mend.

Its text says what was found, what is needed and what to do. Everything else that is raised is a bug.
"""


class MintError(Exception):
    """Something the user can mend; the message is shown as it is, without a traceback."""


class DiskFullError(MintError):
    """There is no room on a disk; there may be later."""
