"""How often a stream speaks: the first piece at once, later ones at a pace, and nothing is lost."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.tokens import Principal
from services.inference.adapters import Adapters
from services.inference.bases import Base
from services.inference.engine import Delta, Finish, Likely, Sampling, joined
from services.inference.generation import Generation, Salts
from services.inference.pace import Pace
from services.inference.rights import Rules

ANA = Principal("ana@local", frozenset({"analyst"}))
BOB = Principal("bob@local", frozenset({"analyst"}))


class Clock:
    """Stands at `now` seconds."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def sent(pieces: Sequence[tuple[float, Delta]], interval_s: float) -> list[Delta]:
    """Return what goes of pieces that come at these times."""
    clock = Clock()
    pace = Pace(lambda: interval_s, clock)
    found = []
    for clock.now, piece in pieces:
        if (due := pace.after(piece)) is not None:
            found.append(due)
    return found


def test_the_first_piece_goes_at_once_and_later_ones_once_an_interval() -> None:
    pieces = [(0.001 * n, Delta(str(n), 1)) for n in range(7)]
    assert [piece.text for piece in sent(pieces, 0.003)] == ["0", "123", "456"]


def test_the_last_piece_goes_at_once_with_what_waited() -> None:
    pieces = [(0.0, Delta("a", 1)), (0.1, Delta("b", 1)), (0.2, Delta("c", 1, Finish.STOP))]
    assert sent(pieces, 60.0) == [Delta("a", 1), Delta("bc", 2, Finish.STOP)]


def test_a_slow_engines_pieces_go_as_they_come() -> None:
    pieces = [(1.0 * n, Delta(str(n), 1)) for n in range(4)]
    assert sent(pieces, 0.9) == [piece for _, piece in pieces]


def test_without_an_interval_each_piece_goes_as_it_comes() -> None:
    pieces = [(0.0, Delta(str(n), 1)) for n in range(4)]
    assert sent(pieces, 0.0) == [piece for _, piece in pieces]


def test_half_a_character_waits_for_its_other_half_and_delays_nothing() -> None:
    pieces = [(0.0, Delta("", 1)), (0.001, Delta("é", 1)), (0.002, Delta("!", 1, Finish.LENGTH))]
    assert sent(pieces, 60.0) == [Delta("é", 2), Delta("!", 1, Finish.LENGTH)]


def test_log_probabilities_go_also_where_there_is_no_text_yet() -> None:
    likely = (Likely("<half>", -1.0),)
    assert sent([(0.0, Delta("", 1, None, likely))], 60.0) == [Delta("", 1, None, likely)]


made = st.tuples(st.floats(0, 1), st.text(max_size=3), st.integers(0, 2))


@given(st.lists(made, max_size=30), st.sampled_from([0.0, 0.02, 5.0]))
def test_nothing_is_lost_repeated_or_put_in_another_order(
    lines: list[tuple[float, str, int]], interval_s: float
) -> None:
    now, pieces = 0.0, []
    for wait, text, tokens in lines:
        now += wait
        pieces.append((now, Delta(text, tokens, None, (Likely(text, -1.0),) * tokens)))
    pieces.append((now, Delta("", 1, Finish.STOP)))
    found = sent(pieces, interval_s)
    assert joined(found) == joined([piece for _, piece in pieces])
    assert [piece.finish for piece in found if piece.finish] == [Finish.STOP]


class ThreePieces:
    """An engine that is quick."""

    name = "three"
    context_length = 10

    async def generate(self, *_: Any) -> AsyncGenerator[Delta, None]:
        for text in "xy":
            yield Delta(text, 1)
        yield Delta("z", 1, Finish.STOP)


async def texts(generation: Generation, who: Principal) -> list[str]:
    async with (
        generation.served("baseModels/tiny", who) as served,
        aclosing(generation.stream(served, [1], Sampling())) as pieces,
    ):
        return [piece.text async for piece in pieces]


def site(tmp_path: Path, pieces_per_s: float) -> Generation:
    bases = {"baseModels/tiny": Base(cast(Any, ThreePieces()), {})}
    return Generation(bases, cast(Adapters, None), Salts(tmp_path / "salt"), Rules(), pieces_per_s)


@pytest.mark.parametrize(("pieces_per_s", "expected"), [(0, ["x", "y", "z"]), (1e9, ["x", "y", "z"]), (1, ["x", "yz"])])
async def test_a_stream_keeps_the_operators_pace(tmp_path: Path, pieces_per_s: float, expected: list[str]) -> None:
    assert await texts(site(tmp_path, pieces_per_s), ANA) == expected


async def test_a_tenants_streams_share_its_pieces_and_take_none_of_anothers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []

    class Asked(Pace):
        def after(self, piece: Delta) -> Delta | None:
            asked.append(self._interval())
            return super().after(piece)

    monkeypatch.setattr("services.inference.generation.Pace", Asked)
    generation = site(tmp_path, 500)
    async with (
        generation.served("baseModels/tiny", ANA) as served,
        aclosing(generation.stream(served, [1], Sampling())) as first,
        aclosing(generation.stream(served, [1], Sampling())) as second,
    ):
        await anext(first)
        await anext(second)
        await texts(generation, BOB)
    assert asked == [1 / 500, 2 / 500, 1 / 500, 1 / 500, 1 / 500]
