"""Pre-train Murmura's bundled base model on public text.

The demo must run on a machine with no network and two cores, so it needs a causal language model that is
small enough to commit, public enough to ship, and good enough that fine-tuning it shows something. This
script makes that model: a byte-level BPE tokenizer and a small Llama, both trained from scratch on MedQuAD
(public NIH text, CC BY 4.0). The learning rate follows the wall clock (warm-up, constant, linear decay), so
`--minutes` is a budget and not a guess.

    python -m deploy.local.base_model.train --corpus medquad.txt.gz --minutes 70
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

HERE = Path(__file__).parent
VOCABULARY_SIZE = 4096
CONTEXT = 256
SPECIAL_TOKENS = ("<s>", "</s>", "<pad>")


@dataclass(frozen=True)
class Schedule:
    """Learning rate as a function of the fraction of the time budget that has passed."""

    peak: float
    warmup: float = 0.02
    decay: float = 0.35

    def rate(self, progress: float) -> float:
        """Return the learning rate at `progress` in [0, 1]."""
        rising = min(1.0, progress / self.warmup)
        falling = min(1.0, max(0.0, 1.0 - progress) / self.decay)
        return self.peak * max(0.01, min(rising, falling))


def read_corpus(path: Path) -> tuple[list[str], list[str]]:
    """Read one document a line and split off every fiftieth as held-out text.

    Args:
        path: a gzip-compressed text file.

    Returns:
        Training documents and held-out documents.
    """
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        documents = [line.strip() for line in lines if line.strip()]
    held_out = documents[::50]
    training = [text for index, text in enumerate(documents) if index % 50]
    return training, held_out


def train_tokenizer(documents: list[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer: no text is out of its reach, whatever its alphabet."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    bos = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", bos)]),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Make a randomly initialised Llama of 5.9 million parameters (11.7 MB in bf16)."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY_SIZE,
            hidden_size=256,
            intermediate_size=704,
            num_hidden_layers=6,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def encode(tokenizer: PreTrainedTokenizerFast, documents: list[str]) -> NDArray[np.uint16]:
    """Encode documents as one stream of token ids, each `<s> … </s>`; shape (tokens,)."""
    eos = tokenizer.eos_token_id
    stream: list[int] = []
    for start in range(0, len(documents), 512):
        for ids in tokenizer(documents[start : start + 512])["input_ids"]:
            stream.extend(ids)
            stream.append(eos)
    return np.asarray(stream, dtype=np.uint16)


@torch.no_grad()
def held_out_loss(model: LlamaForCausalLM, stream: NDArray[np.uint16], windows: int = 256) -> float:
    """Return the mean loss in nats per token over the first `windows` windows of the held-out stream."""
    model.eval()
    count = min(windows, len(stream) // CONTEXT)
    ids = torch.from_numpy(stream[: count * CONTEXT].astype(np.int64)).view(count, CONTEXT)
    losses = []
    for batch in ids.split(16):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses.append(float(model(input_ids=batch, labels=batch).loss) * len(batch))
    model.train()
    return sum(losses) / count


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path, facts: dict[str, object]) -> None:
    """Write bf16 safetensors, the tokenizer and the training facts that the model card quotes."""
    out.mkdir(parents=True, exist_ok=True)
    stored = LlamaForCausalLM(model.config).to(torch.bfloat16)
    stored.load_state_dict(model.state_dict())
    stored.save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / "training.json").write_text(json.dumps(facts, indent=2) + "\n")


def main() -> None:
    """Train within the time budget; save every few minutes and at the end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, required=True, help="gzip text, one document a line")
    parser.add_argument("--minutes", type=float, default=70.0)
    parser.add_argument("--out", type=Path, default=HERE / "weights")
    parser.add_argument("--batch", type=int, default=16, help="windows of 256 tokens a step")
    parser.add_argument("--learning-rate", type=float, default=2.5e-3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    torch.manual_seed(options.seed)
    training, held_out = read_corpus(options.corpus)
    tokenizer = train_tokenizer(training)
    stream, held_out_stream = encode(tokenizer, training), encode(tokenizer, held_out)
    model = make_model(tokenizer)
    parameters = sum(p.numel() for p in model.parameters())
    print(
        f"{len(training)} documents, {len(stream)} tokens, {parameters / 1e6:.2f} M parameters",
        flush=True,
    )

    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)
    schedule = Schedule(options.learning_rate)
    generator = np.random.default_rng(options.seed)

    def facts(steps: int, seconds: float) -> dict[str, object]:
        loss = held_out_loss(model, held_out_stream)
        return {
            "corpus": options.corpus.name,
            "training_documents": len(training),
            "training_tokens": len(stream),
            "parameters": parameters,
            "steps": steps,
            "tokens_seen": steps * options.batch * CONTEXT,
            "seconds": round(seconds),
            "held_out_loss_nats_per_token": round(loss, 4),
            "held_out_perplexity": round(math.exp(loss), 2),
            "seed": options.seed,
        }

    start, step, last_save = time.monotonic(), 0, 0.0
    while (elapsed := time.monotonic() - start) < options.minutes * 60:
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(elapsed / (options.minutes * 60))
        offsets = generator.integers(0, len(stream) - CONTEXT, options.batch)
        batch = torch.from_numpy(np.stack([stream[o : o + CONTEXT] for o in offsets]).astype(np.int64))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        if step % 50 == 0:
            rate = step * options.batch * CONTEXT / elapsed
            print(
                f"{elapsed / 60:5.1f} min  step {step}  loss {loss.item():.3f}  {rate:.0f} tokens/s",
                flush=True,
            )
        if elapsed - last_save > 300:
            last_save = elapsed
            save(model, tokenizer, options.out, current := facts(step, elapsed))
            print(f"saved: held-out loss {current['held_out_loss_nats_per_token']}", flush=True)
    final = facts(step, time.monotonic() - start)
    save(model, tokenizer, options.out, final)
    print(json.dumps(final), flush=True)


if __name__ == "__main__":
    main()
