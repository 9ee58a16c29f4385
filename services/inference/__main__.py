"""`python -m services.inference`: run the inference service.

The engine starts first, before anything starts a thread: vLLM's process is then forked with its
imports done. gRPC is imported only afterwards, and the service says that it serves when the engine
has made a token.
"""

from __future__ import annotations

import asyncio
import sys
import time
from functools import partial
from typing import TYPE_CHECKING

from services.common.loop import run
from services.inference.engine import Engine, EngineDead, EngineUnfit, choose, make
from services.inference.settings import InferenceSettings

if TYPE_CHECKING:
    import grpc

    from services.common.server import Lifecycle

ENGINE_DIED = 3
_WATCH_INTERVAL_S = 0.5


async def main() -> int:
    """Run until told to stop, or until the engine dies."""
    settings = InferenceSettings.load()
    started = time.monotonic()
    try:
        engines, why = await start_engines(settings)
    except (EngineUnfit, OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    try:
        return await serve_with(engines, settings, f"{why} It took {time.monotonic() - started:.1f} s to start.")
    finally:
        for engine in engines.values():
            await engine.stop()


async def start_engines(settings: InferenceSettings) -> tuple[dict[str, Engine], str]:
    """Start an engine for each base model.

    Returns:
        The engines, keyed by `baseModels/<id>`, and why each is which.

    Raises:
        ValueError: if the engine that the settings name is not installed, or there is no base model where they say.
        EngineUnfit: if it is none for a base model.
    """
    name, why = choose(settings.engine)
    engines: dict[str, Engine] = {}
    for model, path in settings.base_models.items():
        engine = make(name, path, settings.for_engine())
        try:
            await engine.start()
        except EngineUnfit as unfit:
            if settings.engine != "auto":
                raise EngineUnfit(f"The base model {model} cannot be served: {unfit}.") from None
            engine = make("transformers", path, settings.for_engine())
            await engine.start()
            why += f" For {model} it is transformers, slowly: {unfit}."
        engines[f"baseModels/{model}"] = engine
    return engines, why


async def serve_with(engines: dict[str, Engine], settings: InferenceSettings, why: str) -> int:
    """Serve with engines that have started."""
    # Only now: these import gRPC.
    import structlog

    from murmura.api.inference.v1 import inference_service_pb2_grpc
    from services.common.server import serve
    from services.common.tokens import TrustedKeys
    from services.common.turns import Turns
    from services.inference.adapters import Adapters
    from services.inference.artifacts import ArtifactStore
    from services.inference.base_models import linear_shapes, locate, skeleton
    from services.inference.bases import Base
    from services.inference.canary import speak
    from services.inference.catalogue import Catalogue
    from services.inference.generation import Generation, Salts
    from services.inference.service import AdapterService, InferenceService
    from services.inference.structures import Structures
    from services.inference.verification import Limits

    async def register(server: grpc.aio.Server, lifecycle: Lifecycle) -> list[str]:
        structlog.get_logger().info("engine", why=why, base_models=sorted(engines))
        bases = {}
        for name, engine in engines.items():
            directory = locate(settings.base_models[name.removeprefix("baseModels/")])
            structures = None
            if engine.structured:
                structures = Structures(directory, settings.structure_max_seconds, settings.structure_max_memory_mib)
                lifecycle.resources.push_async_callback(structures.close)
            canary = partial(speak, directory, settings.adapter_canary_tokens)
            bases[name] = Base(
                engine,
                linear_shapes(skeleton(directory)),
                Turns(settings.for_turns()),
                structures,
                canary if settings.adapter_canary_tokens else None,
            )
        catalogue = Catalogue(settings.state_dir / "adapters.sqlite3")
        lifecycle.resources.callback(catalogue.close)
        adapters = Adapters(
            catalogue,
            ArtifactStore(settings.artifacts, settings.state_dir / "adapters", settings.adapter_max_bytes),
            TrustedKeys(settings.trusted_keys),
            bases,
            Limits(settings.engine_max_rank, settings.adapter_norm_bound, settings.adapter_max_bytes),
        )

        watch = asyncio.create_task(_watch(engines, lifecycle))
        lifecycle.resources.callback(watch.cancel)
        generation = Generation(
            bases,
            adapters,
            Salts(settings.state_dir / "cache_salt.key"),
            settings.for_rules(),
            settings.tenant_pieces_per_s,
        )
        inference_service_pb2_grpc.add_AdapterServiceServicer_to_server(AdapterService(adapters), server)
        inference_service_pb2_grpc.add_InferenceServiceServicer_to_server(InferenceService(generation), server)
        return [
            "murmura.api.inference.v1.AdapterService",
            "murmura.api.inference.v1.InferenceService",
        ]

    return await serve("inference", settings, register)


async def _watch(engines: dict[str, Engine], lifecycle: Lifecycle) -> None:
    """End the process when an engine dies."""
    while True:
        await asyncio.sleep(_WATCH_INTERVAL_S)
        for engine in engines.values():
            try:
                await engine.check_health()
            except EngineDead:
                # The health check says NOT_SERVING; whoever supervises this starts a new process.
                lifecycle.end(ENGINE_DIED)
                return


if __name__ == "__main__":
    run(main())
