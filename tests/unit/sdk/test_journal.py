"""A journal file proves itself: what was changed, removed, slipped in or cut off is found, and named."""

import hashlib
import json

import pytest

from murmura import journal
from murmura.errors import InvalidInput
from murmura.journal import GENESIS, JournalBroken, Link, NotOnChain, Receipt


def chain(*kinds):
    """Links made as the documentation of the file says, with nothing of the module that is tested."""
    links, head = [], GENESIS
    for sequence, kind in enumerate(kinds, 1):
        payload = json.dumps({"kind": kind, "text": f"ε {sequence}\u2028"}, ensure_ascii=False)
        own = hashlib.sha256(f"{sequence}\n{head}\n{payload}".encode()).hexdigest()
        links.append(Link(sequence, head, own, payload))
        head = own
    return links


@pytest.fixture
def links():
    return chain("open", "reserve", "commit", "grant", "reserve")


@pytest.fixture
def file(tmp_path, links):
    path = tmp_path / "journal.jsonl"
    journal.write(path, links)
    return path


def rewrite(path, change):
    lines = [json.loads(line) for line in path.read_text().split("\n")[:-1]]
    change(lines)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_written_journal_holds_and_is_written_as_it_was_hashed(file, links):
    assert journal.verify(file) == Receipt(5, links[-1].hash)
    assert list(journal.read(file)) == links
    first = json.loads(file.read_bytes().split(b"\n")[0])
    assert list(first) == ["sequence", "previous_hash", "hash", "payload"]
    assert file.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("place", range(5))
@pytest.mark.parametrize("key", ["sequence", "previous_hash", "hash", "payload"])
def test_a_change_anywhere_is_found_where_it_is(file, place, key):
    def change(lines):
        value = lines[place][key]
        lines[place][key] = value + 1 if key == "sequence" else value.replace(value[-2], "#", 1)

    rewrite(file, change)
    with pytest.raises(JournalBroken, match=f"entry {place + 1}") as caught:
        journal.verify(file)
    assert caught.value.sequence == place + 1


def test_a_change_with_its_own_hash_made_anew_is_found_at_the_next_entry(file):
    def change(lines):
        one = lines[1]
        one["payload"] = one["payload"].replace("reserve", "release")
        text = f"{one['sequence']}\n{one['previous_hash']}\n{one['payload']}"
        one["hash"] = hashlib.sha256(text.encode()).hexdigest()

    rewrite(file, change)
    with pytest.raises(JournalBroken) as caught:
        journal.verify(file)
    assert caught.value.sequence == 3


@pytest.mark.parametrize(
    ("change", "sequence"),
    [
        (lambda lines: lines.pop(0), 1),
        (lambda lines: lines.pop(2), 3),
        (lambda lines: lines.insert(2, dict(lines[1])), 3),
        (lambda lines: lines.reverse(), 1),
        (lambda lines: lines[3].update(sequence=True), 4),
        (lambda lines: lines[3].update(sequence="4"), 4),
        (lambda lines: lines[3].update(note="signed by the auditor"), 4),
        (lambda lines: lines[3].pop("hash"), 4),
        (lambda lines: lines[3].update(payload=None), 4),
        (lambda lines: lines[3].update(payload="\ud800"), 4),
    ],
)
def test_what_is_removed_slipped_in_or_malformed_is_found(file, change, sequence):
    rewrite(file, change)
    with pytest.raises(JournalBroken) as caught:
        journal.verify(file)
    assert caught.value.sequence == sequence


@pytest.mark.parametrize("line", [b"", b"{}", b"[1]", b"7", b"{", b"\xff", b"null"])
def test_a_line_that_is_no_entry_is_named(file, line):
    file.write_bytes(file.read_bytes() + line + b"\n")
    with pytest.raises(JournalBroken, match="line 6 is no entry"):
        journal.verify(file)


def test_a_key_that_stands_twice_is_refused(file):
    text = file.read_text()
    file.write_text('{"payload": "another story", ' + text[1:])
    with pytest.raises(JournalBroken, match="line 1"):
        journal.verify(file)


def test_only_a_receipt_shows_that_the_end_is_missing(file, links):
    witness = Receipt(5, links[4].hash)
    assert journal.verify(file, witness).sequence == 5
    rewrite(file, lambda lines: lines.pop())
    assert journal.verify(file).sequence == 4
    with pytest.raises(NotOnChain, match="ends at entry 4"):
        journal.verify(file, witness)


def test_a_receipt_of_another_journal_is_not_on_the_chain(file, links):
    assert journal.verify(file, Receipt(2, links[1].hash))
    with pytest.raises(NotOnChain, match="entry 2 is another"):
        journal.verify(file, Receipt(2, links[2].hash))


def test_a_resolved_rollback_shows_in_the_receipt(tmp_path):
    path = tmp_path / "j"
    written = journal.write(path, chain("open", "resolve_rollback", "reserve"))
    assert (written.epoch, str(written)) == (1, f"3:{written.hash}:1")
    assert Receipt.parse(str(written)) == written


def test_receipts_are_read_as_they_are_printed():
    text = "12:" + "ab" * 32
    assert str(Receipt.parse(f" {text}\n")) == text
    for wrong in ("", "12", "12:abc", f"0{text}", f"0:{text[3:]}", f"-{text}", text.upper(), f"{text}:", f"1:{text}"):
        with pytest.raises(InvalidInput, match="SEQUENCE:HASH"):
            Receipt.parse(wrong)


def test_nothing_is_overwritten(file, links):
    before = file.read_bytes()
    with pytest.raises(InvalidInput, match="not overwritten"):
        journal.write(file, links[:1])
    assert file.read_bytes() == before


@pytest.mark.parametrize("hard_links", [True, False])
def test_a_file_that_appears_meanwhile_is_not_overwritten(tmp_path, links, monkeypatch, hard_links):
    def refuse(*_):
        raise PermissionError(1, "no hard links here")

    if not hard_links:
        monkeypatch.setattr("os.link", refuse)
    path = tmp_path / "j"

    def slow():
        yield from links
        path.write_text("another's")

    with pytest.raises(InvalidInput, match="not overwritten"):
        journal.write(path, slow())
    assert path.read_text() == "another's"
    assert journal.write(tmp_path / "k", links).sequence == 5
    assert journal.verify(tmp_path / "k").sequence == 5
    assert {item.name for item in tmp_path.iterdir()} == {"j", "k"}


def test_a_broken_journal_leaves_no_file(tmp_path, links):
    with pytest.raises(JournalBroken):
        journal.write(tmp_path / "j", [*links[:2], links[3]])
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_read_or_written_is_named(tmp_path, links):
    with pytest.raises(InvalidInput, match=r"absent cannot be read: No such file"):
        journal.verify(tmp_path / "absent")
    with pytest.raises(InvalidInput, match=r"cannot be written: No such file"):
        journal.write(tmp_path / "absent" / "j", links)
    (tmp_path / "empty").touch()
    with pytest.raises(InvalidInput, match="holds no entry"):
        journal.verify(tmp_path / "empty")
