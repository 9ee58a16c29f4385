"""Every database that can keep a trainer's jobs, on real servers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from services.common.redis_client import TrustedRedis
from services.trainer.redis_database import RedisDatabase
from services.trainer.sqlite_database import SqliteDatabase
from services.trainer.store import Database
from tests.support.redis_server import BINARIES, RedisServer

KINDS = ["sqlite", *BINARIES]


class Databases:
    """Opens the same jobs anew at each call.

    Attributes:
        server: what keeps them; None where it is a file.
        superseded: how often an opening has found that there is a newer one.
    """

    def __init__(self, kind: str, directory: Path) -> None:
        self.server = RedisServer(BINARIES[kind], directory / "redis") if kind in BINARIES else None
        self.superseded = 0
        self._path = directory / "jobs.sqlite3"
        self._opened: list[Database] = []

    def __call__(self) -> Database:
        self._opened.append(self.on_redis() if self.server else SqliteDatabase(self._path))
        return self._opened[-1]

    def on_redis(self, port: int = 0, timeout_s: float = 5.0, **settings: float | str) -> RedisDatabase:
        """Open them, perhaps through a proxy."""
        assert self.server is not None
        redis = TrustedRedis(f"redis://127.0.0.1:{port or self.server.port}", "jobs", timeout_s=timeout_s)
        made = RedisDatabase(redis, self._note, **settings)  # type: ignore[arg-type]
        self._opened.append(made)
        return made

    def crash(self) -> None:
        """End what keeps the jobs as a power cut would, and start it again."""
        if self.server is not None:
            self.server.kill()
            self.server.start()

    def close(self) -> None:
        for each in self._opened:
            each.close()
        if self.server is not None:
            self.server.kill()

    def _note(self) -> None:
        self.superseded += 1


class Failing:
    """A database that fails at one of its writes, before or after it is done.

    Args:
        database: that is asked.
        at: which write, from 1.
        done: whether it is done all the same.
        failure: raises.

    Attributes:
        writes: so far.
    """

    def __init__(self, database: Database, at: int, done: bool, failure: Callable[[], None]) -> None:
        self._database, self._at, self._done, self._failure = database, at, done, failure
        self.writes = 0
        self.read, self.unfinished = database.read, database.unfinished
        self.newest_first, self.close = database.newest_first, database.close
        self.add, self.update = self._failing(database.add), self._failing(database.update)
        self.remove, self.first_body = self._failing(database.remove), self._failing(database.first_body)

    def _failing(self, write: Callable[..., object]) -> Callable[..., object]:
        def instead(*arguments: object) -> object:
            self.writes += 1
            if self.writes != self._at:
                return write(*arguments)
            if self._done:
                write(*arguments)
            self._failure()
            raise AssertionError("a failure raises")

        return instead
