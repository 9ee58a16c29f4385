"""Where rows come from: files of this machine or an object store by URL, and tables of databases by name.

What may be read is the operator's to say, not the steward's: a URL must lie under one of the prefixes that are
configured, as it is after symbolic links and `..` are followed, and never among the service's own files, whose keys
would otherwise be one registration away. Credentials of object stores and databases are in the service's environment;
none travels.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import fsspec
import polars as pl
from fsspec.implementations.arrow import ArrowFSWrapper
from pyarrow import fs

from murmura.api.dataset.v1 import dataset_pb2
from services.common.errors import is_full
from services.dataset import columns as typing_of
from services.dataset import formats, parquet
from services.dataset.columns import Unreadable
from services.dataset.databases import Databases
from services.dataset.vault import Vault

_ENDINGS = {
    "parquet": dataset_pb2.FILE_FORMAT_PARQUET,
    "csv": dataset_pb2.FILE_FORMAT_CSV,
    "tsv": dataset_pb2.FILE_FORMAT_CSV,
    "jsonl": dataset_pb2.FILE_FORMAT_JSON_LINES,
    "ndjson": dataset_pb2.FILE_FORMAT_JSON_LINES,
}
_FORMATS: dict[int, formats.Reader] = {
    dataset_pb2.FILE_FORMAT_JSON_LINES: formats.json_lines,
    dataset_pb2.FILE_FORMAT_CSV: formats.csv_lines,
    dataset_pb2.FILE_FORMAT_PARQUET: parquet.rows,
}
_STORES = ("s3", "gs")
# For how long a store that does not answer is tried again; Google's client alone would try for a quarter of an hour.
_PATIENCE = timedelta(seconds=30)


@dataclass(frozen=True)
class Stores:
    """How to reach object stores; credentials are found where their own clients look for them.

    Attributes:
        s3_endpoint: URL of an S3 service other than Amazon's; empty: Amazon's.
        s3_region: empty: as the environment or the store says.
        gcs_endpoint: host:port of a Google Cloud Storage emulator, which is asked without credentials; empty: Google's.
    """

    s3_endpoint: str = ""
    s3_region: str = ""
    gcs_endpoint: str = ""

    def open(self, scheme: str) -> Any:
        """Return the file system of a scheme."""
        if scheme == "file":
            return fsspec.filesystem("file")
        if scheme == "gs":
            given: dict[str, Any] = {"retry_time_limit": _PATIENCE}
            if self.gcs_endpoint:
                given |= {"endpoint_override": self.gcs_endpoint, "anonymous": True, "scheme": "http"}
            return ArrowFSWrapper(fs.GcsFileSystem(**given))
        asked: dict[str, Any] = {"region": self.s3_region} if self.s3_region else {}
        if self.s3_endpoint:
            scheme, _, host = self.s3_endpoint.rpartition("://")
            asked |= {"endpoint_override": host, "scheme": scheme or "https"}
        return ArrowFSWrapper(fs.S3FileSystem(connect_timeout=10, request_timeout=60, **asked))


@dataclass(frozen=True)
class Sources:
    """What stewards may register from.

    Attributes:
        allowed: prefixes of paths and URLs; `/` allows every file of this machine that is not kept out.
        kept_out: files and directories of this service, which nobody registers from.
        stores: how to reach object stores.
        databases: connections that the operator named.
    """

    allowed: Sequence[str] = ()
    kept_out: Sequence[Path] = ()
    stores: Stores = field(default_factory=Stores)
    databases: Databases = field(default_factory=Databases)

    def read(
        self, source: dataset_pb2.Source, unit_column: str, declared: Mapping[str, str], vault: Vault
    ) -> Iterator[int | pl.DataFrame]:
        """Read a source: yields the number of rows now and then, and the rows, piece by piece.

        All pieces have the same columns and types. Nothing counts before the last piece has come.

        Args:
            source: a file or a table.
            unit_column: the column of the privacy unit; a row without a unit is broken.
            declared: types that the steward has promised, by column.
            vault: where an encrypted copy may be kept meanwhile.

        Raises:
            Unreadable: if the source is missing, not allowed, or a row is broken; names a line and a column, never
                content.
        """
        spool = vault.spool()
        empty = True
        try:
            items = (
                self.databases.read(source.sql, declared)
                if source.WhichOneof("kind") == "sql"
                else self._file(source.file, declared, spool)
            )
            for item in items:
                if isinstance(item, int):
                    yield item
                    continue
                rows, lines = item
                if empty:
                    typing_of.check_wanted(rows.columns, unit_column, declared)
                    empty = False
                typing_of.check_rows(rows, lines, unit_column)
                yield rows
        finally:
            spool.close()
        if empty:
            raise Unreadable("there is no row in it")

    def _file(self, source: dataset_pb2.FileSource, declared: Mapping[str, str], spool: Any) -> Iterator[formats.Item]:
        scheme, path = locate(source.url)
        self._admit(scheme, path)
        reader, compression = _kind(source)
        try:
            with self.stores.open(scheme).open(path, "rb") as file:
                yield from reader(formats.inflated(file, compression) if compression else file, declared, spool)
        except (OSError, ImportError) as error:
            if is_full(error):
                raise  # no fault of the file: its copy has no room
            other = f", or is no whole {compression} file" if compression else ""
            raise Unreadable(f"the file cannot be opened by the dataset service{other}") from None

    def _admit(self, scheme: str, path: str) -> None:
        """Refuse what lies under no allowed prefix, or among the service's own files.

        Raises:
            Unreadable: the same for what is not allowed whether or not it exists.
        """
        inside = any(scheme == kind and _under(path, prefix) for kind, prefix in map(locate, self.allowed))
        own = scheme == "file" and any(_under(path, os.path.realpath(place)) for place in self.kept_out)
        if own or not inside:
            raise Unreadable("it is not among the places that the operator lets this service read (MURMURA_SOURCES)")


def locate(url: str) -> tuple[str, str]:
    """Return the scheme of a path or URL, and the path with nothing left in it that leads elsewhere.

    Raises:
        Unreadable: if it is of a kind that this service does not read.
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        if "::" in url or not url.startswith("/"):
            raise Unreadable("give an absolute path, or a URL that begins with file://, s3:// or gs://")
        return "file", os.path.realpath(url)
    if scheme == "file":
        parts = urlsplit(url)
        if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
            raise Unreadable("a file:// URL names an absolute path on the dataset service's own machine")
        return "file", os.path.realpath(unquote(parts.path))
    if scheme not in _STORES or "::" in rest:
        raise Unreadable("give an absolute path, or a URL that begins with file://, s3:// or gs://")
    # An object's name is taken as it is: a store knows no `..`, but what lies in between may.
    if any(part in ("", ".", "..") for part in rest.rstrip("/").split("/")):
        raise Unreadable("an object's URL is <scheme>://<bucket>/<key>, without empty, `.` or `..` parts")
    return scheme, rest.rstrip("/")


def _kind(source: dataset_pb2.FileSource) -> tuple[formats.Reader, str]:
    """Return who reads a file, and what it is compressed with; empty: with nothing.

    Raises:
        Unreadable: if its name and format do not say, or say what is not read.
    """
    name, _, last = source.url.lower().rpartition(".")
    compression = formats.COMPRESSIONS.get(last, "")
    ending = name.rpartition(".")[2] if compression else last
    file_format = source.format or _ENDINGS.get(ending, dataset_pb2.FILE_FORMAT_UNSPECIFIED)
    reader = _FORMATS.get(file_format)
    if reader is None:
        known = "name the file .parquet, .csv or .jsonl (the last two also with .gz, .bz2 or .zst behind)"
        raise Unreadable(f"the format is unknown; {known}, or set the format")
    if compression and reader is parquet.rows:
        raise Unreadable(f"Parquet is compressed within; unpack it, and register it without .{last}")
    return reader, compression


def _under(path: str, prefix: str) -> bool:
    return path == prefix or path.startswith(prefix.rstrip("/") + "/")
