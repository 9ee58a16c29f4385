"""From logits to a token, and from tokens to text that can be streamed.

A tokenizer decodes a text, not a token: one character may take several tokens, and a space belongs
to the word after it. So text is held back until it can no longer change, and while it could be the
start of a stop text.
"""

from __future__ import annotations

from typing import Any

import torch

from services.inference.engine import Sampling

_INCOMPLETE = "\ufffd"


def draw(logits: torch.Tensor, sampling: Sampling, random: torch.Generator) -> int:
    """Draw a token: temperature, then top-k, then the nucleus (arXiv 1904.09751).

    Args:
        logits: of shape (vocabulary,).
        sampling: how.
        random: a CPU generator.

    Returns:
        A token id.
    """
    logits = logits.float().cpu()
    if sampling.temperature == 0:
        return int(logits.argmax())
    logits = logits / sampling.temperature
    if 0 < sampling.top_k < logits.numel():
        least = logits.topk(sampling.top_k).values[-1]
        logits = logits.masked_fill(logits < least, float("-inf"))
    if sampling.top_p < 1:
        ordered, order = logits.sort(descending=True)
        likely = ordered.softmax(0)
        # A token stays when those before it do not fill the nucleus, so the likeliest always does.
        outside = likely.cumsum(0) - likely >= sampling.top_p
        logits = logits.index_fill(0, order[outside], float("-inf"))
    return int(torch.multinomial(logits.softmax(0), 1, generator=random))


class TextOut:
    """The text of one output, as far as it may be shown.

    Args:
        tokenizer: a Hugging Face tokenizer.
        stop: texts that end the output.
    """

    def __init__(self, tokenizer: Any, stop: tuple[str, ...]) -> None:
        self._tokenizer = tokenizer
        self._stop = tuple(text for text in stop if text)
        self._hold = max((len(text) for text in self._stop), default=1) - 1
        self._tokens: list[int] = []
        self._settled = 0  # tokens whose text is in _text; decoding starts a little before, for its spaces
        self._from = 0
        self._text = ""
        self._shown = 0

    def push(self, token: int | None) -> tuple[str, bool]:
        """Take a token, or None for one without text.

        Returns:
            The text that may be shown now, and whether a stop text was reached.
        """
        if token is not None:
            self._tokens.append(token)
            before = self._decode(self._from, self._settled)
            now = self._decode(self._from, len(self._tokens))
            if len(now) > len(before) and not now.endswith(_INCOMPLETE):
                self._text += now[len(before) :]
                self._from, self._settled = self._settled, len(self._tokens)
        found = [place for text in self._stop if (place := self._text.find(text)) >= 0]
        if found:
            self._text = self._text[: min(found)]
            return self._show(len(self._text)), True
        return self._show(len(self._text) - self._hold), False

    def rest(self) -> str:
        """Return what was held back, at the end of an output."""
        before = self._decode(self._from, self._settled)
        self._text += self._decode(self._from, len(self._tokens))[len(before) :]
        self._settled = len(self._tokens)
        return self._show(len(self._text))

    def _decode(self, start: int, stop: int) -> str:
        text: str = self._tokenizer.decode(
            self._tokens[start:stop], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text

    def _show(self, end: int) -> str:
        text = self._text[self._shown : end] if end > self._shown else ""
        self._shown = max(self._shown, end)
        return text
