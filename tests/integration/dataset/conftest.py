"""The services that the tests call, and what a refused call has answered."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from tests.support.dataset_services import Pair
from tests.support.refusals import error_info, packed_status


class Refused:
    """What a refused call has answered.

    Attributes:
        code: gRPC's status code.
        reason: of the catalogue, without its prefix.
        message: for a person.
        everything: all that has travelled, details included.
    """

    def __init__(self, error: Any) -> None:
        self.code = error.code()
        self.message = error.details()
        self.reason, self.metadata = error_info(error)
        self.everything = packed_status(error) + self.message.encode() + repr(error.trailing_metadata()).encode()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Both services, shared by the tests of a module."""
    with Pair(tmp_path_factory.mktemp("pair")).running() as made:
        yield made


@pytest.fixture
def refused() -> Any:
    """Makes a call that must be refused, and returns the refusal."""

    def call(attempt: Any) -> Refused:
        with pytest.raises(grpc.RpcError) as caught:
            attempt()
        return Refused(caught.value)

    return call
