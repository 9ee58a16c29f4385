"""The rows of JSON Lines and CSV files, with types that are fixed, a bounded number of them at a time.

What is broken is named by line and column, never by content: an exception of a parser quotes what it could not parse,
so none is passed on. Types are known only after the last line. Such a file is read once, and an encrypted copy of it a
second time: the source may be slow, or change in between.
"""

from __future__ import annotations

import csv
import itertools
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import polars as pl
import pyarrow as pa

from services.dataset import columns as typing_of
from services.dataset import expressions as ex
from services.dataset.columns import Unreadable
from services.dataset.vault import Spool

ROWS_A_REPORT = 1_000
READ_BYTES = 1 << 20
MOST_LINE_BYTES = 1 << 24
# In this order: a header has the first one that is there between its names.
_DELIMITERS = (",", ";", "\t")
_QUOTED = re.compile(r'"[^"]*"')
# What a file may be compressed with, by the end of its name.
COMPRESSIONS = {"gz": "gzip", "bz2": "bz2", "zst": "zstd"}
# The number of rows that were seen so far, or the next rows and the line of each.
Item = int | tuple[pl.DataFrame, list[int]]
# Takes a file, declared types and a spool.
Reader = Callable[[Any, Mapping[str, str], Spool], Iterator[Item]]
_Rows = Iterator[tuple[int, dict[str, Any]]]


def json_lines(file: Any, declared: Mapping[str, str], spool: Spool) -> Iterator[Item]:
    """Read one JSON object a line.

    Args:
        file: open for reading bytes.
        declared: types that the steward has promised, by column.
        spool: for the copy.

    Raises:
        Unreadable: if a row is broken.
    """
    yield from _twice(file, _json_rows, typing_of.Inference(declared, texts=False), spool)


def csv_lines(file: Any, declared: Mapping[str, str], spool: Spool) -> Iterator[Item]:
    """Read values between commas, semicolons or tabs, with a header; arguments and errors as for `json_lines`."""
    csv.field_size_limit(2 * ex.MOST_TEXT_BYTES)
    yield from _twice(file, _csv_rows, typing_of.Inference(declared, texts=True), spool)


def inflated(file: Any, compression: str) -> Any:
    """Return what a compressed file holds, to be read piece by piece.

    Reading it raises OSError where the file is cut off, damaged, or not compressed so.
    """
    return pa.CompressedInputStream(pa.PythonFile(file, "r"), compression)


def _twice(
    file: Any, rows_of: Callable[[Iterator[bytes]], _Rows], inference: typing_of.Inference, spool: Spool
) -> Iterator[Item]:
    for count, (_, row) in enumerate(rows_of(_lines(spool.copy(_pieces(file)))), 1):
        inference.see(row)
        if count % ROWS_A_REPORT == 0:
            yield count
    types = inference.types()
    rows: list[dict[str, Any]] = []
    lines: list[int] = []
    held = 0
    for line, row in rows_of(_lines(spool.again())):
        rows.append(row)
        lines.append(line)
        held += sum(len(value) for value in row.values() if isinstance(value, str))
        if len(rows) == ROWS_A_REPORT or held > READ_BYTES:
            yield inference.frame(rows, lines, types), lines
            rows, lines, held = [], [], 0
    if rows:
        yield inference.frame(rows, lines, types), lines


def _pieces(file: Any) -> Iterator[bytes]:
    while piece := file.read(READ_BYTES):
        yield bytes(piece)


def _lines(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Yield lines with their ends, each of bounded length."""
    count, rest = 0, b""
    for piece in pieces:
        *whole, rest = (rest + piece).split(b"\n")
        for line in whole:
            yield line + b"\n"
        count += len(whole)
        if len(rest) > MOST_LINE_BYTES:
            raise Unreadable(f"line {count + 1}: longer than {MOST_LINE_BYTES} bytes", count + 1)
    if rest:
        yield rest


def _json_rows(lines: Iterator[bytes]) -> _Rows:
    for number, raw in enumerate(lines, 1):
        text = _utf8(raw, number)
        if text.strip():
            yield number, _json(text, number)


def _csv_rows(lines: Iterator[bytes]) -> _Rows:
    texts = (_utf8(raw, number) for number, raw in enumerate(lines, 1))
    first = next(texts, "")
    reader = csv.reader(itertools.chain([first], texts), delimiter=_delimiter(first), strict=True)
    try:
        # Of a table that is written down with its index, the index has no name.
        header = [name or f"column_{number}" for number, name in enumerate(next(reader, []))]
        if len(set(header)) < len(header):
            raise Unreadable("line 1: two columns have the same name", 1)
        for fields in reader:
            if not fields:
                continue
            if len(fields) != len(header):
                raise Unreadable(
                    f"line {reader.line_num}: {len(fields)} fields, and the header has {len(header)}", reader.line_num
                )
            yield reader.line_num, dict(zip(header, fields, strict=True))
    except csv.Error:
        raise Unreadable(f"line {reader.line_num}: not CSV", reader.line_num) from None


def _delimiter(header: str) -> str:
    """Return what lies between fields. Whoever writes commas in numbers has something else there, and so do tables."""
    unquoted = _QUOTED.sub("", header)
    return next((mark for mark in _DELIMITERS if mark in unquoted), _DELIMITERS[0])


def _utf8(raw: bytes, number: int) -> str:
    try:
        return raw.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError:
        raise Unreadable(f"line {number}: not UTF-8", number) from None


def _json(text: str, number: int) -> dict[str, Any]:
    try:
        row = _JSON.decode(text)
        if isinstance(row, dict):
            return {name: _flat(value) for name, value in row.items()}
    except json.JSONDecodeError as error:
        raise Unreadable(f"line {number}, character {error.colno}: not JSON", number) from None
    except (ValueError, RecursionError):
        # A number without a value (NaN, 1e999), one with thousands of digits, or brackets without end.
        raise Unreadable(f"line {number}: not JSON that this service reads", number) from None
    raise Unreadable(f"line {number}: not a JSON object", number)


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError
    return value


_JSON = json.JSONDecoder(parse_constant=_number, parse_float=_number)


def _flat(value: Any) -> Any:
    """Keep scalars; what is nested becomes its JSON text."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value
