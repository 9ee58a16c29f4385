"""When no room is left on the disk: refused with the reason, what was there stays, and afterwards all goes on."""

from __future__ import annotations

import contextlib
import os
import subprocess
import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest

from murmura.api.dataset.v1 import dataset_service_pb2 as pb
from murmura.api.ledger.v1 import ledger_service_pb2
from tests.support.dataset_services import Pair
from tests.support.notes import SECRETS, notes
from tests.support.refusals import error_info


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A disk of a few megabytes of its own."""
    disk = tmp_path / "disk"
    disk.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", disk], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no disk can be mounted here")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


@pytest.fixture
def pair(small: Path) -> Iterator[Pair]:
    """Both services, with all that they keep and their logs on the small disk."""
    with Pair(small).running() as made:
        yield made


@contextlib.contextmanager
def full(disk: Path, left: int = 0) -> Iterator[None]:
    """Leave no room on a disk, or little."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(os.sysconf("SC_PAGE_SIZE")))
    os.truncate(filler, filler.stat().st_size - left)
    try:
        yield
    finally:
        filler.unlink()


def test_what_cannot_be_written_is_refused_and_done_later(pair: Any, small: Path, refused: Any) -> None:
    kept = pair.register(pair.request(notes()))
    wanted = [pair.request(notes(units=50)), pair.request(notes(units=20_000))]
    update = pb.UpdatePolicyRequest(request_id=str(uuid.uuid4()), name=kept.name, policy=kept.policy)
    update.policy.analysts.append("bob@local")

    def change() -> Any:
        return pair.dataset.UpdatePolicy(update, metadata=pair.who("steward"), timeout=20).dataset

    with full(small, left=1 << 19):
        # There is room to begin, and none for the copy of the file.
        assert "room left on the disk" in refused(lambda: pair.register(wanted[1])).message
    with full(small):
        attempts = [*(partial(pair.register, request) for request in wanted), change, partial(pair.reserve, kept)]
        for attempt in attempts * 2:
            answer = refused(attempt)
            assert (answer.code, answer.reason) == (grpc.StatusCode.UNAVAILABLE, "DEPENDENCY_UNAVAILABLE")
            assert "room" in answer.message or "send the same request again" in answer.message.lower()
            assert not any(secret.encode() in answer.everything for secret in SECRETS)
        # Whoever asks is answered as long as that can be written down; lines of the log without room change nothing.
        account = ledger_service_pb2.GetAccountRequest(name=kept.account)
        for _ in range(200):
            try:
                pair.ledger.GetAccount(account, metadata=pair.who("analyst"), timeout=20)
            except grpc.RpcError as error:
                assert error_info(error)[0] == "DEPENDENCY_UNAVAILABLE"
    assert [pair.register(request).unit_count for request in wanted] == [50, 20_000]
    assert list(change().policy.analysts) == [*kept.policy.analysts, "bob@local"]
    assert pair.reserve(kept)
