"""What a Redis server must be before it may keep what a service must not forget. Pure: facts in, complaints out.

What was acknowledged must survive a power cut, so the server has to flush before it answers; and it may neither evict
keys, nor copy them from a primary that could be ahead.
"""

from __future__ import annotations

from collections.abc import Mapping

OLDEST = (6, 2)
# Setting: value needed, and what goes wrong without it.
NEEDED = {
    "appendonly": ("yes", "nothing is written to disk as it happens"),
    "appendfsync": ("always", "a power cut loses what was acknowledged"),
    "no-appendfsync-on-rewrite": ("no", "flushing pauses while the file is rewritten"),
    "maxmemory-policy": ("noeviction", "a full memory evicts what must be kept"),
}


class RedisUnusable(Exception):
    """The server does not answer, or may not be trusted; says what is wrong and what mends it."""


def parse_info(text: str) -> dict[str, str]:
    """Return the facts in an answer to INFO."""
    pairs = (line.partition(":") for line in text.splitlines() if not line.startswith("#"))
    return {name: value for name, separator, value in pairs if separator}


def complaints(config: Mapping[str, str], info: Mapping[str, str]) -> list[str]:
    """Say what keeps a server from being trusted.

    Args:
        config: what CONFIG GET says of each setting in `NEEDED`.
        info: what INFO says.

    Returns:
        One sentence for each fault: the setting, the value found, the value needed, the command that mends it.
    """
    found = []
    version = info.get("redis_version", "unknown")
    if _numbers(version) < OLDEST:
        found.append(f"redis_version is {version} and must be 6.2 or later: upgrade the server.")
    role = info.get("role", "unknown")
    if role != "master":
        found.append(
            f"role is {role} and must be master, for a replica may lack what was acknowledged: point "
            "MURMURA_REDIS_URL at the primary, or, if this server is known to hold the newest entry, run "
            "`redis-cli REPLICAOF NO ONE`."
        )
    if info.get("cluster_enabled", "0") != "0":
        found.append(
            "cluster-enabled is yes and must be no, for a cluster fails over by itself and loses what was "
            "acknowledged: `cluster-enabled no` in redis.conf, then start the server again."
        )
    for name, (needed, otherwise) in NEEDED.items():
        value = config.get(name, "unknown")
        if value != needed:
            found.append(
                f"{name} is {value} and must be {needed}, or else {otherwise}: "
                f"`redis-cli CONFIG SET {name} {needed}`, then `redis-cli CONFIG REWRITE`."
            )
    if "1" in (info.get("aof_rewrite_in_progress"), info.get("aof_rewrite_scheduled")):
        # After CONFIG SET appendonly yes, nothing is on disk before the first rewrite has ended.
        found.append(
            "aof_rewrite_in_progress is 1 and must be 0, for nothing is sure to be on disk before the append-only file "
            "is complete: wait until `redis-cli INFO persistence` says 0."
        )
    return found


def _numbers(version: str) -> tuple[int, ...]:
    parts = version.split(".")[:2]
    return tuple(int(part) for part in parts) if all(part.isdigit() for part in parts) else (0,)
