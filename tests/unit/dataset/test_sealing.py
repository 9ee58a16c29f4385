"""Encrypted pieces: none can be changed, moved, dropped, repeated or cut off, and only those asked for are opened."""

from __future__ import annotations

import io
from collections.abc import Callable

import pyarrow as pa
import pytest

from services.dataset import sealing
from services.dataset.sealing import Sealed

KEY = bytes(range(32))
PIECES = [(b"alpha" * 10, 3), (b"beta" * 20, 1), (b"gamma" * 5, 4)]


def sealed(name: str = "one", pieces: list[tuple[bytes, int]] = PIECES) -> list[bytes]:
    """The records of a file, the end's included."""
    file = io.BytesIO()
    writer = sealing.Writer(file, KEY, name)
    cuts = [0]
    for plain, count in pieces:
        writer.add(plain, count)
        cuts.append(file.tell())
    writer.end()
    held = file.getvalue()
    return [held[a:b] for a, b in zip(cuts, [*cuts[1:], None], strict=True)]


def opened(records: list[bytes], name: str = "one", **asked: int) -> list[tuple[int, bytes]]:
    file = io.BytesIO(b"".join(records))
    return [(position, plain.to_pybytes()) for position, plain in sealing.read(file, KEY, name, **asked)]


def test_pieces_come_back_with_their_positions() -> None:
    assert opened(sealed()) == [(0, PIECES[0][0]), (3, PIECES[1][0]), (4, PIECES[2][0])]
    assert not any(word in b"".join(sealed()) for word in (b"alpha", b"beta", b"gamma"))


@pytest.mark.parametrize(
    ("start", "stop", "positions"), [(0, 3, [0]), (2, 4, [0, 3]), (3, 8, [3, 4]), (5, 6, [4]), (8, 8, [])]
)
def test_only_what_is_asked_for_is_opened(start: int, stop: int, positions: list[int]) -> None:
    assert [position for position, _ in opened(sealed(), start=start, stop=stop)] == positions


@pytest.mark.parametrize(
    "change",
    [
        lambda r: [r[1], r[0], *r[2:]],
        lambda r: [r[0], *r[2:]],
        lambda r: [r[0], r[0], *r[1:]],
        lambda r: r[:-1],
        lambda r: r[:1] + r[-1:],
        lambda r: [*r[:-1], r[-1][:-1]],
        lambda r: [r[0][:-1] + bytes([r[0][-1] ^ 1]), *r[1:]],
        # The header says that this piece is the last.
        lambda r: [r[0][:8] + b"\1" + r[0][9:]],
        lambda r: [],
        lambda r: [b"\xff" * 9],
    ],
)
def test_whatever_is_done_to_a_file_is_noticed(change: Callable[[list[bytes]], list[bytes]]) -> None:
    with pytest.raises(Sealed):
        opened(change(sealed()))


def test_what_is_cut_off_is_not_made_up_for_by_what_memory_held(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = sealed()
    left = {len(record) - 9: record[9:] for record in whole}
    monkeypatch.setattr(
        sealing.pa, "allocate_buffer", lambda size: pa.py_buffer(bytearray(left.get(size, b"").ljust(size)))
    )
    assert len(opened(whole)) == len(PIECES)
    for cut in (1, 16):
        with pytest.raises(Sealed):
            opened([*whole[:-1], whole[-1][:-cut]])
    with pytest.raises(Sealed):
        opened([*whole[:1], whole[1][:-1]], stop=4)


def test_a_piece_of_another_file_is_noticed() -> None:
    mine, other = sealed(), sealed("two")
    with pytest.raises(Sealed):
        opened([mine[0], other[1], *mine[2:]])
    with pytest.raises(Sealed):
        opened(other)


def test_skipping_by_a_changed_header_leads_nowhere() -> None:
    records = sealed()
    # As if the first piece held two rows and not three: what follows would be other slots than it says.
    records[0] = (2).to_bytes(4, "big") + records[0][4:]
    with pytest.raises(Sealed):
        opened(records, start=3, stop=4)


def test_a_piece_that_claims_to_hold_more_is_noticed_before_the_end() -> None:
    records = sealed()
    # As if it held the slots of the others too, which would then seem to be empty.
    records[0] = (100).to_bytes(4, "big") + records[0][4:]
    with pytest.raises(Sealed):
        opened(records, start=5, stop=6)


def test_a_piece_that_would_share_its_nonce_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        sealing.Writer(io.BytesIO(), KEY, "one").add(b"plain", 0)
