"""The life of an adapter here: verified, added, leased by requests, drained, removed.

    VERIFYING -> LOADING -> READY -> DRAINING        any of the first two -> FAILED

An adapter is added to the engine before it is READY, and a request holds a lease on it while it
runs, so the engine never sees an id that it does not know: that would end it for everyone. What is
done to one adapter is done by one task at a time, however many requests wait for it, and goes on
when they go away. After a restart adapters are still READY; the first request adds them to the new
engine. The first request also loads an adapter that was published but never loaded. One that was
unloaded, or failed, comes back by LoadAdapter only.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import grpc
import structlog

from murmura.api.inference.v1 import inference_pb2
from services.common.errors import MurmuraError, not_found
from services.common.tokens import Principal, TrustedKeys
from services.inference import refusals
from services.inference.artifacts import ArtifactStore, Manifest
from services.inference.bases import Base
from services.inference.catalogue import Catalogue, Record
from services.inference.engine import Engine, EngineDead
from services.inference.rights import may_see, may_use, owns
from services.inference.verification import Limits, Rejected, verify_adapter, verify_signature

_SIGNER = "worker"  # the role that only the trainer's key may issue
_log = structlog.get_logger()


@dataclass
class _Entry:
    record: Record
    added: bool = False  # to the engine of this process
    leases: int = 0
    idle: asyncio.Event = field(default_factory=asyncio.Event)


class Adapters:
    """All adapters of this service.

    Args:
        catalogue: what is kept over restarts.
        store: what the trainer published.
        keys: trusted keys; those that may issue workers' tokens sign manifests.
        bases: `baseModels/<id>` to what serves it.
        limits: what an adapter may be.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        store: ArtifactStore,
        keys: TrustedKeys,
        bases: Mapping[str, Base],
        limits: Limits,
    ) -> None:
        self._catalogue = catalogue
        self._store = store
        self._keys = keys
        self._bases = bases
        self._limits = limits
        self._entries = {record.name: _Entry(record) for record in catalogue.records()}
        self._flights: dict[str, asyncio.Task[None]] = {}

    def get(self, name: str, principal: Principal) -> Record:
        """Return an adapter.

        Raises:
            MurmuraError: NOT_FOUND, in the same words whether it exists or may not be seen.
        """
        entry = self._entries.get(name)
        if entry is None or not may_see(principal, entry.record):
            raise not_found(name)
        return entry.record

    def list(self, principal: Principal) -> list[Record]:
        """Return the adapters that the caller may see, by name."""
        entries = sorted(self._entries.items())
        return [entry.record for _, entry in entries if may_see(principal, entry.record)]

    async def load(self, name: str, principal: Principal) -> Record:
        """Verify an adapter and add it to the engine; a READY one is returned as it is.

        Raises:
            MurmuraError: NOT_FOUND; RESOURCE_EXISTS if its content changed; ADAPTER_REJECTED.
        """
        known = self._entries.get(name)
        if known is not None and not may_use(principal, known.record):
            raise not_found(name)
        manifest = await self._published(name, principal, known.record if known else None)
        if known is not None and known.record.state != "FAILED" and known.record.sha256 != manifest.sha256:
            raise MurmuraError(
                grpc.StatusCode.ALREADY_EXISTS,
                "RESOURCE_EXISTS",
                f"Other content was published as {name} before. Adapters never change: train a new one.",
                {"resource": name},
            )
        while not (known and known.added and known.record.state == "READY"):
            if name not in self._flights:
                self._fly(name, self._load(manifest))
            await self._landed(name)
            known = self._entries[name]
        return known.record

    async def unload(self, name: str, principal: Principal) -> None:
        """Let an adapter finish what it serves, then remove it from the engine.

        Raises:
            MurmuraError: NOT_FOUND.
        """
        self._may_use(name, principal)
        while name in self._flights:
            await self._landed(name)
        entry = self._entries[name]
        if entry.record.state == "DRAINING" and not entry.added:
            return
        # From here on nobody gets a lease: there is no wait between this and the next line.
        entry.record = entry.record.now("DRAINING")
        self._fly(name, self._unload(entry))
        await self._landed(name)

    async def allow(self, name: str, policy: inference_pb2.AdapterPolicy, principal: Principal) -> Record:
        """Say what is allowed with an adapter, in place of what was said before.

        Raises:
            MurmuraError: NOT_FOUND.
        """
        if name not in self._entries:
            await self.load(name, principal)
        while name in self._flights:
            await self._landed(name)
        entry = self._entries[name]
        # Before the wait: whoever loses a right loses it now.
        entry.record = replace(entry.record, policy=policy.SerializeToString(deterministic=True))
        self._fly(name, self._settle(entry, entry.record))
        await self._landed(name)
        _log.info("adapter policy", adapter=name, users=list(policy.users), logprobs=policy.logprobs)
        return entry.record

    @asynccontextmanager
    async def lease(self, name: str, principal: Principal) -> AsyncIterator[Record]:
        """Hold an adapter in the engine; loads it first where that was never done.

        Raises:
            MurmuraError: NOT_FOUND; ADAPTER_NOT_READY; ADAPTER_REJECTED.
        """
        entry = self._entries.get(name)
        if entry is not None:
            self._may_use(name, principal)
            while name in self._flights and entry.record.state != "DRAINING":
                await self._landed(name)
            if entry.record.state in ("DRAINING", "FAILED"):
                raise refusals.not_ready(entry.record)
        if entry is not None and not self._store.holds(entry.record.sha256):
            # An engine that finds nothing where it reads an adapter again ends for everyone.
            entry.added = False
        if entry is None or not entry.added:
            await self.load(name, principal)
            entry = self._entries[name]
        if entry.record.state != "READY":
            raise refusals.not_ready(entry.record)
        entry.leases += 1
        try:
            yield entry.record
        finally:
            entry.leases -= 1
            if entry.leases == 0:
                entry.idle.set()

    def _may_use(self, name: str, principal: Principal) -> None:
        entry = self._entries.get(name)
        if entry is None or not may_use(principal, entry.record):
            raise not_found(name)

    async def _published(self, name: str, principal: Principal, known: Record | None) -> Manifest:
        """Return a manifest whose signature holds and whose adapter the caller may use."""
        try:
            manifest = await asyncio.to_thread(self._store.manifest, name)
        except Rejected as rejected:
            # Who owns it is not known, so only a steward learns that it is there.
            raise (refusals.rejected(name, rejected) if principal.has("steward") else not_found(name)) from None
        granted = known is not None and principal.subject in known.allowed.users
        if manifest is None or not (granted or owns(principal, manifest.owner)):
            raise not_found(name)
        try:
            verify_signature(manifest.raw, manifest.signature, self._keys.issuers_of(_SIGNER))
            if manifest.adapter != name:
                raise Rejected("manifest", f"its manifest is that of {manifest.adapter}")
        except Rejected as rejected:
            _log.warning("adapter rejected", adapter=name, check=rejected.check)
            raise refusals.rejected(name, rejected) from None
        return manifest

    def _fly(self, name: str, work: Awaitable[None]) -> None:
        async def flight() -> None:
            try:
                await work
            finally:
                del self._flights[name]

        task = asyncio.create_task(flight())
        # Those who wait may all have gone away; a failure is in the record and in their errors.
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._flights[name] = task

    async def _landed(self, name: str) -> None:
        try:
            await asyncio.shield(self._flights[name])
        except EngineDead:
            raise refusals.engine_dead() from None

    async def _load(self, manifest: Manifest) -> None:
        name = manifest.adapter
        engine_id = await asyncio.to_thread(self._catalogue.engine_id, manifest.sha256)
        record = Record(
            name=name,
            state="VERIFYING",
            engine_id=engine_id,
            sha256=manifest.sha256,
            base_model=manifest.base_model,
            owner=manifest.owner,
            training_job=manifest.training_job,
            create_time=manifest.create_time,
            statement=manifest.statement.SerializeToString(deterministic=True),
            policy=known.record.policy if (known := self._entries.get(name)) else b"",
        )
        entry = self._entries.setdefault(name, _Entry(record))
        before, entry.record = entry.record, record
        try:
            base = self._base(manifest.base_model)

            def verify(copy: Path) -> None:
                verify_adapter(copy, dict(base.shapes), self._limits)
                if base.canary is not None:
                    base.canary(copy)

            directory = await asyncio.to_thread(self._store.copy, manifest, verify)
            entry.record = record.now("LOADING")
            await self._add(base.engine, record, directory)
        except (MurmuraError, Rejected) as error:
            refusal = error if isinstance(error, MurmuraError) else refusals.rejected(name, error)
            item = refusal.item().SerializeToString()
            await self._settle(entry, record.now("FAILED", item))
            raise refusal from None
        except BaseException:
            # Not the adapter's fault: the engine died or the store did not answer. Nothing is
            # decided, and the next request tries again.
            entry.record = before
            if before is record:
                del self._entries[name]
            raise
        entry.added = True
        await self._settle(entry, record.now("READY"))
        _log.info("adapter ready", adapter=name, engine_id=engine_id, sha256=manifest.sha256)

    async def _add(self, engine: Engine, record: Record, directory: Path) -> None:
        try:
            await engine.add_adapter(record.engine_id, record.name, directory)
        except EngineDead:
            raise
        except Exception as error:
            _log.error("engine refused adapter", adapter=record.name, exception=type(error).__name__)
            raise Rejected("engine", "the engine did not take it") from None

    async def _unload(self, entry: _Entry) -> None:
        await self._settle(entry, entry.record)
        while entry.leases:
            entry.idle.clear()
            await entry.idle.wait()
        if entry.added:
            await self._base(entry.record.base_model).engine.remove_adapter(entry.record.engine_id)
            entry.added = False
        await asyncio.to_thread(self._store.forget, entry.record.sha256)
        _log.info("adapter unloaded", adapter=entry.record.name)

    async def _settle(self, entry: _Entry, record: Record) -> None:
        await asyncio.to_thread(self._catalogue.put, record)
        entry.record = record

    def _base(self, name: str) -> Base:
        if name not in self._bases:
            raise refusals.unknown_base(name, self._bases)
        return self._bases[name]
