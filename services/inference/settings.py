"""What the inference service is told, beside what every service is told."""

from __future__ import annotations

from pydantic import Field

from services.common.config import ServiceSettings
from services.common.turns import TurnLimits
from services.inference.engine import EngineSettings
from services.inference.rights import Rules


class InferenceSettings(ServiceSettings):
    """The inference service's configuration, from `MURMURA_*` variables."""

    base_models: dict[str, str] = Field(min_length=1, description="JSON: public name to directory or hub id")
    artifacts: str = Field(description="directory or fsspec URL of the artifact store")
    base_model_roles: frozenset[str] = Field(Rules.base_roles, description="JSON: roles that may use base models")
    unlimited_adapter_roles: frozenset[str] = Field(
        Rules.unlimited_roles, description="JSON: roles that may use adapters trained without privacy"
    )
    engine: str = Field("auto", pattern="^(auto|vllm|transformers)$")
    engine_dtype: str = Field("auto", pattern="^(auto|float32|bfloat16)$")
    engine_max_context: int = Field(0, ge=0, description="tokens; 0: the model's own")
    engine_max_adapters: int = Field(4, ge=1, description="adapters in one batch")
    engine_max_resident_adapters: int = Field(32, ge=1, description="adapters in memory")
    engine_max_rank: int = Field(64, ge=1, le=512, description="greatest LoRA rank")
    engine_max_running: int = Field(128, ge=1, description="requests that run at once")
    engine_max_queue: int = Field(256, ge=0, description="requests that wait in the engine; 0: no limit")
    engine_max_logprobs: int = Field(
        0, ge=0, le=20, description="log-probabilities that a steward may grant; 0 keeps them off in the engine itself"
    )
    tenant_max_running: int = Field(64, ge=1, description="requests of one tenant that run at once")
    tenant_max_waiting: int = Field(512, ge=0, description="requests of one tenant that wait")
    tenant_pieces_per_s: int = Field(
        200, ge=0, description="of all streams of one tenant; 0: each token as it comes, however many streams"
    )
    engine_gpu_memory: float = Field(
        0.9, gt=0, le=1, description="share of a GPU's memory for each engine; what else uses the GPU needs the rest"
    )
    engine_cpu_cache_gib: int = Field(1, ge=1, description="KV cache where there is no GPU")
    structure_max_seconds: float = Field(1.0, gt=0, le=60, description="of a processor, for a JSON schema or regex")
    structure_max_memory_mib: int = Field(1024, ge=64, description="for the same")
    adapter_norm_bound: float = Field(
        1e4, gt=0, description="bound on the Frobenius norm of what an adapter adds to a matrix"
    )
    adapter_canary_tokens: int = Field(
        8, ge=0, description="said outside the engine first; 0 where memory cannot hold the base model twice"
    )
    adapter_max_bytes: int = Field(4 << 30, ge=1, description="greatest size of an adapter file")

    def for_turns(self) -> TurnLimits:
        """Return what bounds tenants."""
        return TurnLimits(
            running=self.engine_max_running,
            tenant_running=self.tenant_max_running,
            tenant_waiting=self.tenant_max_waiting,
            adapters=self.engine_max_adapters,
        )

    def for_rules(self) -> Rules:
        """Return what the operator allows."""
        return Rules(self.base_model_roles, self.unlimited_adapter_roles, self.engine_max_logprobs)

    def for_engine(self) -> EngineSettings:
        """Return what an engine is told."""
        return EngineSettings(
            dtype=self.engine_dtype,
            max_context=self.engine_max_context,
            max_adapters=self.engine_max_adapters,
            max_resident_adapters=self.engine_max_resident_adapters,
            max_rank=self.engine_max_rank,
            max_running=self.engine_max_running,
            max_queue=self.engine_max_queue,
            max_logprobs=self.engine_max_logprobs,
            gpu_memory=self.engine_gpu_memory,
            cpu_cache_gib=self.engine_cpu_cache_gib,
            scratch=self.state_dir / "engine",
        )
