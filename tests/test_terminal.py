import io
import subprocess
import sys

import pytest
from rich.console import Console
from rich.table import Table

from rlhf_recipes.terminal import PrintableStream, printable

CLEARED, TITLED = "\x1b[2J", "\x1b]0;owned\x07"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text,\n\tits second line", "plain text,\n\tits second line"),
        ("é 世界 שלום 👩\u200d👩", "é 世界 שלום 👩\u200d👩"),
        (CLEARED, "\\x1b[2J"),
        (TITLED, "\\x1b]0;owned\\x07"),
        ("\x9b31m", "\\x9b31m"),  # the same as ESC [ where a terminal reads eight-bit controls
        ("right\rwrong", "right\\rwrong"),
        ("nul\0", "nul\\x00"),
        ("a\u202eb\u2066c", "a\\u202eb\\u2066c"),
        ("half \ud83d", "half \\ud83d"),
    ],
)
def test_what_a_terminal_would_obey_is_shown_as_its_escape(text, shown):
    assert printable(text) == shown
    printable(text).encode()


def test_a_table_of_completions_moves_no_cursor():
    """As GRPO prints its completions: with rich, to standard output."""
    out = io.StringIO()
    table = Table("completion")
    table.add_row(f"good{CLEARED}{TITLED}")
    Console(file=PrintableStream(out), width=80).print(table)
    assert "good\\x1b[2J" in out.getvalue()
    assert not {"\x1b", "\x07"} & set(out.getvalue())


def test_it_has_what_the_stream_below_has():
    raw = io.BytesIO()
    stream = PrintableStream(io.TextIOWrapper(raw, encoding="ascii"))
    stream.reconfigure(encoding="utf-8", line_buffering=True)
    stream.writelines(["é\n", f"{CLEARED}\n"])
    stream.buffer.write(b"bytes")
    stream.flush()
    assert raw.getvalue() == "é\n\\x1b[2J\nbytes".encode()
    assert stream.writable() and not stream.isatty() and not stream.closed
    assert (stream.encoding, stream.errors) == ("utf-8", "strict")


SCRIPT = """
import sys
from rlhf_recipes.ending import run_script
from rlhf_recipes.errors import RecipeError
def main():
    print("a completion: \\x1b[2J")
    raise RecipeError("no such file: \\x1b[31m.json")
run_script(main)
"""


def test_a_script_prints_neither_output_nor_errors_raw():
    ended = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stdout == "a completion: \\x1b[2J\n"
    assert ended.stderr == "no such file: \\x1b[31m.json\n"
