"""Pages of a list: opaque tokens that say where the next page starts."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from typing import TypeVar

import grpc

from services.common.errors import MurmuraError

DEFAULT_SIZE = 100
T = TypeVar("T")


def page(items: Sequence[T], page_size: int, page_token: str) -> tuple[Sequence[T], str]:
    """Return one page of a list that is ordered the same way each time, and the token of the next."""
    start = start_of(page_token)
    stop = start + (page_size or DEFAULT_SIZE)
    return items[start:stop], token_for(stop) if stop < len(items) else ""


def token_for(start: int) -> str:
    """Return the token of a page that starts after so many items."""
    return base64.urlsafe_b64encode(f"from:{start}".encode()).decode()


def start_of(token: str) -> int:
    """Return after how many items a page starts; 0 without a token.

    Raises:
        MurmuraError: PAGE_TOKEN_INVALID.
    """
    if not token:
        return 0
    try:
        text = base64.urlsafe_b64decode(token.encode()).decode()
        return int(text.removeprefix("from:"))
    except (binascii.Error, ValueError, UnicodeDecodeError):
        raise MurmuraError(
            grpc.StatusCode.INVALID_ARGUMENT,
            "PAGE_TOKEN_INVALID",
            "The page token was not made by this list. Start again without one.",
        ) from None
