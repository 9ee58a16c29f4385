"""Who holds the key that wraps the data keys: a file of this service, or the transit engine of Vault or OpenBao.

With the transit engine no key that opens a dataset ever lies in a file here: each data key is wrapped and unwrapped by
a call, which the key's holder can watch, refuse, and end for good. The name of what a key opens is authenticated with
it, so a wrapped key cannot be laid beside another dataset.
"""

from __future__ import annotations

import base64
import os
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import hvac
import requests
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from services.common.addresses import believable
from services.common.files import token_in, write
from services.dataset.sealing import KEY_BITS, Sealed, new_key

_KEY_BYTES = KEY_BITS // 8
# How what a transit engine has wrapped begins.
_WRAPPED = "vault:"
# What comes of an answer that is no transit engine's, such as the page of a proxy that wants someone to sign in.
_NO_ANSWER = (ValueError, TypeError, LookupError, AttributeError, RecursionError)
_NONCE_BYTES = 12
_TRANSIT_S = 10.0


class HolderAway(Exception):
    """The key's holder does not answer, or refuses this service."""


class Keys(Protocol):
    """Wraps keys."""

    holder: str

    def wrap(self, key: bytes, name: str) -> bytes:
        """Return a key as only `unwrap` with the same name opens it."""

    def unwrap(self, wrapped: bytes, name: str) -> bytes:
        """Return a key that was wrapped.

        Raises:
            Sealed: if it was wrapped by another key, or for another name.
            HolderAway: if whoever wraps cannot be asked.
        """


class FileKeys:
    """Wraps keys with the first key in a file, and unwraps with any of them.

    There are several only while the first takes over from the others (`rewrap.py`). The file is read at each call, so
    that a service that runs follows.

    Args:
        path: of keys of 32 bytes.
        may_make: whether one is made where there is no file.

    Raises:
        Sealed: if it is missing and must not be made, or holds no keys.
    """

    def __init__(self, path: Path, *, may_make: bool) -> None:
        self.holder = path.name
        self._path = path
        if not path.exists():
            if not may_make:
                raise Sealed(f"{path.name} is missing and there are encrypted datasets: restore it from its backup")
            write(path, new_key())
        self._ciphers()

    def wrap(self, key: bytes, name: str) -> bytes:
        """Return a key as only `unwrap` with the same name opens it.

        Raises:
            HolderAway: if the file is gone.
        """
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._ciphers()[0].encrypt(nonce, key, name.encode())

    def unwrap(self, wrapped: bytes, name: str) -> bytes:
        """Return a key that was wrapped.

        Raises:
            Sealed: if it was wrapped by another key, or for another name.
            HolderAway: if the file is gone.
        """
        for cipher in self._ciphers():
            with suppress(InvalidTag, ValueError):
                return cipher.decrypt(wrapped[:_NONCE_BYTES], wrapped[_NONCE_BYTES:], name.encode())
        raise Sealed(name)

    def renew(self) -> None:
        """Put a fresh key before those in the file: it wraps from now on."""
        write(self._path, new_key() + self._path.read_bytes())

    def retire(self) -> None:
        """Forget all keys but the first."""
        write(self._path, self._path.read_bytes()[:_KEY_BYTES])

    def _ciphers(self) -> list[AESGCM]:
        try:
            held = self._path.read_bytes()
        except OSError:
            raise HolderAway(self.holder) from None
        if not held or len(held) % _KEY_BYTES:
            raise Sealed(f"{self.holder} is damaged: restore it from its backup")
        return [AESGCM(held[at : at + _KEY_BYTES]) for at in range(0, len(held), _KEY_BYTES)]


class TransitKeys:
    """Wraps keys with the transit engine of HashiCorp Vault or OpenBao; the key must be an `aes256-gcm96` one.

    Args:
        url: of the server.
        key: its name in the engine.
        token_file: holds a token that may encrypt and decrypt with it; read at each call, so that it may be renewed.
        mount: where the engine is mounted.
        authority: PEM file of the server's certificate authority; None: the machine's own.

    Raises:
        ValueError: if keys would travel in the clear.
    """

    def __init__(self, url: str, key: str, token_file: Path, mount: str, authority: Path | None) -> None:
        if not believable(url):
            raise ValueError("must be an https:// URL, or one of this machine: keys travel there")
        self.holder = f"the transit key {key!r}"
        self._url, self._key, self._mount = url, key, mount
        self._token_file = token_file
        self._verify: Any = str(authority) if authority else True

    def wrap(self, key: bytes, name: str) -> bytes:
        """Return a key as only `unwrap` with the same name opens it.

        Raises:
            HolderAway: if the server cannot be asked.
        """
        wrapped = self._call("encrypt_data", name, "ciphertext", plaintext=base64.b64encode(key).decode())
        if not wrapped.startswith(_WRAPPED):
            # Kept, it would be a key that nobody can open again.
            raise HolderAway(self.holder)
        return wrapped.encode()

    def unwrap(self, wrapped: bytes, name: str) -> bytes:
        """Return a key that was wrapped.

        Raises:
            Sealed: if it was wrapped by another key, or for another name.
            HolderAway: if the server cannot be asked.
        """
        if not wrapped.startswith(_WRAPPED.encode()):
            raise Sealed(name)
        answer = self._call("decrypt_data", name, "plaintext", ciphertext=wrapped.decode("ascii", "replace"))
        try:
            key = base64.b64decode(answer, validate=True)
        except ValueError:
            key = b""
        if len(key) != _KEY_BYTES:
            raise HolderAway(self.holder)
        return key

    def _call(self, method: str, name: str, member: str, **values: str) -> str:
        """Make a call; returns a member of its answer's data."""
        try:
            token = token_in(self._token_file)
            client = hvac.Client(url=self._url, token=token, verify=self._verify, timeout=_TRANSIT_S)
            associated = base64.b64encode(name.encode()).decode()
            try:
                answer = getattr(client.secrets.transit, method)(
                    self._key, mount_point=self._mount, associated_data=associated, **values
                )
            finally:
                client.adapter.close()
            found = answer["data"][member]
        except hvac.exceptions.InvalidRequest as refusal:
            # The engine says in a list what it refuses; a proxy on the way to it does not.
            raise Sealed(name) if refusal.errors else HolderAway(self.holder) from None
        except (hvac.exceptions.VaultError, requests.RequestException, OSError, *_NO_ANSWER):
            raise HolderAway(self.holder) from None
        if not isinstance(found, str):
            raise HolderAway(self.holder)
        return found
