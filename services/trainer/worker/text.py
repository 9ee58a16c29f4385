"""From texts to tokenised rows: plain text, prompts with a completion, and chats.

What a row becomes depends on that row alone, and nothing in a row is an error: a chat that is no JSON, or an answer
that is empty, makes an empty row that takes no part, since an error would tell of it. How much was cut off is never
counted; where texts are cut is a public setting.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Any

from services.trainer.worker.data import Row
from services.trainer.worker.loss import IGNORED

_TOKENIZER_BATCH = 512
_ROLES = frozenset({"system", "user", "assistant"})
EMPTY = Row.of([])


class TextFormat(StrEnum):
    """What a row holds.

    PLAIN: a text; every token is learned.
    COMPLETION: a prompt and its completion; the completion is learned.
    CHAT: messages as JSON; the assistant's are learned.
    """

    PLAIN = "plain"
    COMPLETION = "completion"
    CHAT = "chat"


class TextFormatError(RuntimeError):
    """The tokenizer of the base model cannot write this format. Its message names public facts only."""


# Takes a column, and for completions a second one, and returns a row for each entry.
Encoder = Callable[[Sequence[str], Sequence[str]], list[Row]]


def encoder(tokenizer: Any, text_format: TextFormat, max_length: int) -> Encoder:
    """Return what makes rows of texts.

    Args:
        tokenizer: a public transformers tokenizer.
        text_format: what the columns hold.
        max_length: most tokens of a row; at least 2.

    Raises:
        TextFormatError: if the tokenizer has no end of text, or no chat template where one is needed. Raised here,
            before there are any rows.
    """
    if max_length < 2:
        raise ValueError("max_length must leave room for at least two tokens")
    if tokenizer.eos_token_id is None:
        raise TextFormatError("the tokenizer of the base model has no end-of-text token")
    if text_format is TextFormat.CHAT:
        if not getattr(tokenizer, "chat_template", None):
            raise TextFormatError("the tokenizer of the base model has no chat template")
        if not tokenizer.is_fast:
            raise TextFormatError("the tokenizer of the base model does not say where its tokens lie")
        return lambda texts, _: [chat(tokenizer, text, max_length) for text in texts]
    if text_format is TextFormat.COMPLETION:
        return lambda prompts, completions: completion_rows(tokenizer, prompts, completions, max_length)
    return lambda texts, _: plain_rows(tokenizer, texts, max_length)


def plain_rows(tokenizer: Any, texts: Sequence[str], max_length: int) -> list[Row]:
    """Tokenise texts as `bos text eos`, cut at the end to `max_length` tokens (a cut text has no eos)."""
    bos, eos = _ends(tokenizer)
    return [Row.of([bos, *ids, eos][:max_length]) if ids else EMPTY for ids in _tokens(tokenizer, texts)]


def completion_rows(tokenizer: Any, prompts: Sequence[str], completions: Sequence[str], max_length: int) -> list[Row]:
    """Tokenise as `bos prompt completion eos`; only the completion and its end are learned.

    Where both are too long, the prompt loses its beginning first, down to half of the room, and then the completion its
    end. Prompt and completion are tokenised apart, as they will be when the model is asked.
    """
    bos, eos = _ends(tokenizer)
    rows, room = [], max_length - 1
    for prompt, answer in zip(_tokens(tokenizer, prompts), _tokens(tokenizer, completions), strict=True):
        if not answer:
            rows.append(EMPTY)
            continue
        learned = [*answer, eos]
        kept = min(len(prompt), max(room - len(learned), room // 2))
        before, learned = [bos, *prompt[len(prompt) - kept :]], learned[: room - kept]
        rows.append(_row([*before, *learned], [(len(before), len(before) + len(learned))]))
    return rows


def chat(tokenizer: Any, text: str, max_length: int) -> Row:
    """Tokenise a conversation by the tokenizer's chat template; every answer of the assistant is learned.

    An answer is what the conversation up to it has more than the conversation before it with the assistant's turn
    opened, as texts: a token that begins in the one and ends in the other is learned. An answer that later turns
    rewrite, as some templates do, is not learned.

    Args:
        tokenizer: with a chat template.
        text: JSON, a list of objects with `role` (system, user, assistant) and `content`.
        max_length: cut at the end.
    """
    try:
        messages = json.loads(text)
        if not all(m["role"] in _ROLES and isinstance(m["content"], str) for m in messages):
            return EMPTY
        whole = _written(tokenizer, messages, opened=False)
        read = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
        ends = [end for _, end in read["offset_mapping"]]
        learned = []
        for index, message in enumerate(messages):
            if message["role"] != "assistant" or not index:
                continue  # an opening line answers nothing
            before = _written(tokenizer, messages[:index], opened=True)
            after = whole if index == len(messages) - 1 else _written(tokenizer, messages[: index + 1], opened=False)
            if whole.startswith(after) and after.startswith(before):
                learned.append((bisect_right(ends, len(before)), bisect_right(ends, len(after))))
    except Exception:
        # JSON, types, and whatever a template raises: the reason is about the row, so nobody may hear of it.
        return EMPTY
    return _row(read["input_ids"][:max_length], learned)


def _row(ids: Sequence[int], learned: Sequence[tuple[int, int]]) -> Row:
    labels = [IGNORED] * len(ids)
    for begin, end in learned:
        labels[begin:end] = ids[begin:end]
    return Row(Row.of(ids).ids, Row.of(labels[: len(ids)]).ids)


def _written(tokenizer: Any, messages: list[dict[str, str]], opened: bool) -> str:
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=opened))


def _tokens(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Tokenise texts; one that spells a special token stays a text."""
    found: list[list[int]] = []
    for start in range(0, len(texts), _TOKENIZER_BATCH):
        batch = list(texts[start : start + _TOKENIZER_BATCH])
        found += tokenizer(batch, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return found


def _ends(tokenizer: Any) -> tuple[int, int]:
    eos = int(tokenizer.eos_token_id)
    bos = eos if tokenizer.bos_token_id is None else int(tokenizer.bos_token_id)
    return bos, eos
