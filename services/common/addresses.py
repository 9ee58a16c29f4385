"""Which addresses stay on this machine, and which URLs can be believed."""

from __future__ import annotations

from urllib.parse import urlsplit

LOOPBACK = ("localhost", "127.0.0.1", "::1")


def believable(url: str) -> bool:
    """Say whether what is sent to a URL, and what comes from it, is safe on its way: TLS, or this machine."""
    parts = urlsplit(url)
    return bool(parts.hostname) and (parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in LOOPBACK))
