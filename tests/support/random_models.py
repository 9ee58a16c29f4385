"""Random base models with a real tokenizer, adapters for them, and a publisher of manifests."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from tests.support import families


def make_base(
    directory: Path,
    /,
    family: str = "llama",
    words: int = 0,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    **config: Any,
) -> Path:
    """Write a base model whose every text is ASCII: a token for a character, and a first one.

    Args:
        directory: where.
        family: one of `families.FAMILIES`.
        words: more entries of the vocabulary, which a text never becomes and the model may say.
        device: that makes its weights; a GPU makes large ones in seconds.
        dtype: of its weights.
        **config: what replaces members of its configuration, that of 50 000 parameters.
    """
    printable = [chr(code) for code in range(33, 127)] + ["\u0120"]  # as byte-level BPE writes them
    tokens = ["<s>", "</s>", "<pad>", *printable, *(f"\u0120word{n}" for n in range(words))]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    ).save_pretrained(directory)
    torch.manual_seed(7)
    chosen = {
        "vocab_size": len(vocabulary),
        "hidden_size": 64,
        "intermediate_size": 96,
        "max_position_embeddings": 256,
        "sliding_window": 64,
    }
    made = families.configuration(
        family,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
        **chosen | config,
    )
    with torch.device(device):
        AutoModelForCausalLM.from_config(made, dtype=dtype).save_pretrained(directory)
    return directory


def make_adapter(base: Path, directory: Path, seed: int, rank: int = 4) -> Path:
    """Write a PEFT directory whose matrices are random, so that it changes every output."""
    with torch.device("meta"):  # shapes are all that is wanted of it
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base))
    config = LoraConfig(task_type="CAUSAL_LM", r=rank, lora_alpha=2 * rank, target_modules="all-linear")
    peft = get_peft_model(model, config, low_cpu_mem_usage=True)
    random = torch.Generator().manual_seed(seed)
    empty = get_peft_model_state_dict(peft, save_embedding_layers=False)
    weights = {name: torch.randn(tensor.shape, generator=random) * 0.2 for name, tensor in empty.items()}
    directory.mkdir(parents=True, exist_ok=True)
    save_file(weights, directory / "adapter_model.safetensors", {"format": "pt"})
    config.base_model_name_or_path, config.inference_mode = str(base), True
    config.save_pretrained(str(directory))
    return directory


def publish(
    store: Path,
    name: str,
    adapter: Path,
    key: Ed25519PrivateKey,
    /,
    owner: str = "ana@local",
    **members: object,
) -> Path:
    """Write what the trainer writes; `members` replace those of the manifest."""
    target = store / name.removeprefix("adapters/")
    (target / "adapter").mkdir(parents=True)
    for file in adapter.iterdir():
        (target / "adapter" / file.name).write_bytes(file.read_bytes())
    manifest = {
        "adapter": name,
        "base_model": "baseModels/tiny",
        "owner": owner,
        "training_job": "trainingJobs/one",
        "create_time": "2025-06-01T12:00:00Z",
        "files": {file.name: sha256(file.read_bytes()).hexdigest() for file in adapter.iterdir()},
        "statement": {"epsilon": 4.0, "delta": 1e-5, "privacyUnitColumn": "patient"},
    } | members
    raw = json.dumps(manifest).encode()
    (target / "manifest.json").write_bytes(raw)
    (target / "manifest.sig").write_bytes(key.sign(raw))
    return target


def edit(adapter: Path, weights: dict[str, torch.Tensor] | None = None, **config: object) -> None:
    """Change an adapter's weights or configuration in place."""
    if weights is not None:
        save_file(weights, adapter / "adapter_model.safetensors")
    if config:
        path = adapter / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | config))
