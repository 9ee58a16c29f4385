"""Files of every format that a dataset may be registered from, and what damage and malice make of them."""

from __future__ import annotations

import csv
import datetime as dt
import io
import json
import random
from collections.abc import Iterator
from decimal import Decimal
from itertools import product

import pyarrow as pa
import pyarrow.parquet as pq

SECRET = "Zanzibar"
UNIT = "patient"
_ROWS = [
    {
        UNIT: f"p{number // 2}",
        "age": 30 + number,
        "weight": 60.5 * number,
        "text": f"{SECRET} “{number}”, more\nlines" if number % 3 else None,
        "well": number % 2 == 0,
    }
    for number in range(40)
]
_PIECES = [
    b'"', b",", b";", b"\t", b"\n", b"\r", b"\x00", b"{", b"}", b"[", b" ", b"", b'""', b"1e999", b"NaN", b"-0",
    b"9" * 25, b"\\ud800", b"\xff", b"\xef\xbb\xbf", b"true", b"null", UNIT.encode(), b"9999-12-31T23:59:59-01:00",
]  # fmt: skip


def files() -> list[tuple[str, bytes]]:
    """Return whole files, and the ending of each one's name."""
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in _ROWS).encode()
    found = [("jsonl", lines), *(("csv", _csv(mark)) for mark in ",;\t"), *(("parquet", made) for made in _parquet())]
    for ending, kind in (("gz", "gzip"), ("bz2", "bz2"), ("zst", "zstd")):
        packed = pa.BufferOutputStream()
        with pa.CompressedOutputStream(packed, kind) as stream:
            stream.write(lines)
        found.append((f"jsonl.{ending}", packed.getvalue().to_pybytes()))
    return found


def damaged(content: bytes, chance: random.Random) -> bytes:
    """Return a file with a few bytes changed, lost, doubled or put in."""
    made = bytearray(content)
    for _ in range(chance.choice([1, 1, 2, 4, 16])):
        at = chance.randrange(len(made) + 1)
        match chance.randrange(6):
            case 0 | 1 if made:
                made[at % len(made)] ^= chance.choice([1 << chance.randrange(8), chance.randrange(1, 256)])
            case 2:
                made[at : at + chance.randrange(8)] = chance.choice(_PIECES)
            case 3:
                made[at:at] = chance.choice(_PIECES)
            case 4:
                del made[at : at + chance.randrange(1, 20)]
            case _:
                start = chance.randrange(len(made) + 1)
                made[at:at] = made[start : start + chance.randrange(30)]
    return bytes(made[: chance.randrange(len(made) + 1)] if chance.random() < 0.03 else made)


def _csv(mark: str) -> bytes:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(_ROWS[0]), delimiter=mark)
    writer.writeheader()
    writer.writerows(_ROWS)
    return out.getvalue().encode()


def _parquet() -> Iterator[bytes]:
    count = len(_ROWS)
    table = pa.table(
        {name: [row[name] for row in _ROWS] for name in _ROWS[0]}
        | {
            "seen": pa.array([dt.datetime(2024, 3, 1, 12)] * count, pa.timestamp("us", "UTC")),
            "born": [dt.date(1980, 1, 1)] * count,
            "dose": [Decimal("1.25")] * count,
            "drugs": [["aspirin", None]] * count,
            "doctor": [{"name": SECRET, "since": dt.datetime(2020, 1, 1)}] * count,
            "marks": pa.array([[("key", 1)]] * count, pa.map_(pa.string(), pa.int64())),
            "woken": [dt.time(6, 30)] * count,
            "ward": pa.array(["north"] * count).dictionary_encode(),
        }
    )
    for compression, dictionary, version in product(("none", "zstd"), (True, False), ("1.0", "2.0")):
        out = io.BytesIO()
        pq.write_table(table, out, compression=compression, use_dictionary=dictionary, data_page_version=version)
        yield out.getvalue()
