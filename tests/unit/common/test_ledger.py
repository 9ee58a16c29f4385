"""What a service remembers of the ledger."""

import json

from murmura.api.common.v1.privacy_pb2 import Receipt
from services.common.ledger import Witness


def receipt(sequence, epoch=0):
    return Receipt(sequence=sequence, head_hash=f"{sequence:064x}", epoch=epoch)


def test_the_newest_receipt_is_kept_and_survives(tmp_path):
    witness = Witness(tmp_path / "witness.json")
    for sequence in (3, 7, 5):
        witness.saw(receipt(sequence))
    assert witness.receipt == receipt(7)
    assert Witness(tmp_path / "witness.json").receipt == receipt(7)


def test_a_receipt_after_a_resolved_rollback_is_newer_than_any_before(tmp_path):
    witness = Witness(tmp_path / "witness.json")
    witness.saw(receipt(90))
    witness.saw(receipt(12, epoch=1))
    witness.saw(receipt(95))
    assert Witness(tmp_path / "witness.json").receipt == receipt(12, epoch=1)


def test_a_write_that_was_cut_off_leaves_the_receipt_before(tmp_path):
    path = tmp_path / "witness.json"
    Witness(path).saw(receipt(3))
    path.with_suffix(".new").write_text(json.dumps({"sequence": 9})[:7])
    witness = Witness(path)
    assert witness.receipt == receipt(3)
    witness.saw(receipt(4))
    assert Witness(path).receipt == receipt(4)
