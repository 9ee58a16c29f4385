"""From sampled units to what the model is given: micro-batches of rows, packed or padded.

Texts of one dataset differ much in length, and a padded batch costs its longest row for every row. So rows are laid
out one after another, as if they were one text, the longest first: rows of the same length form a rectangle (rows,
length) that is a plain view of the flat tensor. Whatever is per token (nearly all of a model) runs on the flat tensor;
whatever is per row (attention, per-unit gradients) runs on the rectangles. No row is ever seen by another one, not even
through a mask, so a number that is not finite stays in its own row. A padded batch is the case of one rectangle.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from services.trainer.worker.data import Row, Unit
from services.trainer.worker.loss import IGNORED


@dataclass(frozen=True)
class Rectangle:
    """Rows of one length that lie next to each other.

    Attributes:
        start: position of the first token in the flat tensor.
        rows: how many.
        length: tokens of each, padding on the right included.
        first: index of the first row among the rows of the micro-batch.
        fresh: the units (begin, end) that have their first row here.
    """

    start: int
    rows: int
    length: int
    first: int
    fresh: tuple[int, int]

    def of(self, flat: Tensor) -> Tensor:
        """Return this part of a tensor (tokens, features) as a view (rows, length, features)."""
        return flat[self.start : self.start + self.rows * self.length].view(self.rows, self.length, -1)


@dataclass(frozen=True)
class Layout:
    """Where the rows of a micro-batch are.

    Attributes:
        rectangles: they cover the flat tensor from its beginning to its end.
        unit_of_row: position of each row's unit among the units given; shape (rows,).
        shape: of the tensors that the model is given: (1, tokens) if packed, else (rows, length).
        packed: whether the rows lie in one.
    """

    rectangles: tuple[Rectangle, ...]
    unit_of_row: Tensor
    shape: tuple[int, int]
    packed: bool

    def units(self, rectangle: Rectangle) -> Tensor:
        """Return the units of a rectangle's rows; shape (rows,)."""
        return self.unit_of_row[rectangle.first : rectangle.first + rectangle.rows]


@dataclass(frozen=True)
class MicroBatch:
    """What the model is given at once. Under a causal model, padding on the right needs no mask.

    Attributes:
        input_ids: shape `layout.shape`, like the following.
        position_ids: of each token in its own row.
        targets: the token to be predicted at each position; `IGNORED` where nothing is.
        weights: of each prediction, such that a row counts its mean and a unit the mean of its rows; double precision.
        layout: where the rows are.
    """

    input_ids: Tensor
    position_ids: Tensor
    targets: Tensor
    weights: Tensor
    layout: Layout


def arranged(units: Iterable[Unit]) -> list[Unit]:
    """Return the units that have rows, those with the longest row first: the order in which `micro_batches` wants them.

    A unit without rows has no gradient, so that leaving it out leaves out nothing.
    """
    return sorted((unit for unit in units if unit.rows), key=lambda unit: -max(map(len, unit.rows)))


def micro_batches(
    units: Sequence[Unit], token_budget: int, device: torch.device, packed: bool = False, rectangle_tokens: int = 0
) -> Iterator[MicroBatch]:
    """Cut the rows of some units into micro-batches, the longest rows first.

    Rows are ordered by length, so a unit may straddle batches; `Layout.unit_of_row` brings it together again. A row
    longer than the budget gets a batch of its own.

    Args:
        units: the units of one logical batch, `arranged`: units then appear in their order, and what is computed for
            them can be written where it belongs instead of being added to zeros.
        token_budget: tokens of a micro-batch, padding included.
        device: where the tensors go.
        packed: lay rows of all lengths out in one; otherwise pad them to the longest.
        rectangle_tokens: what one more rectangle costs, in tokens: rows are padded to a longer rectangle where that is
            cheaper. 0 packs without any padding.
    """
    rows = [(row, index, 1.0 / len(unit.rows)) for index, unit in enumerate(units) for row in unit.rows]
    rows.sort(key=lambda entry: -len(entry[0]))
    start = seen = 0
    while start < len(rows):
        stop = start + 1
        if packed:
            tokens = len(rows[start][0])
            while stop < len(rows) and tokens + len(rows[stop][0]) <= token_budget:
                tokens += len(rows[stop][0])
                stop += 1
        else:
            stop = min(len(rows), start + max(1, token_budget // len(rows[start][0])))
        chosen = rows[start:stop]
        lengths = [len(row) for row, _, _ in chosen]
        sides = rectangles(lengths, rectangle_tokens) if packed else [(len(chosen), lengths[0])]
        yield _batch(chosen, sides, seen, packed, device)
        start, seen = stop, max(seen, 1 + max(index for _, index, _ in chosen))


def rectangles(lengths: Sequence[int], rectangle_tokens: int) -> list[tuple[int, int]]:
    """Divide rows, the longest first, into rectangles at the least cost in padding and rectangles.

    Args:
        lengths: of the rows, descending.
        rectangle_tokens: what a rectangle costs, in tokens.

    Returns:
        (rows, length) of each rectangle, in the order of the rows.
    """
    distinct = [i for i in range(len(lengths)) if i == 0 or lengths[i] != lengths[i - 1]]
    distinct.append(len(lengths))
    before = np.concatenate(([0], np.cumsum(lengths)))
    # best[j]: least cost of the rows before the j-th distinct length; a rectangle never splits equal rows.
    best, origin = [0.0], [0]
    for j in range(1, len(distinct)):
        costs = [
            best[i]
            + rectangle_tokens
            + (distinct[j] - distinct[i]) * lengths[distinct[i]]
            - int(before[distinct[j]] - before[distinct[i]])
            for i in range(j)
        ]
        origin.append(int(np.argmin(costs)))
        best.append(costs[origin[-1]])
    found, j = [], len(distinct) - 1
    while j > 0:
        i = origin[j]
        found.append((distinct[j] - distinct[i], int(lengths[distinct[i]])))
        j = i
    return found[::-1]


def _batch(
    chosen: Sequence[tuple[Row, int, float]],
    sides: Sequence[tuple[int, int]],
    seen: int,
    packed: bool,
    device: torch.device,
) -> MicroBatch:
    places, first, start = [], 0, 0
    for count, length in sides:
        new = {index for _, index, _ in chosen[first : first + count] if index >= seen}
        if new != set(range(seen, seen + len(new))):
            raise ValueError("units must be arranged, the one with the longest row first")
        places.append(Rectangle(start, count, length, first, (seen, seen + len(new))))
        first, start, seen = first + count, start + count * length, seen + len(new)
    # Which token pads does not matter: nothing looks at it. Token 0 exists in every vocabulary.
    ids, positions = np.zeros(start, np.int64), np.zeros(start, np.int64)
    targets, weights = np.full(start, IGNORED, np.int64), np.zeros(start, np.float64)
    for place in places:
        positions[place.start : place.start + place.rows * place.length] = np.tile(np.arange(place.length), place.rows)
        for number in range(place.rows):
            row, _, share = chosen[place.first + number]
            at = place.start + number * place.length
            ids[at : at + len(row)] = row.ids
            targets[at : at + len(row) - 1] = row.labels[1:]
            predicted = int(np.count_nonzero(row.labels[1:] != IGNORED))
            weights[at : at + len(row) - 1] = share / max(1, predicted)
    shape = (1, start) if packed else sides[0]

    def tensor(values: np.ndarray[tuple[int], np.dtype[np.generic]]) -> Tensor:
        return torch.from_numpy(values).view(shape).to(device)

    return MicroBatch(
        input_ids=tensor(ids),
        position_ids=tensor(positions),
        targets=tensor(targets),
        weights=tensor(weights),
        layout=Layout(
            rectangles=tuple(places),
            unit_of_row=torch.tensor([index for _, index, _ in chosen], device=device),
            shape=shape,
            packed=packed,
        ),
    )
