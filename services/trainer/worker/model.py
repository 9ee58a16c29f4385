"""Loading a base model, giving it a LoRA adapter, and saving that adapter the way everyone reads it.

Any causal language model that transformers can load will do. What is saved is a standard PEFT directory, which vLLM,
peft and transformers load as it is, and which names the base model by its public name: the path that this worker
happened to load it from is nobody's business.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.pytorch_utils import Conv1D

from services.trainer.worker.execution import expect_any_shape

ALL_LINEAR = "all-linear"


class BaseModelError(RuntimeError):
    """The base model cannot be loaded or adapted. Its message names public facts only."""


class SettingError(RuntimeError):
    """A setting is none for this base model. Its message names public facts only.

    Args:
        cause: a name of the contract's `FailureCause`.
        problem: what is wrong.
    """

    def __init__(self, cause: str, problem: str) -> None:
        super().__init__(problem)
        self.cause = cause


@dataclass(frozen=True)
class LoraSettings:
    """What the adapter is. Public.

    Attributes:
        rank: r.
        alpha: the adapter's output is scaled by alpha / rank.
        targets: names of linear layers; the default is all but the output head.
        seed: of the initial A, which is public and says nothing about the data.
    """

    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] = (ALL_LINEAR,)
    seed: int = 0


@dataclass(frozen=True)
class BaseModel:
    """A base model, frozen, with its tokenizer, on its device."""

    model: Any
    tokenizer: Any


def default_device() -> torch.device:
    """Return the accelerator if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def default_dtype(device: torch.device) -> torch.dtype:
    """Return bfloat16 where the processor multiplies it natively, else single precision.

    This is the precision of the frozen base alone. Adapters, clipping, sums and noise are in single precision or better
    everywhere.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    native = any(torch.cpu.get_capabilities().get(flag) for flag in ("amx_bf16", "avx512_bf16"))
    return torch.bfloat16 if native else torch.float32


def load_base(location: str, device: torch.device | None = None, dtype: torch.dtype | None = None) -> BaseModel:
    """Load a base model and its tokenizer.

    Args:
        location: a local directory or a hub id.
        device: the default is `default_device()`.
        dtype: of the frozen weights; the default is `default_dtype(device)`.

    Raises:
        BaseModelError: if it cannot be loaded, or its tokenizer does not fit it.
    """
    device = device or default_device()
    expect_any_shape(device)
    try:
        tokenizer = AutoTokenizer.from_pretrained(location)
        model = AutoModelForCausalLM.from_pretrained(
            location,
            dtype=dtype or default_dtype(device),
            # On a CPU the backward of the fused attention takes many times as long as the plain one's.
            attn_implementation="eager" if device.type == "cpu" else None,
        )
    except (OSError, ValueError, ImportError) as error:
        raise BaseModelError(
            f"the base model could not be loaded as a causal language model: {type(error).__name__}"
        ) from error
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        raise BaseModelError("the tokenizer has more tokens than the base model has embeddings")
    model.requires_grad_(False)
    return BaseModel(model.to(device), tokenizer)


def check_length(base: BaseModel, max_length: int) -> None:
    """See that the base model reads rows as long as they may become.

    With learned positions, a longer row would end the job at the step that draws it, and so tell of the row.

    Args:
        base: loaded.
        max_length: longest row in tokens.

    Raises:
        SettingError: if it does not.
    """
    positions = getattr(base.model.config.get_text_config(), "max_position_embeddings", None)
    if positions is not None and positions < max_length:
        raise SettingError("MAX_LENGTH", f"the base model reads at most {positions} tokens at once, not {max_length}")


def add_adapter(base: BaseModel, settings: LoraSettings) -> Any:
    """Wrap a loaded base model with a fresh LoRA adapter (which changes nothing until it is trained).

    The base is on its device already: PEFT would otherwise place the adapter elsewhere.

    Returns:
        The PEFT model, to be trained and saved.

    Raises:
        BaseModelError: if the model has none of the target layers.
    """
    targets = linear_layers(base.model) if settings.targets == (ALL_LINEAR,) else list(settings.targets)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=0.0,
        bias="none",
        target_modules=targets,
    )
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        try:
            return get_peft_model(base.model, config)
        except ValueError as error:
            raise BaseModelError("the base model has no layer to adapt") from error


def check_size(model: Any, most_bytes: int) -> None:
    """See that an adapter will be taken once it is trained, and paid for.

    Args:
        model: from `add_adapter`.
        most_bytes: that its weights may take as they are saved.

    Raises:
        SettingError: if it will not.
    """
    size = sum(4 * parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    if size > most_bytes:
        raise SettingError("ADAPTER_SIZE", f"the adapter would take {size} bytes, more than {most_bytes}")


def linear_layers(model: Any) -> list[str]:
    """Return what is adapted of a base model: every linear layer of what reads text, but the output head.

    Of a mixture of experts, the attention alone: experts are parameters and no layers, and so what one unit adds to
    their gradients is not known; PEFT would adapt them wherever a layer has the name that they once had.

    Returns:
        Last parts of names, or whole names where others have those too.
    """
    head, inside = model.get_output_embeddings(), set(model.get_decoder().modules())
    mixture = any("expert" in name and parameter.dim() == 3 for name, parameter in model.named_parameters())
    layers = {
        name: isinstance(module, nn.Linear | Conv1D)
        and module in inside
        and module is not head
        and not (mixture and "attn" not in name and "attention" not in name)
        for name, module in model.named_modules()
    }
    chosen = [name for name, adapted in layers.items() if adapted]
    short = {name.rpartition(".")[2] for name in chosen}
    others = {name.rpartition(".")[2] for name, adapted in layers.items() if not adapted}
    return chosen if short & others else sorted(short)


def load_adapter(base: BaseModel, directory: Path) -> Any:
    """Put a saved adapter on a loaded base model, for evaluation."""
    return PeftModel.from_pretrained(base.model, str(directory)).eval()


def save_adapter(model: Any, directory: Path, base_model_name: str) -> None:
    """Write `adapter_model.safetensors` (single precision) and `adapter_config.json`, nothing else.

    Args:
        model: from `add_adapter`.
        directory: made if missing.
        base_model_name: the public name to record.
    """
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    model.peft_config["default"].base_model_name_or_path = base_model_name
    # Without `False`, PEFT asks the hub whether the vocabulary was resized.
    model.save_pretrained(str(directory), save_embedding_layers=False)
    (directory / "README.md").unlink(missing_ok=True)
    config_file = directory / "adapter_config.json"
    config = json.loads(config_file.read_text())
    config["target_modules"] = sorted(config["target_modules"])  # a set, whose order is not ours
    config_file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
