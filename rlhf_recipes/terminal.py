"""Make text of models, data and files safe to print on a terminal or in Markdown."""

import re
from collections.abc import Iterable
from typing import Any, TextIO

UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters other than tab and newline, overrides of the direction of writing, and lone
surrogates, which no stream can encode."""


def printable(text: str) -> str:
    r"""Escape the characters that control a terminal: ESC becomes the four characters `\x1b`."""
    return UNPRINTABLE.sub(lambda match: ascii(match[0])[1:-1], text)


class PrintableStream:
    """Text stream that escapes control characters, so that no completion can move the cursor.

    It reports that it is not a terminal, so that libraries do not color their output.
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
        """Whether this is a terminal: never, as colors would be escaped."""
        return False
