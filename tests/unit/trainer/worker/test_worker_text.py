"""A row is made of itself alone, learns what it should, and is never an error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from services.trainer.worker.loss import IGNORED
from services.trainer.worker.text import TextFormat, TextFormatError, chat, completion_rows, encoder, plain_rows

BASE = Path(__file__).parents[4] / "deploy" / "local" / "base_model" / "weights"
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'bad' %}{{ raise_exception('no') }}{% endif %}"
    "[{{ m.role }}] {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(BASE)


@pytest.fixture
def talking(tokenizer):
    tokenizer.chat_template = TEMPLATE
    yield tokenizer
    tokenizer.chat_template = None


def learned(tokenizer, row) -> str:
    return tokenizer.decode(row.labels[row.labels != IGNORED])


def test_texts_begin_and_end_and_are_cut(tokenizer):
    rows = plain_rows(tokenizer, ["a rash", "", "a rash after aspirin " * 50], 16)
    assert rows[0].ids[0] == tokenizer.bos_token_id and rows[0].ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(rows[0].ids[1:-1]) == "a rash"
    assert len(rows[1]) == 0 and not rows[1].trains
    assert len(rows[2]) == 16 and rows[2].ids[-1] != tokenizer.eos_token_id
    assert all((row.labels == row.ids).all() for row in rows)


def test_many_texts_keep_their_order_and_know_nothing_of_each_other(tokenizer):
    texts = [f"case {number} " * (number % 7) for number in range(1300)]
    together = plain_rows(tokenizer, texts, 64)
    for number in (0, 1, 600, 1299):
        (alone,) = plain_rows(tokenizer, [texts[number]], 64)
        assert together[number].ids.tolist() == alone.ids.tolist()


def test_a_text_that_spells_a_special_token_stays_a_text(tokenizer):
    special = tokenizer.eos_token
    (row,) = plain_rows(tokenizer, [f"before {special} after"], 64)
    assert tokenizer.eos_token_id not in row.ids[1:-1]
    assert tokenizer.decode(row.ids[1:-1]) == f"before {special} after"


def test_a_completion_is_learned_and_its_prompt_is_not(tokenizer):
    (row,) = completion_rows(tokenizer, ["The patient took aspirin."], [" A rash followed."], 64)
    assert learned(tokenizer, row) == f" A rash followed.{tokenizer.eos_token}"
    assert tokenizer.decode(row.ids[1:]) == f"The patient took aspirin. A rash followed.{tokenizer.eos_token}"
    assert not completion_rows(tokenizer, ["x"], [""], 64)[0].trains


@given(st.integers(0, 60), st.integers(1, 60), st.integers(4, 40))
def test_a_long_prompt_loses_its_beginning_first(prompt, answer, longest):
    tokenizer = Counting()
    (row,) = completion_rows(tokenizer, ["p" * prompt], ["c" * answer], longest)
    ids = row.ids.tolist()
    assert len(ids) == min(longest, prompt + answer + 2)
    completion = [token for token in ids[1:] if token >= 1000 or token == 1]
    kept = ids[1 : len(ids) - len(completion)]
    # What is left of the prompt is its end, what is left of the completion its beginning.
    assert kept == list(range(100 + prompt - len(kept), 100 + prompt))
    assert completion == [*range(1000, 1000 + answer), 1][: len(completion)]
    assert len(completion) >= min(answer + 1, (longest - 1) // 2)
    assert [label for label in row.labels if label != IGNORED] == completion


class Counting:
    """Numbers the letters of prompts from 100 and of completions from 1000."""

    bos_token_id, eos_token_id = 0, 1

    def __call__(self, texts, **_):
        return {"input_ids": [[(100 if c == "p" else 1000) + i for i, c in enumerate(text)] for text in texts]}


def test_every_answer_of_the_assistant_is_learned(talking):
    messages = [
        {"role": "user", "content": "What happened?"},
        {"role": "assistant", "content": "A rash."},
        {"role": "user", "content": "After what?"},
        {"role": "assistant", "content": "After aspirin."},
    ]
    row = chat(talking, json.dumps(messages), 200)
    # The space before an answer and its first word are one token.
    assert learned(talking, row) == " A rash.\n After aspirin.\n"
    assert learned(talking, chat(talking, json.dumps(messages[1:]), 200)) == " After aspirin.\n"
    assert len(chat(talking, json.dumps(messages), 12)) == 12


def test_an_answer_that_later_turns_rewrite_is_not_learned(talking):
    talking.chat_template = TEMPLATE.replace(
        "m.content", "m.content | upper if m.role == 'assistant' and not loop.last else m.content"
    )
    messages = [{"role": "user", "content": "why?"}, {"role": "assistant", "content": "because"}] * 2
    assert learned(talking, chat(talking, json.dumps(messages), 200)) == " because\n"


@pytest.mark.parametrize(
    "text",
    [
        *("", "no json", "{}", "[1]", "[]", "null", "[" * 5000),
        '[{"role": "bad", "content": "x"}]',
        '[{"role": "user"}]',
        '[{"role": "user", "content": "no answer"}]',
        '[{"role": "assistant", "content": 3}]',
    ],
)
def test_a_conversation_that_cannot_be_read_takes_no_part(talking, text):
    assert not chat(talking, text, 64).trains


def test_what_the_tokenizer_cannot_do_is_found_before_any_row(tokenizer, talking):
    assert callable(encoder(talking, TextFormat.CHAT, 64))
    talking.chat_template = None
    with pytest.raises(TextFormatError, match="no chat template"):
        encoder(talking, TextFormat.CHAT, 64)
    endless = Counting()
    endless.eos_token_id = None  # type: ignore[assignment]
    with pytest.raises(TextFormatError, match="no end-of-text"):
        encoder(endless, TextFormat.PLAIN, 64)
    with pytest.raises(ValueError, match="two tokens"):
        encoder(tokenizer, TextFormat.PLAIN, 1)


def test_a_tokenizer_without_a_beginning_uses_its_end():
    tokenizer = Counting()
    tokenizer.bos_token_id = None  # type: ignore[assignment]
    assert plain_rows(tokenizer, ["p"], 10)[0].ids.tolist() == [1, 100, 1]
