"""The one exception for errors that a user can fix, and the errors of disks and folders that count as such.

Everything else that is raised is a bug.
"""

import errno
import re

_OF_READS = ("[read]", "[load_safetensors]")  # MLX begins the message of a failed read so (0.32); it has no errno
_FIXABLE = (
    errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ENOENT, errno.ENOTDIR,
    errno.ENOTEMPTY, errno.ENAMETOOLONG, errno.ESTALE, errno.ETIMEDOUT, errno.EEXIST, errno.EISDIR, errno.ELOOP,
    errno.EFBIG,
)  # fmt: skip


# by option: the argument or the field that says the same in Python; others have the name of their option
_ARGUMENTS = {
    "keep": "lock", "set": "lock", "locks": "lock", "veto": "veto_db", "quality": "rounding", "text-only": "loader",
    "vision": "loader",
}  # fmt: skip
# by option: the words for its values that are other values of the argument; a test compares them with their tables
VALUES = {"quality": {"fast": "nearest", "good": "compensate", "best": "tune"}}
OPTIONS = (
    "analysis", "base", "budget", "compat", "context", "device", "dtype", "force", "formats", "ignore-floors",
    "ignore-probe", "keep-nonfinite", "kv-bits", "length", "low-disk", "max-bits", "max-shard-size", "memory",
    "min-bits", "objective", "output", "prefer-speed", "probe", "reference", "requantize", "reserve", "reuse",
    "rounding", "save-reference", "seed", "sequences", "tasks", "text", "tokens", "window", *_ARGUMENTS,
)  # fmt: skip
_COMMAND = r"\bmint (?:analyze|allocate|assemble|cluster|curve|devices|evaluate|probe|quantize|verify)\b[^;,()]*"
_WORDS = re.compile(
    rf"(?P<command>{_COMMAND})|(?<![\w-])--(?P<option>{'|'.join(OPTIONS)})(?![\w-])(?: (?P<value>\w+)(?![\w-]))?"
)

# two options that are one argument in Python, in one list
_TWICE = re.compile(rf"\b(?P<name>{'|'.join(sorted(set(_ARGUMENTS.values())))})(?:(?:, | and | or )(?P=name)\b)+")


class MintError(Exception):
    """An error that a user can fix; the message says found, needed, do this, and is shown without a traceback.

    Messages are written with the options of the command line. In Python they name arguments instead; commands in them
    stay as they are.
    """

    def __str__(self) -> str:
        return _TWICE.sub(r"\g<name>", _WORDS.sub(_argument, self.typed))

    @property
    def typed(self) -> str:
        """The message in the words of the command line."""
        return super().__str__()


def typed(error: BaseException) -> str:
    """The message of any error, that of a `MintError` in the words of the command line."""
    return error.typed if isinstance(error, MintError) else str(error)


def _argument(match: re.Match[str]) -> str:
    option, value = match["option"], match["value"]
    if option is None:
        return match["command"]
    name = _ARGUMENTS.get(option, option.replace("-", "_"))
    return f"{name} {VALUES.get(option, {}).get(value, value)}" if value else name


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
