"""The rows of one file: JSON, lines of JSON, CSV, TSV or Parquet, compressed or not.

JSON and CSV are read here and not by `datasets`, which infers a type for each column: texts that
look like dates come out as dates, "None" in a CSV as missing, "007" as 7, and a row with another
shape stops it without its line.
"""

import bz2
import csv
import gzip
import io
import json
import lzma
import re
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import IO, cast

from rlhf_recipes.errors import RecipeError

Row = Mapping[str, object]

READABLE = (
    ".jsonl, .json, .csv, .tsv or .parquet, perhaps with .gz, .bz2, .xz, .zst or .zip after it"
)
_SUFFIX = re.compile(
    r"\.(jsonl|ndjson|json|csv|tsv|parquet)(\.(gz|bz2|xz|zst|zip))?$", re.IGNORECASE
)
_DAMAGE = (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile)
_ROWS_OF_BATCH = 1000


def data_suffix(name: str) -> str:
    """The suffix of a file that can be read, in lower case; empty for any other file."""
    found = _SUFFIX.search(name)
    return found[0].lower() if found else ""


def read_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """Rows of a file, each with its line, or with its number where rows are no lines."""
    suffix = data_suffix(path.name)
    if suffix == ".parquet":
        return _parquet_rows(path)
    read = _csv_rows if re.match(r"\.[ct]sv", suffix) else _json_rows
    return _guarded(path, read)


def read_json_lines(path: Path) -> Iterator[tuple[int, Row]]:
    """Line numbers and objects of a file of JSON lines; blank lines are passed over."""
    return _guarded(path, _json_lines)


def _guarded(
    path: Path, read: Callable[[Path, IO[str], list[int]], Iterator[tuple[int, Row]]]
) -> Iterator[tuple[int, Row]]:
    """The rows that `read` finds; what stops it becomes a sentence with file and line.

    `read` keeps the line that it is at in the list it is given.
    """
    at = [0]
    try:
        with _open_text(path) as file:
            yield from read(path, file, at)
    except json.JSONDecodeError as error:
        line = at[0] + error.lineno - 1
        more = (
            " Each line holds one JSON object and nothing after it." if "Extra" in error.msg else ""
        )
        raise RecipeError(
            f"{path}, line {line}: is not JSON ({error.msg}, column {error.colno}).{more} "
            "Repair or remove that line."
        ) from error
    except UnicodeDecodeError as error:
        raise RecipeError(
            f"{path} cannot be read after line {at[0]} (byte {error.object[error.start]:#04x} is "
            f"not {error.encoding.upper()}). If the file is in another encoding, such as Latin-1 "
            f"or Windows-1252, convert it: `iconv -f WINDOWS-1252 -t UTF-8 {path.name}`."
        ) from error
    except RecursionError as error:
        raise RecipeError(
            f"{path}, line {at[0]}: is nested too deeply for JSON of a dataset. Remove that line."
        ) from error
    except _DAMAGE as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise RecipeError(
            f"{path} cannot be read after line {at[0]} ({reason}). "
            "Check that the file is complete, and fetch or write it again."
        ) from error


def _open_text(path: Path) -> IO[str]:
    """A file as text, decompressed and decoded by what it begins with, whatever its name says."""
    stream = _open_binary(path)
    encoding = json.detect_encoding(stream.peek(4)[:4])
    newline = "" if re.match(r"\.[ct]sv", data_suffix(path.name)) else None
    return io.TextIOWrapper(stream, encoding=encoding, newline=newline)


def _open_binary(path: Path) -> io.BufferedReader:
    with path.open("rb") as file:
        start = file.read(6)
    if start.startswith(b"\x1f\x8b"):
        return io.BufferedReader(cast(io.RawIOBase, gzip.open(path)))
    if start.startswith(b"BZh"):
        return io.BufferedReader(cast(io.RawIOBase, bz2.open(path)))
    if start.startswith(b"\xfd7zXZ"):
        return io.BufferedReader(cast(io.RawIOBase, lzma.open(path)))
    if start.startswith(b"\x28\xb5\x2f\xfd"):
        import pyarrow  # type: ignore[import-untyped]  # it ships no py.typed

        return io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"))
    if start.startswith(b"PK\x03\x04"):
        return io.BufferedReader(cast(io.RawIOBase, _open_member(path)))
    return path.open("rb")


def _open_member(path: Path) -> IO[bytes]:
    archive = zipfile.ZipFile(path)
    members = [name for name in archive.namelist() if data_suffix(name) and "__MACOSX" not in name]
    if len(members) != 1:
        raise RecipeError(
            f"{path} holds {', '.join(members) or 'no file of data'}, and one file of data can be "
            "read from an archive. Unpack it, and give the folder."
        )
    return archive.open(members[0])


def _json_lines(path: Path, lines: Iterable[str], at: list[int]) -> Iterator[tuple[int, Row]]:
    for number, line in enumerate(lines, start=at[0] + 1):
        at[0] = number
        if line and not line.isspace():
            place = f"line {number}"
            yield number, _object(path, place, _loads(path, place, line))


def _json_rows(path: Path, file: IO[str], at: list[int]) -> Iterator[tuple[int, Row]]:
    """Rows of JSON lines, or of one JSON value that spans lines or holds a whole table."""
    first = "\n"
    while first and not first.strip():
        at[0] += 1
        first = file.readline()
    following = file.readline()
    if not first or (_is_row(path, first) and (following or not _is_table(json.loads(first)))):
        at[0] -= 1
        yield from _json_lines(path, chain([first, following], file), at)
        return
    value = _loads(path, f"line {at[0]}", first + following + file.read())
    for number, row in enumerate(_rows_of_value(path, value), start=1):
        yield number, _object(path, f"row {number}", row)


def _loads(path: Path, place: str, text: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise  # it knows its line
    except ValueError as error:  # Python refuses to convert integers of very many digits
        raise RecipeError(
            f"{path}, {place}: holds a number that cannot be read ({error}). Shorten or remove it."
        ) from error


def _is_row(path: Path, line: str) -> bool:
    try:
        return isinstance(_loads(path, "line 1", line), dict)
    except json.JSONDecodeError:
        return False


def _is_table(value: Mapping[str, object]) -> bool:
    lists = [v for v in value.values() if isinstance(v, list) and v and isinstance(v[0], dict)]
    tables = all(isinstance(v, list | dict) and v for v in value.values()) and bool(value)
    answers = {"chosen", "rejected"} <= value.keys()
    return tables if answers else tables or len(lists) == 1 == len(value)


def _rows_of_value(path: Path, value: object) -> list[object]:
    """The rows of a JSON value: a list, a list in an object, or a table column by column."""
    if isinstance(value, list):
        return value
    if not isinstance(value, dict):
        return [value]
    columns = list(value.values())
    if all(isinstance(c, dict) for c in columns) and len({tuple(c) for c in columns}) == 1:
        columns = [list(c.values()) for c in columns]  # as pandas writes a table
    elif not all(isinstance(c, list) for c in columns) or {"chosen", "rejected"} - value.keys():
        lists = {
            k: v for k, v in value.items() if isinstance(v, list) and v and isinstance(v[0], dict)
        }
        if len(lists) > 1:
            raise RecipeError(
                f"{path} holds several tables: {', '.join(lists)}. Write each to a file of its "
                "own, such as train.jsonl and test.jsonl in one folder."
            )
        return next(iter(lists.values()), [value])
    if len({len(c) for c in columns}) != 1:
        sizes = ", ".join(f"{name}: {len(column)}" for name, column in value.items())
        raise RecipeError(
            f"{path} holds columns of different lengths ({sizes}). Write it again, row by row."
        )
    return [dict(zip(value, row, strict=True)) for row in zip(*columns, strict=True)]


def _object(path: Path, place: str, row: object) -> Row:
    if isinstance(row, dict):
        return row
    raise RecipeError(
        f"{path}, {place}: holds {json.dumps(row)[:40]!r}, which is not a JSON object. "
        "Write one object with the columns of a row on each line."
    )


def _csv_rows(path: Path, file: IO[str], at: list[int]) -> Iterator[tuple[int, Row]]:
    csv.field_size_limit(sys.maxsize)
    header = file.readline()
    delimiter = max(",;\t", key=header.count)
    names = next(csv.reader([header], delimiter=delimiter), [])
    if len(set(names)) < len(names):
        raise RecipeError(
            f"{path} has columns of the same name: {', '.join(names)}. "
            "Rename them in its first line."
        )
    reader = csv.reader(file, delimiter=delimiter, strict=True)
    try:
        for values in reader:
            at[0] = reader.line_num + 1
            if len(values) not in (0, len(names)):
                raise RecipeError(
                    f"{path}, line {at[0]}: has {len(values)} values, and the first line names "
                    f"{len(names)} columns. Check its quotes, or write the data as .jsonl."
                )
            if values:
                yield at[0], dict(zip(names, values, strict=True))
    except csv.Error as error:
        raise RecipeError(
            f"{path}, line {reader.line_num + 1}: is not CSV ({error}). "
            "Check its quotes, or write the data as .jsonl."
        ) from error


def _parquet_rows(path: Path) -> Iterator[tuple[int, Row]]:
    # Imported where it is used: it would slow down every script's start.
    import pyarrow
    import pyarrow.parquet  # type: ignore[import-untyped]

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(_ROWS_OF_BATCH):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (OSError, pyarrow.ArrowException) as error:
        raise RecipeError(
            f"{path} cannot be read as Parquet ({str(error).splitlines()[0]}). "
            "Check that the file is complete, and fetch or write it again."
        ) from error
