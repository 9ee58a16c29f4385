"""The life of an adapter: who may use it, loaded once, leased, drained, back after a restart."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from safetensors.torch import load_file

from murmura.api.inference.v1.inference_pb2 import AdapterPolicy
from services.common.errors import MurmuraError
from services.common.tokens import Principal, TrustedKeys
from services.inference.adapters import Adapters
from services.inference.artifacts import ArtifactStore
from services.inference.base_models import linear_shapes, skeleton
from services.inference.bases import Base
from services.inference.catalogue import Catalogue
from services.inference.engine import Delta, EngineDead, Sampling
from services.inference.verification import Limits, Rejected
from tests.support.inference_process import jwk
from tests.support.random_models import publish

ANA = Principal("ana@local", frozenset({"analyst"}))
BOB = Principal("bob@local", frozenset({"analyst"}))
STEWARD = Principal("steward@local", frozenset({"steward"}))
OPERATOR = Principal("operator@local", frozenset({"operator"}))
NAME = "adapters/one"


class RecordingEngine:
    """An engine that writes down what is done to it."""

    name = "recording"
    context_length = 64
    structured = False

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []
        self.present: dict[int, Path] = {}
        self.error: Exception | None = None

    async def start(self) -> None: ...

    async def add_adapter(self, adapter_id: int, name: str, directory: Path) -> None:
        await asyncio.sleep(0.01)
        if self.error:
            raise self.error
        self.calls.append(("add", adapter_id))
        self.present[adapter_id] = directory

    async def remove_adapter(self, adapter_id: int) -> None:
        self.calls.append(("remove", adapter_id))
        self.present.pop(adapter_id)

    async def generate(
        self, prompt: Sequence[int], sampling: Sampling, adapter_id: int | None, cache_salt: str
    ) -> AsyncGenerator[Delta, None]:
        raise NotImplementedError
        yield

    async def tokenize(self, text: str) -> list[int]:
        raise NotImplementedError

    def running(self) -> int:
        return 0

    async def check_health(self) -> None: ...

    async def stop(self) -> None: ...


class Site:
    """A service's adapters, and what surrounds them."""

    def __init__(self, root: Path, base: Path, adapters: list[Path], key: Ed25519PrivateKey) -> None:
        self.root, self.base, self.sources, self.key = root, base, adapters, key
        self.store = root / "artifacts"
        self.store.mkdir()
        deployment = Ed25519PrivateKey.generate()
        keys = [jwk(key, "trainer", ["worker"]), jwk(deployment, "deployment", ["analyst"])]
        self.deployment = deployment
        (root / "trusted.json").write_text(json.dumps({"keys": keys}))
        self.heard: list[Path] = []
        self.bad = False
        self.start()

    def canary(self, adapter: Path) -> None:
        """Stand in for a computation that takes seconds."""
        self.heard.append(adapter)
        if self.bad:
            raise Rejected("canary", "it computes what is not finite")

    def start(self) -> None:
        """Start, or start again with a new engine."""
        self.engine = RecordingEngine()
        self.adapters = Adapters(
            Catalogue(self.root / "adapters.sqlite3"),
            ArtifactStore(str(self.store), self.root / "copies", 1 << 20),
            TrustedKeys(self.root / "trusted.json"),
            {"baseModels/tiny": Base(self.engine, linear_shapes(skeleton(self.base)), canary=self.canary)},
            Limits(),
        )

    def publish(self, name: str = NAME, source: int = 0, **members: object) -> Path:
        """Publish as the trainer does."""
        key = members.pop("key", self.key)
        return publish(self.store, name, self.sources[source], key, **members)


@pytest.fixture
def site(
    tmp_path: Path,
    tiny_base: Path,
    tiny_adapters: list[Path],
    trainer_key: Ed25519PrivateKey,
) -> Site:
    return Site(tmp_path, tiny_base, tiny_adapters, trainer_key)


async def refusal(work: object) -> MurmuraError:
    with pytest.raises(MurmuraError) as caught:
        await work  # type: ignore[misc]
    return caught.value


async def use(site: Site, principal: Principal = ANA, name: str = NAME) -> int:
    async with site.adapters.lease(name, principal) as record:
        assert record.engine_id in site.engine.present
        return record.engine_id


async def test_the_first_request_loads_and_the_state_is_ready(site: Site) -> None:
    site.publish()
    engine_id = await use(site)
    record = site.adapters.get(NAME, ANA)
    assert (record.state, record.engine_id, record.owner) == ("READY", engine_id, "ana@local")
    copy = site.engine.present[engine_id]
    assert copy.name == record.sha256
    assert sorted(path.name for path in copy.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert load_file(copy / "adapter_model.safetensors")


async def test_many_first_requests_load_once(site: Site) -> None:
    site.publish()
    ids = await asyncio.gather(*(use(site) for _ in range(8)), *(_load(site) for _ in range(8)))
    assert len(set(ids)) == 1
    assert len(site.engine.calls) == 1


async def _load(site: Site) -> int:
    return (await site.adapters.load(NAME, ANA)).engine_id


async def test_a_caller_who_leaves_does_not_stop_the_load(site: Site) -> None:
    site.publish()
    task = asyncio.create_task(use(site))
    for _ in range(1000):
        if site.adapters._flights:
            break
        await asyncio.sleep(0.001)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await use(site)
    assert len(site.engine.calls) == 1


@pytest.mark.parametrize("loaded", [False, True])
async def test_foreign_and_unknown_adapters_give_the_same_bytes(site: Site, loaded: bool) -> None:
    calls = {
        "get": lambda: _get(site, BOB),
        "load": lambda: site.adapters.load(NAME, BOB),
        "unload": lambda: site.adapters.unload(NAME, BOB),
        "lease": lambda: use(site, BOB),
    }
    unknown = {call: (await refusal(make())).status() for call, make in calls.items()}
    site.publish()
    if loaded:
        await use(site, ANA)
    for call, make in calls.items():
        error = await refusal(make())
        assert error.code is grpc.StatusCode.NOT_FOUND
        assert error.status().SerializeToString() == unknown[call].SerializeToString(), call
    assert site.adapters.list(BOB) == []


async def _get(site: Site, principal: Principal) -> object:
    return site.adapters.get(NAME, principal)


async def test_owner_steward_and_operator_see_it_and_an_operator_may_not_use_it(site: Site) -> None:
    site.publish()
    await use(site, STEWARD)
    for principal in (ANA, STEWARD, OPERATOR):
        assert [record.name for record in site.adapters.list(principal)] == [NAME]
    assert (await refusal(use(site, OPERATOR))).reason == "RESOURCE_NOT_FOUND"


async def test_unloading_waits_for_leases_and_stays(site: Site) -> None:
    site.publish()
    release = asyncio.Event()
    held = asyncio.Event()

    async def long_request() -> None:
        async with site.adapters.lease(NAME, ANA):
            held.set()
            await release.wait()
            assert site.engine.present

    request = asyncio.create_task(long_request())
    await held.wait()
    unloading = asyncio.create_task(site.adapters.unload(NAME, ANA))
    await asyncio.sleep(0.05)
    assert not unloading.done()
    assert site.adapters.get(NAME, ANA).state == "DRAINING"
    assert (await refusal(use(site))).reason == "ADAPTER_NOT_READY"
    release.set()
    await asyncio.gather(request, unloading)
    assert not site.engine.present
    site.start()
    assert (await refusal(use(site))).reason == "ADAPTER_NOT_READY"
    await site.adapters.load(NAME, ANA)
    await use(site)


async def test_after_a_restart_the_same_content_has_its_id_and_new_content_another(
    site: Site,
) -> None:
    site.publish()
    first = await use(site)
    site.start()
    assert site.adapters.get(NAME, ANA).state == "READY"
    site.publish("adapters/two", 1)
    assert await use(site, name="adapters/two") > first
    assert await use(site) == first
    assert site.engine.calls == [("add", first + 1), ("add", first)]


async def test_other_content_under_a_known_name_is_refused(site: Site) -> None:
    target = site.publish()
    await use(site)
    shutil.rmtree(target)
    site.publish(source=1)
    assert (await refusal(site.adapters.load(NAME, ANA))).reason == "RESOURCE_EXISTS"


async def test_a_manifest_that_the_trainer_did_not_sign_is_refused(site: Site) -> None:
    site.publish(key=site.deployment)  # trusted for people's tokens, not for adapters
    error = await refusal(use(site))
    assert (error.reason, error.metadata["check"]) == ("ADAPTER_REJECTED", "signature")
    assert (await refusal(use(site, BOB))).reason == "RESOURCE_NOT_FOUND"
    assert not site.engine.calls


async def test_a_manifest_of_another_adapter_is_refused(site: Site) -> None:
    site.publish(adapter="adapters/two")
    assert (await refusal(use(site))).metadata["check"] == "manifest"


async def test_files_that_differ_from_the_manifest_are_refused(site: Site, tiny_adapters: list[Path]) -> None:
    target = site.publish()
    other = (tiny_adapters[1] / "adapter_model.safetensors").read_bytes()
    (target / "adapter" / "adapter_model.safetensors").write_bytes(other)
    assert (await refusal(use(site))).metadata["check"] == "digest"
    assert site.adapters.get(NAME, ANA).state == "FAILED"
    assert not [path for path in (site.root / "copies").iterdir()]
    assert (await refusal(use(site))).reason == "ADAPTER_NOT_READY"
    good = (tiny_adapters[0] / "adapter_model.safetensors").read_bytes()
    (target / "adapter" / "adapter_model.safetensors").write_bytes(good)
    await site.adapters.load(NAME, ANA)
    await use(site)


async def test_an_adapter_speaks_outside_the_engine_before_it_is_added(site: Site) -> None:
    site.publish()
    site.bad = True
    assert (await refusal(use(site))).metadata["check"] == "canary"
    assert len(site.heard) == 1
    assert not site.engine.calls
    site.bad = False
    await site.adapters.load(NAME, ANA)
    await use(site)
    assert len(site.heard) == 2


async def test_a_copy_that_was_changed_on_disk_is_not_served_after_a_restart(site: Site) -> None:
    site.publish()
    copy = site.engine.present[await use(site)]
    weights = bytearray((copy / "adapter_model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "adapter_model.safetensors").write_bytes(bytes(weights))
    site.start()
    assert (await refusal(use(site))).metadata["check"] == "digest"
    assert not site.engine.calls


async def test_a_copy_that_vanished_is_made_again_before_the_engine_is_asked(site: Site) -> None:
    site.publish()
    copy = site.engine.present[await use(site)]
    shutil.rmtree(copy)
    async with site.adapters.lease(NAME, ANA) as record:
        assert (copy / "adapter_model.safetensors").exists()
        assert site.engine.calls == [("add", record.engine_id)] * 2
    shutil.rmtree(copy)
    shutil.rmtree(site.store / "one")
    assert (await refusal(use(site))).reason == "RESOURCE_NOT_FOUND"


async def test_a_dead_engine_is_not_the_adapters_fault(site: Site) -> None:
    site.publish()
    await use(site)
    site.start()
    site.engine.error = EngineDead()
    assert (await refusal(use(site))).reason == "ENGINE_DEAD"
    site.start()
    await use(site)


async def test_an_adapter_of_a_base_model_that_is_not_served_is_refused(site: Site) -> None:
    site.publish(base_model="baseModels/other")
    assert (await refusal(use(site))).reason == "BASE_MODEL_UNKNOWN"


async def test_a_steward_lets_others_use_an_adapter_and_takes_it_back(site: Site) -> None:
    site.publish()
    assert (await refusal(use(site, BOB))).reason == "RESOURCE_NOT_FOUND"
    # It was published and never loaded: the policy is kept all the same.
    record = await site.adapters.allow(NAME, AdapterPolicy(users=[BOB.subject], logprobs=3), STEWARD)
    assert record.allowed.logprobs == 3
    await use(site, BOB)
    assert (await refusal(use(site, Principal("eve@local", frozenset({"analyst"}))))).reason == "RESOURCE_NOT_FOUND"
    assert [record.name for record in site.adapters.list(BOB)] == [NAME]
    await site.adapters.unload(NAME, BOB)
    site.start()
    await site.adapters.load(NAME, BOB)
    assert site.adapters.get(NAME, BOB).allowed.logprobs == 3
    await site.adapters.allow(NAME, AdapterPolicy(), STEWARD)
    for attempt in (use(site, BOB), site.adapters.load(NAME, BOB), site.adapters.unload(NAME, BOB)):
        assert (await refusal(attempt)).reason == "RESOURCE_NOT_FOUND"
    assert not site.adapters.list(BOB)
    await use(site)


async def test_a_new_manifest_does_not_change_whose_adapter_it_is(site: Site) -> None:
    target = site.publish()
    await use(site)
    shutil.rmtree(target)
    site.publish(source=1, owner=BOB.subject)
    assert (await refusal(site.adapters.load(NAME, BOB))).reason == "RESOURCE_NOT_FOUND"


@pytest.mark.parametrize("content", ["{", "[" * 100_000], ids=["cut off", "deep"])
async def test_only_a_steward_learns_of_a_manifest_that_cannot_be_read(site: Site, content: str) -> None:
    (site.publish() / "manifest.json").write_text(content)
    assert (await refusal(use(site))).reason == "RESOURCE_NOT_FOUND"
    assert (await refusal(use(site, STEWARD))).metadata["check"] == "manifest"


@pytest.mark.parametrize("name", ["adapters/../outside", "adapters/Upper", "adapters/a/../one"])
async def test_a_name_never_leaves_the_store(site: Site, name: str) -> None:
    for place in ("../outside", "Upper", "one"):
        site.publish(f"adapters/{place}", adapter=name)
    (site.store / "a").mkdir()
    assert (await refusal(use(site, STEWARD, name))).reason == "RESOURCE_NOT_FOUND"
