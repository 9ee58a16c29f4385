"""What a worker brings at its end: an adapter's files, and what was measured and attacked, if that was asked for."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc

from murmura.api.trainer.v1 import trainer_pb2
from murmura.api.trainer.v1 import trainer_service_pb2 as pb
from services.common.errors import MurmuraError, invalid
from services.common.files import sync
from services.trainer.artifacts import MOST_BYTES, UnsoundAdapter, check
from services.trainer.store import Record

MOST_ROC_POINTS = 200


def measured(first: pb.UploadAdapterRequest, record: Record) -> tuple[float, float] | None:
    """Return what an upload says was measured: something if and only if that was asked and paid for."""
    if first.HasField("evaluation") != record.plan.HasField("evaluation"):
        raise invalid("evaluation", "must be set if and only if the assignment asks for it")
    if not first.HasField("evaluation"):
        return None
    sums = first.evaluation.loss, first.evaluation.units
    if not all(map(math.isfinite, sums)):
        raise invalid("evaluation", "must be finite")
    return sums


def audit(first: pb.UploadAdapterRequest, record: Record) -> trainer_pb2.Audit | None:
    """Return what an upload says came of its canaries: something if and only if some were planted."""
    if first.HasField("audit") != record.plan.HasField("canaries"):
        raise invalid("audit", "must be set if and only if the assignment has canaries")
    if not first.HasField("audit"):
        return None
    numbers = [value for _, value in first.audit.ListFields() if isinstance(value, float)]
    if not all(map(math.isfinite, numbers)) or len(first.audit.roc) > MOST_ROC_POINTS:
        raise invalid("audit", f"must hold finite numbers, and at most {MOST_ROC_POINTS} points of a ROC curve")
    return first.audit


async def receive(first: Any, rest: AsyncIterator[Any], directory: Path) -> None:
    """Write the files of an upload and check that they are an adapter."""
    await asyncio.to_thread(directory.mkdir, parents=True, mode=0o700)
    total, out = 0, None
    try:
        message: Any = first
        while message is not None:
            if message.file_name:
                if out is not None:
                    out.close()
                # The contract's rules allow two names only, so no path can come in here.
                out = (directory / message.file_name).open("xb")
            if message.data:
                if out is None:
                    raise invalid("file_name", "must be set before data")
                total += len(message.data)
                if total > MOST_BYTES:
                    raise invalid("data", f"an adapter has at most {MOST_BYTES} bytes")
                out.write(message.data)
            message = await anext(rest, None)
    except FileExistsError:
        raise invalid("file_name", "came twice") from None
    finally:
        if out is not None:
            out.close()
    try:
        await asyncio.to_thread(check, directory)
    except UnsoundAdapter as problem:
        raise MurmuraError(
            grpc.StatusCode.INVALID_ARGUMENT,
            "ADAPTER_REJECTED",
            f"The upload is no sound adapter: the check of its {problem} failed.",
            {"adapter": "", "check": str(problem)},
        ) from None


def keep(incoming: Path, staged: Path) -> None:
    """Move an upload to where the publication finds it, through a power cut too."""
    for path in (*incoming.iterdir(), incoming):
        sync(path)
    incoming.rename(staged)
    sync(staged.parent)
