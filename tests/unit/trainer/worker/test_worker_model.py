"""From a directory on disk to a standard PEFT directory and back, without privacy and offline."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from murmura.api.trainer.v1 import trainer_service_pb2
from services.trainer.worker import plain
from services.trainer.worker.data import Row
from services.trainer.worker.evaluate import perplexity, read_texts
from services.trainer.worker.model import (
    BaseModel,
    BaseModelError,
    LoraSettings,
    SettingError,
    add_adapter,
    check_length,
    check_size,
    linear_layers,
    load_adapter,
    load_base,
    save_adapter,
)
from services.trainer.worker.plain import PlainSettings, train_plain
from services.trainer.worker.runs import AdapterUnmovedError
from services.trainer.worker.text import plain_rows
from tests.support import families

TEXTS = ["the cat sat on the mat", "the dog sat on the log", "a cat", ""]
CPU = torch.device("cpu")


def of(family):
    """A model of a family, with 64 positions."""
    sizes = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "max_position_embeddings": 64}
    tokens = {"pad_token_id": None, "bos_token_id": 0, "eos_token_id": 1}
    return AutoModelForCausalLM.from_config(families.configuration(family, sliding_window=8, **sizes, **tokens))


@pytest.fixture
def location(tmp_path):
    words = ["<s>", "</s>", *sorted({w for t in TEXTS for w in t.split()}), "?", "!", "."]
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="?"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="?")
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(words),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=64,
            initializer_range=0.3,
            bos_token_id=0,
            eos_token_id=1,
        )
    )
    directory = tmp_path / "the-base"
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return str(directory)


@pytest.fixture
def trained(location):
    """Return the base, an adapter that knows the texts, and the perplexity before."""
    base = load_base(location, CPU, torch.float32)
    before = perplexity(base.model, base.tokenizer, TEXTS).perplexity
    model = add_adapter(base, LoraSettings(rank=4, alpha=8.0))
    steps: list[int] = []
    settings = PlainSettings(steps=30, batch_rows=2, learning_rate=0.03)
    train_plain(model, plain_rows(base.tokenizer, TEXTS, 64), settings, steps.append)
    assert steps == list(range(1, 31))
    return base, model, before


def test_a_fresh_adapter_changes_nothing_and_is_the_same_each_time(location):
    base = load_base(location, CPU, torch.float32)
    ids = torch.tensor([[0, 3, 4]])
    before = base.model(input_ids=ids).logits
    torch.manual_seed(5)
    first = add_adapter(base, LoraSettings())
    assert torch.equal(first(input_ids=ids).logits, before)
    torch.manual_seed(6)
    second = add_adapter(load_base(location, CPU, torch.float32), LoraSettings())
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_every_linear_layer_but_the_head_is_adapted(location):
    model = add_adapter(load_base(location, CPU), LoraSettings())
    adapted = {n.split(".lora_")[0].split(".")[-1] for n, p in model.named_parameters() if p.requires_grad}
    assert adapted == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"
    }  # fmt: skip


def test_a_saved_adapter_is_a_standard_directory_without_local_paths(trained, location, tmp_path):
    base, model, before = trained
    after = perplexity(model, base.tokenizer, TEXTS).perplexity
    assert after < 0.6 * before
    out = tmp_path / "adapter"
    save_adapter(model, out, "murmura-base")
    assert {p.name for p in out.iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors"
    }  # fmt: skip
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "murmura-base"
    assert config["r"] == 4
    assert config["lora_alpha"] == 8.0
    assert str(tmp_path) not in (out / "adapter_config.json").read_text()
    tensors = load_file(out / "adapter_model.safetensors")
    assert {t.dtype for t in tensors.values()} == {torch.float32}
    assert len(tensors) == 2 * 2 * 7

    again = load_adapter(load_base(location, CPU, torch.float32), out)
    found = perplexity(again, base.tokenizer, TEXTS).perplexity
    assert found == pytest.approx(after, rel=1e-5)


def test_saving_twice_gives_the_same_bytes(trained, tmp_path):
    _, model, _ = trained
    for name in ("one", "two"):
        save_adapter(model, tmp_path / name, "murmura-base")
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_what_is_no_model_is_refused_without_its_path(tmp_path):
    with pytest.raises(BaseModelError, match="could not be loaded") as caught:
        load_base(str(tmp_path))
    assert str(tmp_path) not in str(caught.value)


def test_a_tokenizer_that_does_not_fit_is_refused(location):
    config = LlamaConfig.from_pretrained(location)
    config.vocab_size = 5
    LlamaForCausalLM(config).save_pretrained(location)
    with pytest.raises(BaseModelError, match="more tokens"):
        load_base(location, CPU)


def test_a_model_without_the_target_layers_is_refused(location):
    with pytest.raises(BaseModelError, match="no layer to adapt"):
        add_adapter(load_base(location, CPU), LoraSettings(targets=("nothing_like_it",)))


@pytest.mark.parametrize(("family", "longest"), [("llama", 64), ("gpt2", 64), ("opt", 64), ("bloom", 1 << 17)])
def test_a_base_model_reads_rows_as_long_as_it_has_positions(family, longest):
    base = BaseModel(of(family), None)
    check_length(base, longest)
    if family == "bloom":
        return  # its positions are distances
    base.model(input_ids=torch.zeros(1, longest, dtype=torch.long))
    with pytest.raises(SettingError, match="reads at most 64 tokens at once, not 65") as refused:
        check_length(base, 65)
    assert refused.value.cause == "MAX_LENGTH"


def test_an_adapter_that_nobody_takes_is_refused_before_it_is_trained(location, tmp_path):
    model = add_adapter(load_base(location, CPU), LoraSettings())
    save_adapter(model, tmp_path / "saved", "tiny")
    saved = sum(tensor.nbytes for tensor in load_file(tmp_path / "saved" / "adapter_model.safetensors").values())
    check_size(model, saved)
    with pytest.raises(SettingError, match=f"would take {saved} bytes") as refused:
        check_size(model, saved - 1)
    assert trainer_service_pb2.FailureCause.Value(f"FAILURE_CAUSE_{refused.value.cause}")


@pytest.mark.parametrize("family", ["llama", "gpt2", "glm4_moe", "gemma3"])
def test_every_linear_layer_but_the_head_is_adapted_and_nothing_else(family):
    model = of(family)
    adapted = {
        "llama": ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"],
        "gpt2": ["c_attn", "c_fc", "c_proj"],
        "glm4_moe": ["k_proj", "o_proj", "q_proj", "v_proj"],  # and no expert, shared or not, and no router
    }
    if family == "gemma3":  # nothing of what sees
        assert all(name.startswith("model.language_model.layers.") for name in linear_layers(model))
        return
    assert linear_layers(model) == adapted[family]
    # Of a layer whose name another module has too, the whole name.
    model.add_module("q_proj", torch.nn.Identity())
    if family == "llama":
        assert "model.layers.0.self_attn.q_proj" in linear_layers(model)
        assert "q_proj" not in linear_layers(model)


def test_plain_training_without_rows_is_refused(location):
    base = load_base(location, CPU)
    with pytest.raises(ValueError, match="no rows"):
        train_plain(add_adapter(base, LoraSettings()), [], PlainSettings(steps=1))


def test_plain_training_that_moves_nothing_is_an_error(location, monkeypatch):
    base = load_base(location, CPU)
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: None)
    with pytest.raises(AdapterUnmovedError):
        rows = plain_rows(base.tokenizer, TEXTS, 64)
        train_plain(add_adapter(base, LoraSettings()), rows, PlainSettings(steps=1))


def test_the_gradient_of_a_plain_mini_batch_is_bounded(location, monkeypatch):
    base = load_base(location, CPU, torch.float32)
    model = add_adapter(base, LoraSettings(rank=4, alpha=4000.0))
    run = plain.PlainRun(model, plain_rows(base.tokenizer, TEXTS, 64), PlainSettings(steps=2, batch_rows=2))
    norms = []

    def norm() -> None:
        norms.append(float(torch.cat([p.grad.flatten() for p in run._trained]).norm()))

    monkeypatch.setattr(run._optimizer, "step", norm)
    run.step()
    monkeypatch.setattr(plain, "LARGEST_NORM", float("inf"))
    run.step()
    assert norms[0] <= 1.0001 < norms[1]


@pytest.mark.parametrize("count", [1, 12, 13, 1300])
def test_plain_batches_hold_every_row_once_per_pass(count):
    lengths = np.random.default_rng(3).permutation(count) + 2
    rows = [Row.of(np.full(length, length)) for length in lengths]
    batches = plain._shuffled_batches(rows, PlainSettings(steps=1, batch_rows=12))
    passes = []
    for _ in range(2):
        drawn = [next(batches) for _ in range(math.ceil(count / 12))]
        passes.append([len(row) for batch in drawn for row in batch])
        assert sorted(passes[-1]) == sorted(lengths)
        assert all(len(batch) <= 12 for batch in drawn)
    if count == 1300:
        assert passes[0] != passes[1]
        padding = sum(max(map(len, batch)) * len(batch) for batch in drawn) / sum(lengths)
        assert padding < 1.05


def test_the_plain_learning_rate_rises_and_falls_to_nothing():
    shares = [plain._share_of_rate(done, 100) for done in range(100)]
    top = shares.index(max(shares))
    assert shares[0] == 0.2 and top == 4 and shares[top] > 0.95
    assert shares[top:] == sorted(shares[top:], reverse=True) and 0 < shares[-1] <= 0.011


def test_perplexity_weighs_tokens_and_counts_the_end(location):
    base = load_base(location, CPU, torch.float32)
    nats, tokens = 0.0, 0
    for text in TEXTS[:3]:
        ids = [0, *base.tokenizer(text, add_special_tokens=False)["input_ids"], 1]
        row = torch.tensor([ids])
        loss = base.model(input_ids=row, labels=row).loss
        nats += float(loss) * (len(ids) - 1)
        tokens += len(ids) - 1
    found = perplexity(base.model, base.tokenizer, TEXTS)
    assert found.tokens == tokens == 17
    assert found.rows == 3
    assert found.perplexity == pytest.approx(math.exp(nats / tokens), rel=1e-5)
    with pytest.raises(ValueError, match="no text"):
        perplexity(base.model, base.tokenizer, ["", ""])


def test_texts_are_read_from_both_kinds_of_file(tmp_path):
    plain = tmp_path / "rows.txt"
    plain.write_text("one line\n\nanother\n", encoding="utf-8")
    assert read_texts(plain) == ["one line", "another"]
    lines = tmp_path / "rows.jsonl"
    lines.write_text('"a string"\n{"text": "Ünïcode", "id": 3}\n', encoding="utf-8")
    assert read_texts(lines) == ["a string", "Ünïcode"]
    lines.write_text('{"text": "private"}', encoding="utf-8")
    with pytest.raises(ValueError, match="entry 1 of") as caught:
        read_texts(lines, "context")
    assert "private" not in str(caught.value)


def test_the_command_prints_one_line(trained, location, tmp_path):
    base, model, _ = trained
    save_adapter(model, tmp_path / "adapter", "murmura-base")
    texts = tmp_path / "rows.txt"
    texts.write_text("\n".join(TEXTS))
    command = [sys.executable, "-m", "services.trainer.worker.evaluate", "--base", location]
    done = subprocess.run(
        [*command, "--adapter", str(tmp_path / "adapter"), "--texts", str(texts)],
        capture_output=True,
        text=True,
        check=True,
    )
    bare, found = (json.loads(line) for line in done.stdout.splitlines())
    assert set(found) == {"adapter", "perplexity", "tokens", "rows"}
    assert bare["adapter"] is None and found["adapter"] == str(tmp_path / "adapter")
    assert found["tokens"] == bare["tokens"] == 17
    expected = perplexity(model, base.tokenizer, TEXTS).perplexity
    assert found["perplexity"] == pytest.approx(expected, rel=0.02)
    assert bare["perplexity"] != found["perplexity"]
