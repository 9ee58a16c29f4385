"""JSON schemas and regular expressions are tried out elsewhere before the engine may see them.

Eleven characters such as `(.?){30000}` keep a grammar compiler busy for ever, inside the engine that serves everyone.
How much work an expression makes cannot be told from its text, so it is compiled, and followed for some tokens, in a
process that may take a second of a processor and no more memory than it is given. What is refused there, or ends that
process, is refused; what passes costs the engine as little as it cost there.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sys
from collections import OrderedDict
from pathlib import Path

import structlog

from services.common.children import Child, start
from services.common.locks import Locks
from services.inference.engine import EngineRefused, Sampling

# A busy machine imports slowly, and gives a second of its processors over several.
_START_S = 120.0
_PATIENCE = 20
_REMEMBERED = 1024
_log = structlog.get_logger()


class Structures:
    """Tries structures out for one base model.

    Args:
        model: its directory: the tokenizer decides how much work a structure is.
        seconds: of a processor that one may take.
        memory_mib: that one may take.
    """

    def __init__(self, model: Path, seconds: float = 1.0, memory_mib: int = 1024) -> None:
        self._model = model
        self._seconds = seconds
        self._memory_mib = memory_mib
        self._child: Child | None = None
        self._turn = asyncio.Lock()  # its queue is in order of arrival
        self._busy: asyncio.Task[bool] | None = None
        self._tenants = Locks()
        self._known: OrderedDict[bytes, bool] = OrderedDict()

    async def check(self, sampling: Sampling, tenant: str) -> None:
        """Check what an output must satisfy, if anything.

        Args:
            sampling: holds it.
            tenant: whose it is; each has one under way at most, so that nobody waits for all of another's.

        Raises:
            EngineRefused: if it is too much work or not understood.
        """
        field = "json_schema" if sampling.json_schema else "regex" if sampling.regex else ""
        if not field:
            return
        text = sampling.json_schema or sampling.regex
        # Of this tenant: a memory that all share would tell, by the clock, what others ask for.
        key = hashlib.sha256(f"{tenant}:{field}:{text}".encode()).digest()
        good = self._known.get(key)
        if good is None:
            trial = asyncio.create_task(self._decide(key, field, text, tenant))
            try:
                good = await asyncio.shield(trial)
            except asyncio.CancelledError:
                # One that has begun ends by itself, or its answer would be taken for that to the next.
                if self._busy is not trial:
                    trial.cancel()
                raise
        if not good:
            raise EngineRefused(
                field, f"the engine cannot constrain an output to this, or not within {self._seconds:g} s; simplify it"
            )

    async def close(self) -> None:
        """End the process."""
        child, self._child = self._child, None
        if child is not None:
            await child.end()

    async def _decide(self, key: bytes, field: str, text: str, tenant: str) -> bool:
        async with self._tenants.of(tenant), self._turn:
            if key not in self._known:
                self._busy = asyncio.current_task()
                try:
                    self._known[key] = await self._try(field, text)
                finally:
                    self._busy = None
                if len(self._known) > _REMEMBERED:
                    self._known.popitem(last=False)
            return self._known[key]

    async def _try(self, field: str, text: str) -> bool:
        child = self._child or await self._start()
        try:
            child.writer.write(json.dumps({"field": field, "text": text}).encode() + b"\n")
            answer = await asyncio.wait_for(child.reader.readline(), _PATIENCE * self._seconds)
        except (TimeoutError, OSError):
            answer = b""
        if not answer:
            await self.close()
        if answer not in (b"good\n", b"bad\n"):
            _log.warning("a structure was too much work", field=field)
        return answer == b"good\n"

    async def _start(self) -> Child:
        program = [sys.executable, "-m", "services.inference.structures_sandbox"]
        limits = [str(self._model), str(self._seconds), str(self._memory_mib)]
        # Of its standard error nothing is kept: a compiler quotes what it does not understand.
        child = await start(program + limits, os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"})
        self._child = child
        try:
            ready = await asyncio.wait_for(child.reader.readline(), _START_S)
            if ready != b"ready\n":
                raise RuntimeError("what tries structures out does not start")
        except BaseException:
            await self.close()
            raise
        return child
