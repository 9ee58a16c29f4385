"""Encrypted pieces: neither they nor their parts can be changed, moved, dropped, repeated or cut off unnoticed."""

from __future__ import annotations

import io
from collections.abc import Callable

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
        writer.add([plain], count)
        cuts.append(file.tell())
    writer.end()
    held = file.getvalue()
    return [held[a:b] for a, b in zip(cuts, [*cuts[1:], None], strict=True)]


def opened(records: list[bytes], name: str = "one", **asked: int) -> list[tuple[int, bytes]]:
    file = io.BytesIO(b"".join(records))
    return [(piece.position, piece.parts[0]) for piece in sealing.read(file, KEY, name, **asked)]


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
        lambda r: [r[0][:6] + b"\1" + r[0][7:]],
        # It says that this piece has no part, which would prove nothing.
        lambda r: [r[0][:4] + bytes(2) + r[0][6:7], *r[1:]],
        lambda r: [],
        lambda r: [b"\xff" * 7],
        lambda r: [b"\xff" * 1_000_000],
    ],
)
def test_whatever_is_done_to_a_file_is_noticed(change: Callable[[list[bytes]], list[bytes]]) -> None:
    with pytest.raises(Sealed):
        opened(change(sealed()))


@pytest.mark.parametrize("cut", range(1, 27))
def test_what_is_cut_off_is_noticed_wherever_it_is(cut: int) -> None:
    with pytest.raises(Sealed):
        opened([*sealed()[:-1], sealed()[-1][:-cut]])


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
        sealing.Writer(io.BytesIO(), KEY, "one").add([b"plain"], 0)


# ---------------------------------------------------------------- parts

PARTS = [[b"left" * 4, b"middle" * 9, b""], [b"left" * 7, b"right" * 2, b"middle"]]


def in_parts() -> bytes:
    file = io.BytesIO()
    writer = sealing.Writer(file, KEY, "one")
    for parts in PARTS:
        writer.add(parts, 5)
    writer.end()
    return file.getvalue()


def parts_of(held: bytes, *numbers: int) -> list[list[bytes]]:
    return [piece.parts for piece in sealing.read(io.BytesIO(held), KEY, "one", parts=numbers or None)]


def test_only_the_parts_that_are_asked_for_are_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parts_of(in_parts()) == PARTS
    sizes: list[int] = []
    opening = sealing._Reader.open
    monkeypatch.setattr(
        sealing._Reader, "open", lambda self, size, *rest: sizes.append(size - 16) or opening(self, size, *rest)
    )
    assert parts_of(in_parts(), 1) == [[parts[1]] for parts in PARTS]
    assert sizes == [len(PARTS[0][1]), len(PARTS[1][1]), 0]
    assert parts_of(in_parts(), 2, 0) == [[parts[0], parts[2]] for parts in PARTS]


def test_a_part_that_is_not_there_is_noticed() -> None:
    with pytest.raises(Sealed):
        parts_of(in_parts(), 0, 3)


def test_parts_that_change_places_are_noticed() -> None:
    # Two parts of the same length, so that the header stays true.
    file = io.BytesIO()
    writer = sealing.Writer(file, KEY, "one")
    writer.add([b"here", b"away"], 1)
    writer.end()
    held = file.getvalue()
    at, size = 7 + 2 * 4, len(b"here") + 16
    swapped = held[:at] + held[at + size : at + 2 * size] + held[at : at + size] + held[at + 2 * size :]
    assert parts_of(held) == [[b"here", b"away"]]
    for numbers in ((), (0,), (1,)):
        with pytest.raises(Sealed):
            parts_of(swapped, *numbers)


def test_no_two_parts_share_a_nonce(monkeypatch: pytest.MonkeyPatch) -> None:
    nonces: list[bytes] = []

    class Cipher:
        def __init__(self, key: bytes) -> None:
            pass

        def encrypt(self, nonce: bytes, plain: bytes, associated: bytes) -> bytes:
            nonces.append(nonce)
            return plain

    monkeypatch.setattr(sealing, "AESGCM", Cipher)
    in_parts()
    assert len(set(nonces)) == len(nonces) == 7
    assert {len(nonce) for nonce in nonces} == {12}
