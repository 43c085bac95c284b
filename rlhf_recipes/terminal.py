"""Text of models, data and files on its way to a terminal or into Markdown."""

import re
from collections.abc import Iterable
from typing import Any, TextIO

UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters other than tab and newline, overrides of the direction of writing, and lone
surrogates, which no stream can encode."""


def printable(text: str) -> str:
    r"""Replace what a terminal would obey by its escape: ESC becomes the four characters `\x1b`."""
    return UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], text)


class PrintableStream:
    """A text stream that writes only printable text, so that no completion can move the cursor.

    It claims to be no terminal: libraries that color their output leave that out.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        """Return whatever else a stream has: `buffer`, `encoding`, `fileno`, `reconfigure`."""
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Write the text with its control characters escaped."""
        self.stream.write(printable(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write the texts one after another."""
        for line in lines:
            self.write(line)

    def isatty(self) -> bool:
        """Whether colors and cursor movements are understood here: never."""
        return False
