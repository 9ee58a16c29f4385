"""Jobs in Redis, for deployments whose trainer may come back on another machine.

Each write is one script. The first thing that a script looks at is the epoch: whoever opens the database begins a new
one, and from then on nobody who opened it before can write. So a trainer that was cut off, and does not know yet that
another has taken its place, changes nothing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any, TypeVar

import structlog

from services.common.errors import MurmuraError, dependency_unavailable
from services.common.redis_checks import RedisUnusable
from services.common.redis_client import TrustedRedis
from services.trainer.jobs import TERMINAL, Job
from services.trainer.store import JobExists, Record, facts_of, record_of

# Whoever waits for a server that is away keeps everybody else waiting; so after a failure it is left alone for a while.
QUIET_S = 5.0
RECORDS_IN_ONE_READ = 500
_PARTS = ("facts", "body", "spec", "plan")
_T = TypeVar("_T")
_log = structlog.get_logger()

# In each script KEYS are the epoch, the job, all jobs, those that are not over, the number of the newest, the requests.
# ARGV begins with the caller's epoch. Values are compared as text. A script that has begun to write is never broken off
# for want of memory, and reaches the disk whole.
_GUARD = "if redis.call('GET', KEYS[1]) ~= ARGV[1] then return -1 end\n"
_ADD = (
    _GUARD
    + """
if redis.call('EXISTS', KEYS[2]) == 1 then
    if redis.call('HGET', KEYS[2], 'facts') == ARGV[4] then return 1 end
    return 0
end
local number = redis.call('INCR', KEYS[5])
redis.call('HSET', KEYS[2], 'facts', ARGV[4], 'body', ARGV[5], 'spec', ARGV[6], 'plan', ARGV[7])
redis.call('ZADD', KEYS[3], number, ARGV[2])
if ARGV[3] == '0' then redis.call('ZADD', KEYS[4], number, ARGV[2]) end
return 1
"""
)
_UPDATE = (
    _GUARD
    + """
if redis.call('EXISTS', KEYS[2]) == 0 then return 1 end
redis.call('HSET', KEYS[2], 'facts', ARGV[4])
if ARGV[3] == '1' then redis.call('ZREM', KEYS[4], ARGV[2]) end
return 1
"""
)
_REMOVE = (
    _GUARD
    + """
redis.call('DEL', KEYS[2])
redis.call('ZREM', KEYS[3], ARGV[2])
redis.call('ZREM', KEYS[4], ARGV[2])
return 1
"""
)
_FIRST_BODY = (
    _GUARD
    + """
redis.call('HSETNX', KEYS[6], ARGV[2], ARGV[3])
return redis.call('HGET', KEYS[6], ARGV[2])
"""
)


class RedisDatabase:
    """Jobs in a Redis server; see `store.Database`.

    Args:
        redis: the server.
        superseded: is called when a write finds that another trainer has opened the database since.
        prefix: of the keys; two deployments in one server need two. Nothing expires.
        quiet_s: for which a server that did not answer is not asked again.

    Raises:
        RedisUnusable: if the server does not answer.
    """

    def __init__(
        self,
        redis: TrustedRedis,
        superseded: Callable[[], None],
        prefix: str = "murmura:trainer",
        quiet_s: float = QUIET_S,
    ) -> None:
        self._redis, self._superseded, self._prefix, self._quiet_s = redis, superseded, prefix, quiet_s
        self._client = redis.client
        self._away_until = 0.0
        self._epoch = str(redis.do(lambda: self._client.incr(f"{prefix}:epoch")))

    def add(self, record: Record) -> None:
        """Write a new job."""
        job = record.job
        parts = (facts_of(job), record.body_hash, record.spec.SerializeToString(), record.plan.SerializeToString())
        if not self._write(_ADD, job.job_id, job.job_id, int(job.state in TERMINAL), *parts):
            raise JobExists

    def update(self, job: Job) -> None:
        """Write where a job stands."""
        self._write(_UPDATE, job.job_id, job.job_id, int(job.state in TERMINAL), facts_of(job))

    def remove(self, job_id: str) -> None:
        """Forget a job."""
        self._write(_REMOVE, job_id, job_id)

    def first_body(self, subject: str, request_id: str, body_hash: str) -> str:
        """Note someone's request and return the digest of the body that its id first came with."""
        return str(self._write(_FIRST_BODY, "", json.dumps([subject, request_id]), body_hash).decode())

    def read(self, job_id: str) -> Record | None:
        """Return a job, or None."""
        return _record(self._do(lambda: self._client.hmget(self._job(job_id), _PARTS)))

    def unfinished(self) -> list[Record]:
        """Return the jobs that are not over, oldest first."""
        return self._all("unfinished")

    def newest_first(self) -> list[Record]:
        """Return all jobs."""
        return self._all("jobs")[::-1]

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()

    def _all(self, which: str) -> list[Record]:
        ids: list[bytes] = self._do(lambda: self._client.zrange(f"{self._prefix}:{which}", 0, -1))
        found: list[Record | None] = []
        for first in range(0, len(ids), RECORDS_IN_ONE_READ):
            pipeline = self._client.pipeline(transaction=False)
            for job_id in ids[first : first + RECORDS_IN_ONE_READ]:
                pipeline.hmget(self._job(job_id.decode()), _PARTS)
            found += map(_record, self._do(pipeline.execute))
        return [record for record in found if record is not None]

    def _job(self, job_id: str) -> str:
        return f"{self._prefix}:job:{job_id}"

    def _write(self, script: str, job_id: str, *values: object) -> Any:
        """Run a script; it may be sent twice."""
        names = [f"{self._prefix}:{name}" for name in ("jobs", "unfinished", "number", "requests")]
        keys = [f"{self._prefix}:epoch", self._job(job_id), *names]
        answer = self._do(lambda: self._client.eval(script, len(keys), *keys, self._epoch, *values))
        if answer == -1:
            self._superseded()
            raise _unavailable("Another trainer has taken over. Send the same request again: it is done once.")
        return answer

    def _do(self, command: Callable[[], _T]) -> _T:
        if time.monotonic() >= self._away_until:
            try:
                return self._redis.do(command)
            except RedisUnusable as problem:
                self._away_until = time.monotonic() + self._quiet_s
                _log.warning("the store of jobs cannot be used", why=str(problem))
        raise _unavailable(
            "The store of jobs does not answer, so it is not known whether this was written down. Send the same "
            "request again: it is done once."
        )


def _record(parts: list[bytes | None]) -> Record | None:
    facts, body, spec, plan = parts
    if facts is None or body is None or spec is None or plan is None:
        return None
    return record_of(facts, body.decode(), spec, plan)


def _unavailable(words: str) -> MurmuraError:
    return dependency_unavailable("redis", words, retry_after_s=2)
