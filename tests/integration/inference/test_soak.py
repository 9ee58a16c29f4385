"""What `make soak` does for ten minutes, for some seconds: adapters come and go, three tenants ask too much."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.bench.soak import soak, start
from tests.support.inference_fixtures import ENGINES


@pytest.mark.parametrize("engine", ENGINES)
def test_at_saturation_nobody_gets_anothers_answer_or_an_error_that_is_not_documented(
    engine: str, tmp_path: Path
) -> None:
    service = start(tmp_path, engine)
    try:
        report = asyncio.run(soak(service, 12))
    finally:
        service.process.kill()
        service.process.wait()
    assert not report.mixed
    assert not report.undocumented, report.outcomes
    assert report.outcomes["OK"] > 20
    assert {"TENANT_LIMIT", "RESOURCE_NOT_FOUND", "PROMPT_TOO_LONG"} <= set(report.outcomes)
