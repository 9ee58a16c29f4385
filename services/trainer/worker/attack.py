"""What an attacker does to a finished adapter: scores its canaries, and asks it for their secrets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import compress, groupby
from typing import Any

import torch

from murmura.api.trainer.v1 import trainer_pb2
from services.trainer.worker import auditing
from services.trainer.worker.canaries import OTHERS, Canary, coins, make, planted
from services.trainer.worker.data import Row, pad
from services.trainer.worker.loss import sequence_losses
from services.trainer.worker.streams import RunKey
from services.trainer.worker.text import Encoder, TextFormat

# Asking takes far longer than scoring.
MOST_ATTACKED = 50
SAMPLES = 8
SCORED_AT_ONCE = 32
TYPED_AT_ONCE = 16
ROC_POINTS = 100


class Planting:
    """The canaries of a job; the same on every rank, and after a resume.

    Args:
        spec: as assigned.
        encode: the job's way from text to rows.
        text_format: of the job's rows.
        most_rows: of a unit.
        key: of the run.
        tokenizer: of the base model.
    """

    def __init__(
        self,
        spec: trainer_pb2.CanarySpec,
        encode: Encoder,
        text_format: TextFormat,
        most_rows: int,
        key: RunKey,
        tokenizer: Any,
    ) -> None:
        self._tokenizer, self._text_format = tokenizer, text_format
        self._canaries = make(spec.template, spec.count, key.stream("canaries"))
        self._others = make(spec.template, OTHERS, key.stream("other canaries"))
        self._part = coins(spec.count, key.stream("coins of canaries"))
        self._rows, self._other_rows = (
            [canary.encoded(encode, text_format) for canary in some] for some in (self._canaries, self._others)
        )
        self.units = planted(self._rows, self._part, min(spec.rows, most_rows))

    @property
    def rows(self) -> list[Row]:
        """The rows of those that take part."""
        return [row for unit in self.units for row in unit.rows]

    @torch.no_grad()
    def audit(self, model: Any, delta: float, pause: Callable[[], None] = lambda: None) -> trainer_pb2.Audit:
        """Attack a trained model.

        Args:
            model: with its adapter, as it was saved.
            delta: at which epsilon is said.
            pause: called now and then; what it raises ends the attack.
        """
        model.eval()
        own, others = (_scores(model, rows, pause) for rows in (self._rows, self._other_rows))
        members, left_out = list(compress(own, self._part)), list(compress(own, (not part for part in self._part)))
        found = auditing.findings(members, left_out, others)
        asked = [canary for canary in compress(self._canaries, self._part) if canary.secret]
        extracted = list(self._extracted(model, asked[:MOST_ATTACKED], pause))
        histogram = [0] * (int(found.exposure_limit) + 1)
        for exposure in found.exposures:
            histogram[int(exposure)] += 1
        return trainer_pb2.Audit(
            canaries=len(own),
            planted=len(members),
            others=len(others),
            guesses=found.guesses,
            correct_guesses=found.correct,
            confidence=auditing.CONFIDENCE,
            refuted_mu=found.refuted,
            refuted_epsilon=auditing.epsilon_of(found.refuted, delta),
            estimated_mu=found.estimated,
            estimated_epsilon=auditing.epsilon_of(found.estimated, delta),
            certain_epsilon=auditing.epsilon_of(found.certain, delta),
            delta=delta,
            true_positive_rate_at_0_1_percent=found.true_positive_rate(0.001),
            true_positive_rate_at_1_percent=found.true_positive_rate(0.01),
            roc=[
                trainer_pb2.RocPoint(false_positive_rate=alarm, true_positive_rate=hit)
                for alarm, hit in auditing.thinned(found.roc, ROC_POINTS)
            ],
            median_exposure=found.median_exposure,
            highest_exposure=found.exposures[0],
            exposure_limit=found.exposure_limit,
            exposure_histogram=histogram,
            attacked=len(extracted),
            extracted_greedily=sum(greedily for greedily, _ in extracted),
            extracted_by_sampling=sum(sampled for _, sampled in extracted),
            samples=SAMPLES if extracted else 0,
        )

    def _extracted(
        self, model: Any, canaries: Sequence[Canary], pause: Callable[[], None]
    ) -> Iterator[tuple[bool, bool]]:
        """Type prompts; yields for each whether its secret comes greedily, and whether it does in some sample.

        Prompts of one length are typed together: none is padded, which not every model takes well.
        """
        asked = sorted(((c.asked(self._tokenizer, self._text_format), c.secret) for c in canaries), key=_prompt_length)
        for _, alike in groupby(asked, key=_prompt_length):
            prompts, secrets = zip(*alike, strict=True)
            for start in range(0, len(prompts), TYPED_AT_ONCE):
                pause()
                some = slice(start, start + TYPED_AT_ONCE)
                yield from self._told(model, prompts[some], secrets[some])

    def _told(self, model: Any, prompts: Sequence[list[int]], secrets: Sequence[str]) -> Iterator[tuple[bool, bool]]:
        ids = torch.tensor(prompts, device=next(model.parameters()).device)
        room = max(map(len, self._tokenizer(list(secrets), add_special_tokens=False)["input_ids"])) + 2
        common = {"attention_mask": torch.ones_like(ids), "max_new_tokens": room, "use_cache": True}
        common |= {"pad_token_id": self._tokenizer.eos_token_id}
        greedy = model.generate(input_ids=ids, do_sample=False, **common)
        sampled = model.generate(
            input_ids=ids, do_sample=True, temperature=1.0, top_k=0, num_return_sequences=SAMPLES, **common
        )

        def told(sequences: Any, secret: str) -> bool:
            texts = self._tokenizer.batch_decode(sequences[:, ids.shape[1] :], skip_special_tokens=True)
            return any(_plain(text).startswith(_plain(secret)) for text in texts)

        for secret, one, several in zip(secrets, greedy.split(1), sampled.split(SAMPLES), strict=True):
            yield told(one, secret), told(several, secret)


def _prompt_length(asked: tuple[list[int], str]) -> int:
    return len(asked[0])


def _plain(text: str) -> str:
    return " ".join(text.split())


def _scores(model: Any, rows: Sequence[Row], pause: Callable[[], None]) -> list[float]:
    """Return the share of each row's loss that the adapter has taken away: what it has learned of it.

    Of the scores that were tried on the bundled model (loss, its difference, its share, per token and in sum) the share
    and the loss itself find most, and the share alone forgives a row for being hard.
    """
    scores: list[float] = []
    for start in range(0, len(rows), SCORED_AT_ONCE):
        pause()
        ids, labels = pad(rows[start : start + SCORED_AT_ONCE], next(model.parameters()).device)
        adapted = sequence_losses(model(input_ids=ids, use_cache=False).logits, labels)
        with model.disable_adapter():
            before = sequence_losses(model(input_ids=ids, use_cache=False).logits, labels)
        scores += (1 - adapted / before.clamp(min=1e-6)).double().tolist()
    return scores
