"""Read the rows of one file: JSON, JSON lines, CSV, TSV or Parquet, compressed or not.

JSON and CSV are read here and not by `datasets`, which infers a type for each column: it turns
texts that look like dates into dates, "None" in a CSV into a missing value and "007" into 7, and it
stops at a row of another type without giving its line.
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

import orjson

from rlhf_recipes.errors import RecipeError

Row = Mapping[str, object]

READABLE = (
    ".jsonl, .json, .csv, .tsv or .parquet, optionally followed by .gz, .bz2, .xz, .zst or .zip"
)
_SUFFIX = re.compile(
    r"\.(jsonl|ndjson|json|csv|tsv|parquet)(\.(gz|bz2|xz|zst|zip))?$", re.IGNORECASE
)
_DAMAGE = (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile)
_ROWS_PER_BATCH = 1000


def data_suffix(name: str) -> str:
    """Return the suffix of a file that can be read, in lower case; empty for any other file."""
    match = _SUFFIX.search(name)
    return match[0].lower() if match else ""


def read_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """Yield the rows of a file, each with its line number.

    Where a row is not a line (a JSON array, a table, Parquet), it is the number of the row.

    Raises RecipeError, with file and line, for what cannot be read.
    """
    suffix = data_suffix(path.name)
    if suffix == ".parquet":
        return _parquet_rows(path)
    read = _csv_rows if re.match(r"\.[ct]sv", suffix) else _json_rows
    return _with_errors(path, read)


def read_json_lines(path: Path) -> Iterator[tuple[int, Row]]:
    """Yield the objects of a file of JSON lines with their line numbers, without blank lines."""
    return _with_errors(path, _json_lines)


def _with_errors(
    path: Path, read: Callable[[Path, IO[str], list[int]], Iterator[tuple[int, Row]]]
) -> Iterator[tuple[int, Row]]:
    """Yield the rows that `read` yields; turn its errors into RecipeError with file and line.

    Args:
        read: Called with the path, the open file, and a list of one number in which it keeps the
            line that it is reading.
    """
    line = [0]
    try:
        with _open_text(path) as file:
            yield from read(path, file, line)
    except json.JSONDecodeError as error:
        hint = " Each line must hold exactly one JSON object." if "Extra" in error.msg else ""
        raise RecipeError(
            f"{path}, line {line[0] + error.lineno - 1}: is not JSON ({error.msg}, column "
            f"{error.colno}).{hint} Repair or remove that line."
        ) from error
    except UnicodeDecodeError as error:
        raise RecipeError(
            f"{path} cannot be read after line {line[0]} (byte {error.object[error.start]:#04x} is "
            f"not {error.encoding.upper()}). If the file is in another encoding, such as Latin-1 "
            f"or Windows-1252, convert it: `iconv -f WINDOWS-1252 -t UTF-8 {path.name}`."
        ) from error
    except RecursionError as error:
        raise RecipeError(
            f"{path}, line {line[0]}: is nested too deeply to be read as JSON. Remove that line."
        ) from error
    except _DAMAGE as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise RecipeError(
            f"{path} cannot be read after line {line[0]} ({reason}). "
            "Check that the file is complete, and download or write it again."
        ) from error


def _open_text(path: Path) -> IO[str]:
    """Open a file as text; compression and encoding are told from its first bytes, not its name."""
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
            f"{path} contains {', '.join(members) or 'no data file'}, and only an archive of one "
            "data file can be read. Unpack it, and give the folder."
        )
    return archive.open(members[0])


def _json_lines(path: Path, texts: Iterable[str], line: list[int]) -> Iterator[tuple[int, Row]]:
    for number, text in enumerate(texts, start=line[0] + 1):
        line[0] = number
        if text and not text.isspace():
            row = _loads(path, number, text)
            yield number, row if isinstance(row, dict) else _object(path, f"line {number}", row)


def _json_rows(path: Path, file: IO[str], line: list[int]) -> Iterator[tuple[int, Row]]:
    """Yield the rows of JSON lines, or of one JSON value that spans lines or holds a table."""
    first = "\n"
    while first and not first.strip():
        line[0] += 1
        first = file.readline()
    following = file.readline()
    if not first or (_is_row(path, first) and (following or not _is_table(json.loads(first)))):
        line[0] -= 1
        yield from _json_lines(path, chain([first, following], file), line)
        return
    value = _loads(path, line[0], first + following + file.read())
    for number, row in enumerate(_rows_of_value(path, value), start=1):
        yield number, _object(path, f"row {number}", row)


def _loads(path: Path, line: int, text: str) -> object:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        pass  # Python also reads NaN and lone surrogates, and its errors name a line
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise  # `_with_errors` adds the line
    except ValueError as error:  # Python refuses to convert integers of very many digits
        raise RecipeError(
            f"{path}, line {line}: holds a number that cannot be read ({error}). Shorten or remove "
            "it."
        ) from error


def _is_row(path: Path, line: str) -> bool:
    try:
        return isinstance(_loads(path, 1, line), dict)
    except json.JSONDecodeError:
        return False


def _is_table(value: Mapping[str, object]) -> bool:
    lists = [v for v in value.values() if isinstance(v, list) and v and isinstance(v[0], dict)]
    tables = all(isinstance(v, list | dict) and v for v in value.values()) and bool(value)
    answers = {"chosen", "rejected"} <= value.keys()
    return tables if answers else tables or len(lists) == 1 == len(value)


def _rows_of_value(path: Path, value: object) -> list[object]:
    """Return the rows of a JSON value: a list, a list in an object, or a table by columns."""
    if isinstance(value, list):
        return value
    if not isinstance(value, dict):
        return [value]
    columns = list(value.values())
    if all(isinstance(c, dict) for c in columns) and len({tuple(c) for c in columns}) == 1:
        columns = [list(c.values()) for c in columns]  # pandas writes {column: {index: value}}
    elif not all(isinstance(c, list) for c in columns) or {"chosen", "rejected"} - value.keys():
        lists = {
            k: v for k, v in value.items() if isinstance(v, list) and v and isinstance(v[0], dict)
        }
        if len(lists) > 1:
            raise RecipeError(
                f"{path} holds several tables: {', '.join(lists)}. Write each to a separate file, "
                "such as train.jsonl and test.jsonl in one folder."
            )
        return next(iter(lists.values()), [value])
    if len({len(c) for c in columns}) != 1:
        sizes = ", ".join(f"{name}: {len(column)}" for name, column in value.items())
        raise RecipeError(
            f"{path} holds columns of different lengths ({sizes}). Write it again, row by row."
        )
    return [dict(zip(value, row, strict=True)) for row in zip(*columns, strict=True)]


def _object(path: Path, location: str, row: object) -> Row:
    if isinstance(row, dict):
        return row
    raise RecipeError(
        f"{path}, {location}: holds {json.dumps(row)[:40]!r}, which is not a JSON object. "
        "Write one object with the columns of a row on each line."
    )


def _csv_rows(path: Path, file: IO[str], line: list[int]) -> Iterator[tuple[int, Row]]:
    csv.field_size_limit(sys.maxsize)
    header = file.readline()
    delimiter = max(",;\t", key=header.count)
    names = next(csv.reader([header], delimiter=delimiter), [])
    if len(set(names)) < len(names):
        raise RecipeError(
            f"{path} has two columns of the same name: {', '.join(names)}. "
            "Rename one of them in the first line."
        )
    reader = csv.reader(file, delimiter=delimiter, strict=True)
    try:
        for values in reader:
            line[0] = reader.line_num + 1
            if len(values) not in (0, len(names)):
                raise RecipeError(
                    f"{path}, line {line[0]}: has {len(values)} values, and the first line names "
                    f"{len(names)} columns. Check its quotes, or write the data as .jsonl."
                )
            if values:
                yield line[0], dict(zip(names, values, strict=True))
    except csv.Error as error:
        raise RecipeError(
            f"{path}, line {reader.line_num + 1}: is not CSV ({error}). "
            "Check its quotes, or write the data as .jsonl."
        ) from error


def _parquet_rows(path: Path) -> Iterator[tuple[int, Row]]:
    # Imported here because it would slow down the start of every script.
    import pyarrow
    import pyarrow.parquet  # type: ignore[import-untyped]

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(_ROWS_PER_BATCH):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (OSError, pyarrow.ArrowException) as error:
        raise RecipeError(
            f"{path} cannot be read as Parquet ({str(error).splitlines()[0]}). "
            "Check that the file is complete, and download or write it again."
        ) from error
