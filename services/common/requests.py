"""Request ids (AIP-155): the same id and body give the first answer again; another body is refused."""

from __future__ import annotations

import hashlib

import grpc
from google.protobuf.message import Message

from services.common.errors import MurmuraError


def body_hash(request: Message) -> str:
    """Return the digest of a request without its id and its witness.

    The witness says what the caller has seen, not what it asks for: a retry may carry a newer one.
    """
    copy = type(request)()
    copy.CopyFrom(request)
    for volatile in ("request_id", "witness"):
        if volatile in copy.DESCRIPTOR.fields_by_name:
            copy.ClearField(volatile)
    text = copy.DESCRIPTOR.full_name.encode() + b"\0" + copy.SerializeToString(deterministic=True)
    return hashlib.sha256(text).hexdigest()


def reused(request_id: str) -> MurmuraError:
    """Return the refusal of an id that came before with another body."""
    return MurmuraError(
        grpc.StatusCode.ALREADY_EXISTS,
        "REQUEST_ID_REUSED",
        "This request id was used before for something else. Make a new one for a new request.",
        {"request_id": request_id},
    )


def frame_digest(frame: Message) -> str:
    """Return the digest by which a job token names a frame: the trainer signs it, the dataset service compares."""
    return hashlib.sha256(frame.SerializeToString(deterministic=True)).hexdigest()
