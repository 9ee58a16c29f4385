"""The artifact store, read: what the trainer published, and a verified copy of it.

The store is shared and may be written by others, so nothing in it is believed before the manifest's
signature holds, and nothing is served from it: files are copied to a directory of this service that
is named by the SHA-256 of the manifest, checked there, and renamed into place when they are
complete. New weights therefore never appear under an old path.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import fsspec
from google.protobuf import json_format

from murmura.api.common.v1 import privacy_pb2
from services.inference.verification import CONFIG, WEIGHTS, Rejected, verify_digest

_ID = re.compile(r"[a-z0-9-]{1,63}")
_MOST_MANIFEST_BYTES = 1 << 20
_MOST_SIGNATURE_BYTES = 1 << 10
_COPIED = (CONFIG, WEIGHTS)


@dataclass(frozen=True)
class Manifest:
    """What the trainer says of an adapter; believed only after its signature was checked.

    Attributes:
        raw: the exact bytes that are signed.
        signature: Ed25519.
        adapter: `adapters/<id>`.
        base_model: `baseModels/<id>`.
        owner: subject of the analyst who trained it.
        training_job: `trainingJobs/<id>`.
        create_time: RFC 3339.
        digests: name of a file under `adapter/` to its SHA-256, hexadecimal.
        statement: what is promised.
    """

    raw: bytes
    signature: bytes
    adapter: str
    base_model: str
    owner: str
    training_job: str
    create_time: str
    digests: dict[str, str]
    statement: privacy_pb2.PrivacyStatement

    @property
    def sha256(self) -> str:
        """The digest by which this adapter's content is known."""
        return hashlib.sha256(self.raw).hexdigest()


class ArtifactStore:
    """The trainer's published adapters.

    Args:
        url: a directory or an fsspec URL.
        copies: a directory of this service alone.
        max_bytes: greatest size of one file.
    """

    def __init__(self, url: str, copies: Path, max_bytes: int) -> None:
        self._files, self._root = fsspec.core.url_to_fs(url)
        self._copies = copies
        self._max_bytes = max_bytes
        copies.mkdir(parents=True, exist_ok=True, mode=0o700)

    def manifest(self, name: str) -> Manifest | None:
        """Read what is published under `adapters/<id>`; None if nothing is.

        Raises:
            Rejected: if it cannot be understood.
        """
        if not _ID.fullmatch(name.removeprefix("adapters/")):
            return None
        try:
            raw = self._read(name, "manifest.json", _MOST_MANIFEST_BYTES)
            signature = self._read(name, "manifest.sig", _MOST_SIGNATURE_BYTES)
        except FileNotFoundError:
            return None
        return parse_manifest(raw, signature)

    def copy(self, manifest: Manifest, verify: Callable[[Path], None]) -> Path:
        """Copy an adapter's files, check them, and return the directory that holds them.

        Args:
            manifest: its signature has been checked.
            verify: raises Rejected unless the directory may be served.

        Raises:
            Rejected: if a file is missing, differs from the manifest, or `verify` refuses.
        """
        place = self.copy_of(manifest.sha256)
        if place.is_dir():
            self._check(manifest, place)
            verify(place)
            return place
        temporary = Path(tempfile.mkdtemp(prefix=".copying-", dir=self._copies))
        try:
            for file in _COPIED:
                self._fetch(manifest.adapter, f"adapter/{file}", temporary / file)
            self._check(manifest, temporary)
            verify(temporary)
            temporary.rename(place)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return place

    def copy_of(self, digest: str) -> Path:
        """Return the directory for the content of this digest, whether it exists or not."""
        return self._copies / digest

    def holds(self, digest: str) -> bool:
        """Say whether there is a copy of this digest; what is in it was checked when it was made."""
        return all((self.copy_of(digest) / file).exists() for file in _COPIED)

    def forget(self, digest: str) -> None:
        """Remove a copy; the store keeps the original."""
        shutil.rmtree(self.copy_of(digest), ignore_errors=True)

    def _check(self, manifest: Manifest, directory: Path) -> None:
        for file in _COPIED:
            digest = manifest.digests.get(file)
            if digest is None:
                raise Rejected("digest", f"its manifest does not name {file}")
            verify_digest(directory / file, digest)

    def _path(self, name: str, file: str) -> str:
        return f"{self._root}/{name.removeprefix('adapters/')}/{file}"

    def _read(self, name: str, file: str, most: int) -> bytes:
        with self._files.open(self._path(name, file), "rb") as source:
            content: bytes = source.read(most + 1)
        if len(content) > most:
            raise Rejected("size", f"{file} is larger than {most} bytes")
        return content

    def _fetch(self, name: str, file: str, target: Path) -> None:
        left = self._max_bytes
        try:
            with self._files.open(self._path(name, file), "rb") as source, target.open("xb") as out:
                while block := source.read(1 << 20):
                    left -= len(block)
                    if left < 0:
                        raise Rejected("size", f"{file} is larger than {self._max_bytes} bytes")
                    out.write(block)
                out.flush()
                os.fsync(out.fileno())
        except FileNotFoundError:
            raise Rejected("digest", f"{file} is missing from the artifact store") from None


def parse_manifest(raw: bytes, signature: bytes) -> Manifest:
    """Read a manifest's members.

    Raises:
        Rejected: if one is missing or of another kind.
    """
    try:
        members: Any = json.loads(raw)
        texts = {name: members[name] for name in ("adapter", "base_model", "owner", "training_job", "create_time")}
        digests = dict(members["files"])
        if not all(isinstance(text, str) for text in (*texts.values(), *digests, *digests.values())):
            raise TypeError
        datetime.fromisoformat(texts["create_time"])
        statement = json_format.ParseDict(members["statement"], privacy_pb2.PrivacyStatement())
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, json_format.ParseError):
        raise Rejected("manifest", "its manifest cannot be understood") from None
    return Manifest(raw, signature, digests=digests, statement=statement, **texts)
