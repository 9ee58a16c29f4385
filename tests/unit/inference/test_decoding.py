"""Streamed text is the text: characters of many bytes, spaces and stop texts included."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from services.inference.decoding import TextOut, draw
from services.inference.engine import Sampling

TEXT = "naïve café: 37 °C — done 🙂🙃 end"


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """One token for each byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core)


def test_pieces_join_to_the_text_and_no_character_is_split(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    out = TextOut(tokenizer, ())
    pieces = [out.push(token)[0] for token in tokenizer.encode(TEXT)] + [out.rest()]
    assert "".join(pieces) == TEXT
    assert "\ufffd" not in "".join(pieces)
    assert max(len(piece) for piece in pieces) == 1


@pytest.mark.parametrize("stop", ["done", "🙂", "é: 3", "d"])
def test_nothing_of_a_stop_text_is_ever_shown(tokenizer: PreTrainedTokenizerFast, stop: str) -> None:
    out = TextOut(tokenizer, (stop, "never there"))
    shown = ""
    for token in tokenizer.encode(TEXT):
        text, stopped = out.push(token)
        shown += text
        assert TEXT.startswith(shown)
        if stopped:
            break
    assert shown == TEXT[: TEXT.index(stop)]


def test_what_only_looked_like_a_stop_text_is_shown_at_the_end(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    out = TextOut(tokenizer, ("endless",))
    shown = "".join(out.push(token)[0] for token in tokenizer.encode(TEXT))
    assert shown + out.rest() == TEXT


def test_drawing_keeps_to_top_k_and_nucleus() -> None:
    logits = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05]))
    random = torch.Generator().manual_seed(1)

    def drawn(sampling: Sampling) -> set[int]:
        return {draw(logits, sampling, random) for _ in range(400)}

    assert drawn(Sampling()) == {0, 1, 2, 3}
    assert drawn(Sampling(temperature=0)) == {0}
    assert drawn(Sampling(top_k=2)) == {0, 1}
    assert drawn(Sampling(top_p=0.7)) == {0, 1}
    assert drawn(Sampling(top_p=0.01)) == {0}
