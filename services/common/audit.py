"""The audit log: each decision of a service, for whoever must answer for it later.

A line of JSON says who called what on which resource, whether that was allowed and if not for which reason, when, and
under which request id. It never holds what a message says: a resource's name is taken from those fields alone whose
rules in the contracts are the pattern of a name, and only where it has that form.

Lines of refusals and of writes are in the file before the caller gets the answer; those of reads follow together, soon.
The file is only ever appended to. Once it was moved away, the next line goes to a new one of the same name.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import structlog
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from murmura.api.common.v1 import rules_pb2
from services.common.calls import Call, CallInterceptor
from services.common.errors import dependency_unavailable

FLUSH_S = 0.05
REOPEN_S = 1.0
# While the disk is full, refusals go on; this many lines of them are kept.
MOST_WAITING = 10_000
_READS = re.compile(r"/(Get|List|Watch|Plan|Describe|Price|Calibrate|Verify|Count|Check|Heartbeat|ServerReflection)")
_NAME = re.compile(r"\(?[a-z][A-Za-z|]*\)?/")
# A dataset's name is made of this when it is registered.
_MADE_OF = {"dataset_id": "datasets/{}"}
# The service failed at what it had allowed.
_FAILURES = frozenset({"CANCELLED", "DEADLINE_EXCEEDED", "INTERNAL", "UNAVAILABLE", "UNKNOWN"})
_quote = json.encoder.encode_basestring
_log = structlog.get_logger()


class AuditFile:
    """Appends lines to a file that may be moved away at any time.

    Args:
        path: the file; made if it is missing, readable by its owner only.

    Raises:
        OSError: if it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._waiting: list[str] = []
        self._broken = self._torn = False
        self._descriptor, self._inode = self._opened()
        self._look_at = time.monotonic() + REOPEN_S

    def write(self, line: str) -> None:
        """Append a line now, after those that wait.

        Raises:
            OSError: if that fails; the line waits, as long as not too many do.
        """
        if len(self._waiting) < MOST_WAITING:
            self._waiting.append(line)
        self.flush()

    def write_soon(self, line: str) -> None:
        """Append a line within a moment."""
        self._waiting.append(line)
        if len(self._waiting) == 1:
            asyncio.get_running_loop().call_later(FLUSH_S, self._flush_quietly)

    def flush(self) -> None:
        """Append what waits.

        Raises:
            OSError: if that fails; what waits is kept.
        """
        if not self._waiting:
            return
        try:
            self._follow()
            data = ("\n" * self._torn + "\n".join(self._waiting) + "\n").encode()
            written = os.write(self._descriptor, data)
            self._torn = written < len(data)
            if self._torn:
                # The disk filled up in the middle: all of it comes again, on lines of its own.
                raise OSError("written in part")
        except OSError:
            self._broken = True
            raise
        self._waiting.clear()
        self._broken = False

    def require(self) -> None:
        """Try again if the last line could not be written.

        Raises:
            OSError: if nothing can be written.
        """
        if self._broken:
            self._reopen()
            self.flush()

    def close(self) -> None:
        """Write what waits and close the file."""
        self._flush_quietly()
        os.close(self._descriptor)

    def _flush_quietly(self) -> None:
        try:
            self.flush()
        except OSError as error:
            _log.error("audit log not written", why=error.strerror or str(error))

    def _follow(self) -> None:
        now = time.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + REOPEN_S
        try:
            moved = self._path.stat().st_ino != self._inode
        except FileNotFoundError:
            moved = True
        if moved:
            self._reopen()

    def _reopen(self) -> None:
        descriptor, inode = self._opened()
        os.close(self._descriptor)
        self._descriptor, self._inode = descriptor, inode

    def _opened(self) -> tuple[int, int]:
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        return descriptor, os.fstat(descriptor).st_ino


class Audit(CallInterceptor):
    """Writes the line of each decision.

    Args:
        service: whose decisions these are.
        file: takes the lines.
    """

    def __init__(self, service: str, file: AuditFile) -> None:
        self._service = service
        self._file = file

    def before(self, call: Call) -> None:
        """Refuse to do anything that could not be written down.

        Raises:
            MurmuraError: UNAVAILABLE while the audit log cannot be written.
        """
        try:
            self._file.require()
        except OSError:
            raise dependency_unavailable(
                "audit log",
                "The audit log cannot be written, so nothing is done. The operator must make room for it.",
                retry_after_s=5,
            ) from None

    def decided(self, call: Call) -> None:
        """Write the line."""
        decision = "allowed" if call.outcome == "OK" else "failed" if call.outcome in _FAILURES else "denied"
        if decision == "failed" and "audited" in call.facts:
            return  # a stream that broke off; that it was allowed stands in the file already
        call.facts["audited"] = decision
        facts = call.facts
        resources = resources_of(call.request) if call.request is not None else ()
        # By hand, since every call waits for it: an encoder takes several times as long.
        line = (
            f'{{"time":"{datetime.now(UTC).isoformat(timespec="milliseconds")}","service":"{self._service}",'
            f'"subject":{_quote(facts.get("subject", ""))},"by":"{facts.get("by", "")}","method":{_quote(call.method)},'
            f'"resources":[{",".join(map(_quote, resources))}],"decision":"{decision}","code":"{call.outcome}",'
            f'"reason":"{call.reason}","request_id":{_quote(facts.get("call_id", ""))}}}'
        )
        if decision == "allowed" and _is_read(call.method):
            self._file.write_soon(line)
            return
        try:
            self._file.write(line)
        except OSError as error:
            _log.error("audit log not written", why=error.strerror or str(error))
            if decision == "allowed":
                raise


def resources_of(message: Any) -> list[str]:
    """Return the names of what a request is about, as far as they have the form of a name."""
    names = []
    for path, whole, made in _names(message.DESCRIPTOR):
        value = message
        for field in path:
            value = getattr(value, field)
        if value and whole(value):
            names.append(made.format(value))
    return names


@cache
def _is_read(method: str) -> bool:
    return _READS.search(method) is not None


@cache
def _names(descriptor: Descriptor) -> list[tuple[tuple[str, ...], Callable[[str], Any], str]]:
    """Return where a request can name its resource: its own fields first, then those of messages inside."""
    found: list[tuple[tuple[str, ...], Callable[[str], Any], str]] = []
    inside: list[tuple[str, Descriptor]] = []
    for field in descriptor.fields:
        if field.is_repeated:
            continue
        if field.type == FieldDescriptor.TYPE_STRING:
            pattern = field.GetOptions().Extensions[rules_pb2.rules].pattern
            if pattern and (field.name in _MADE_OF or _NAME.match(pattern)):
                found.append(((field.name,), re.compile(pattern).fullmatch, _MADE_OF.get(field.name, "{}")))
        elif field.message_type is not None and field.message_type.full_name.startswith("murmura."):
            inside.append((field.name, field.message_type))
    for name, kind in inside:
        if not _recursive(kind):
            found += [((name, *path), whole, made) for path, whole, made in _names(kind)]
    return found


@cache
def _recursive(descriptor: Descriptor) -> bool:
    """Say whether a message can hold one of its own kind, at any depth: an expression does, and names no resource."""
    waiting, seen = [descriptor], set()
    while waiting:
        for field in waiting.pop().fields:
            kind = field.message_type
            if kind is not None and kind.full_name == descriptor.full_name:
                return True
            if kind is not None and kind.full_name not in seen:
                seen.add(kind.full_name)
                waiting.append(kind)
    return False
