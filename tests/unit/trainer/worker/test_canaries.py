"""Canaries: texts at random, fair coins, and prompts that begin as rows do."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from services.trainer.worker.canaries import Canary, coins, make, planted
from services.trainer.worker.data import Row, Unit
from services.trainer.worker.streams import RunKey
from services.trainer.worker.text import TextFormat, encoder

KEY = RunKey(bytes(range(32)))
BUNDLED = Path(__file__).parents[4] / "deploy/local/base_model/weights"
CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"  # noqa: E501


def test_texts_differ_and_follow_the_template() -> None:
    made = make("{name} has {number}|{word} {word}", 300, KEY.stream("canaries"))
    assert len({canary.prompt for canary in made}) == 300
    assert len({canary.secret for canary in made}) > 250
    for canary in made:
        *name, has, number = canary.prompt.split(" ")
        assert (len(name), has, len(number), number.isdecimal(), len(canary.secret.split(" "))) == (
            2,
            "has",
            6,
            True,
            2,
        )
    assert make("{name} has {number}|{word} {word}", 300, KEY.stream("canaries")) == made
    assert make("no {word} bar", 1, KEY.stream("canaries"))[0].secret == ""


def test_coins_are_fair() -> None:
    thrown = coins(4000, KEY.stream("coins"))
    assert abs(sum(thrown) - 2000) < 5 * 4000**0.5 / 2
    assert abs(sum(a is b for a, b in pairwise(thrown)) - 2000) < 5 * 4000**0.5 / 2


@pytest.mark.parametrize("text_format", list(TextFormat))
def test_what_is_typed_begins_as_a_row_does_and_the_secret_follows(text_format: TextFormat) -> None:
    """Else an attacker would ask for something that was never learned, and find nothing whatever leaks."""
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED)
    tokenizer.chat_template = CHAT
    row = Canary("Ada Abel suffers from ", "a velvet form").encoded(encoder(tokenizer, text_format, 64), text_format)
    asked = Canary("Ada Abel suffers from ", "a velvet form").asked(tokenizer, text_format)
    assert row.ids[: len(asked)].tolist() == asked
    rest = tokenizer.decode(row.ids[len(asked) :], skip_special_tokens=True)
    assert rest.strip() == "a velvet form"


def test_canaries_that_take_no_part_leave_no_trace() -> None:
    row = Row.of(np.arange(10, 20))
    assert planted([row, row], [True, False], 3) == [Unit((row, row, row)), Unit(())]
