"""The one exception for errors that a user can fix, and the errors of disks and folders that count as such.

Everything else that is raised is a bug.
"""

import errno

_OF_READS = ("[read]", "[load_safetensors]")  # MLX begins the message of a failed read so (0.32); it has no errno
_FIXABLE = (
    errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ENOENT, errno.ENOTDIR,
    errno.ENOTEMPTY, errno.ENAMETOOLONG, errno.ESTALE, errno.ETIMEDOUT, errno.EEXIST, errno.EISDIR, errno.ELOOP,
    errno.EFBIG,
)  # fmt: skip


class MintError(Exception):
    """An error that a user can fix; the message says found, needed, do this, and is shown without a traceback."""


class DiskFullError(MintError):
    """There is no room on a disk; there may be later."""


def is_failed_read(error: BaseException) -> bool:
    """True for MLX's error of a file that cannot be read."""
    return isinstance(error, RuntimeError) and str(error).startswith(_OF_READS)


def fixable(error: BaseException) -> str:
    """The message for an error of a disk, a folder or a read, which the user can fix; empty for all others."""
    if is_failed_read(error):
        return f"a weight file cannot be read (mlx says: {error}); check the disk, then run the same command again"
    if isinstance(error, OSError) and error.errno in _FIXABLE:
        paths = [str(path) for path in (error.filename, error.filename2) if path is not None]
        where = f"{' -> '.join(paths)}: " if paths else ""
        return f"{where}{error.strerror}; fix that and run the same command again"
    return ""
