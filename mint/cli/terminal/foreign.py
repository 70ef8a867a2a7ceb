"""Shows text that others wrote, such as names of files, models and people, without letting it act on the screen."""

import sys
import unicodedata

# Cc control characters, Cf formats such as marks of direction, Cs lone surrogates, Zl and Zp other line ends
_ACTING = {"Cc", "Cf", "Cs", "Zl", "Zp"}
_ESCAPES = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}


def visible(text: str) -> str:
    """`text` with a visible escape for every character that could move, hide, reorder or colour other text."""
    return "".join(_escaped(char) if unicodedata.category(char) in _ACTING else char for char in text)


def visible_lines(text: str) -> str:
    """The same of every line: only for text whose own line ends are meant."""
    return "\n".join(map(visible, text.split("\n")))


def echo(*lines: str, error: bool = False) -> None:
    """Print lines on stdout, or on stderr for an `error`; each stays one line."""
    print(*map(visible, lines), sep="\n", file=sys.stderr if error else sys.stdout, flush=True)


def _escaped(char: str) -> str:
    number = ord(char)
    return _ESCAPES.get(char) or (f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}")
