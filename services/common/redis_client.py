"""A connection to a Redis server that may keep what must not be forgotten; the only module that imports `redis`.

Every connection is vetted before a command passes through it: a server that was failed over or configured anew in the
meantime is not the one that was trusted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import urlsplit

import redis
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from services.common.redis_checks import NEEDED, RedisUnusable, complaints, parse_info

_T = TypeVar("_T")


class TrustedRedis:
    """A Redis server.

    Args:
        url: `redis://`, `rediss://` or `unix://`, without a password.
        keeps: what it is for, for its refusal: "the journal".
        password: of the URL's user, or of the default user.
        timeout_s: for connecting, and for an answer.

    Attributes:
        client: for commands, each of them inside `do`.

    Raises:
        RedisUnusable: if the server does not answer, or may not be trusted.
    """

    def __init__(self, url: str, keeps: str, password: str | None = None, timeout_s: float = 5.0) -> None:
        parts = urlsplit(url)
        self._where = parts.path if parts.scheme == "unix" else f"{parts.hostname}:{parts.port or 6379}"
        self._keeps = keeps
        # Commands answer at once or later, says redis-py; with this client it is at once.
        self.client: Any = redis.Redis.from_url(
            url,
            password=password,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            protocol=2,
            # Once more, at once: a connection that idled while the server restarted is no trouble. So every command
            # must be one that does no harm when it is sent twice.
            retry=Retry(ConstantBackoff(0.05), 1),
            redis_connect_func=self._vet,
        )
        try:
            self.do(self.client.ping)
        except RedisUnusable:
            self.close()
            raise

    def do(self, command: Callable[[], _T]) -> _T:
        """Give a command and return its answer.

        Raises:
            RedisUnusable: if there was none; the command may have been carried out or not.
        """
        try:
            return command()
        except redis.RedisError as error:
            # What is wrong may be the server and not the command (it became a replica, say): vet it again.
            self.client.connection_pool.disconnect(inuse_connections=False)
            raise RedisUnusable(f"Redis at {self._where} cannot be used: {str(error).rstrip('.')}.") from error

    def close(self) -> None:
        """Close the connections."""
        self.client.connection_pool.disconnect()

    def _vet(self, connection: Any) -> None:
        """Refuse a connection to a server that may not be trusted. Runs on each before anything else does."""
        try:
            connection.on_connect()
            info = parse_info(_ask(connection, "INFO").decode())
            config = {name: _setting(connection, name) for name in NEEDED}
            if found := complaints(config, info):
                raise RedisUnusable(f"Redis at {self._where} may not keep {self._keeps}. {' '.join(found)}")
        except BaseException:
            # redis-py would keep an open connection and never vet it again.
            connection.disconnect()
            raise


def _ask(connection: Any, *words: str) -> Any:
    connection.send_command(*words)
    return connection.read_response()


def _setting(connection: Any, name: str) -> str:
    answer = _ask(connection, "CONFIG", "GET", name)
    return answer[1].decode() if answer else "unknown"
