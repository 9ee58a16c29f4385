"""Messages of one field, beside what the message class makes of them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from murmura.api.dataset.v1 import dataset_service_pb2 as pb
from services.common import fields

TAG = fields.tag(pb.ReadRowsResponse, "arrow_ipc")


@given(st.lists(st.binary(max_size=300), max_size=4), st.integers(0, 3))
def test_it_is_the_message_that_the_class_writes(parts, scale) -> None:
    parts = [part * 8**scale for part in parts]
    value = b"".join(parts)
    written = fields.write(TAG, parts)
    assert pb.ReadRowsResponse.FromString(written).arrow_ipc == value
    if value:  # a field without a value is left out by the class
        assert written == pb.ReadRowsResponse(arrow_ipc=value).SerializeToString()
    assert bytes(fields.read(TAG, written)) == value


def test_the_value_is_not_copied() -> None:
    message = fields.write(TAG, [b"x" * 1000])
    assert fields.read(TAG, message).obj is message


@given(st.binary(max_size=20), st.binary(max_size=20), st.integers(0, 9))
def test_any_other_message_is_left_to_the_class(value, key, count) -> None:
    message = pb.ReadRowsResponse(arrow_ipc=value, checkpoint_key=key, unit_count=count).SerializeToString()
    if key or count or not value:
        assert fields.read(TAG, message) is None
    else:
        assert fields.read(TAG, message) == value


@given(st.binary(max_size=12))
def test_what_is_cut_off_or_made_up_is_no_message_of_this_form(noise) -> None:
    value = fields.read(TAG, TAG + noise)
    if value is not None:
        assert pb.ReadRowsResponse.FromString(TAG + noise).arrow_ipc == value
    assert fields.read(TAG, fields.write(TAG, [noise])[:-1]) is None
