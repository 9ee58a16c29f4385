"""What machines cost: from the operator's numbers and public counts, and from nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from murmura.api.trainer.v1 import trainer_pb2
from murmura.display import plan_table
from services.trainer.prices import Prices, UnsoundPrices

SAID = 'currency = "EUR"\nnode_hour = 2.5\ntokens_per_second = 1000\nstart_minutes = 6\n'


def plan(unlimited: bool = False, **facts: int) -> trainer_pb2.Plan:
    made = trainer_pb2.Plan(**({"steps": 100, "row_count": 2000, "unit_count": 1000} | facts))
    made.statement.unlimited = unlimited
    made.settings.batch_size, made.settings.max_rows_per_unit, made.settings.max_length = 50, 16, 100
    return made


@pytest.fixture
def prices(tmp_path: Path) -> Prices:
    (tmp_path / "prices.toml").write_text(SAID)
    return Prices.read(tmp_path / "prices.toml")


def test_a_plan_is_priced_from_what_is_public(prices: Prices) -> None:
    # 100 steps of 50 units with 2 rows each of 100 tokens: a million tokens, a thousand seconds; and six minutes.
    cost = prices.of_plan(plan())
    assert cost.node_hours == pytest.approx((1000 + 360) / 3600)
    assert (cost.amount, cost.currency) == (pytest.approx(2.5 * cost.node_hours), "EUR")
    # No unit takes part with more rows than it may; without privacy a batch is of rows.
    assert prices.of_plan(plan(row_count=100_000)).node_hours == pytest.approx((8000 + 360) / 3600)
    assert prices.of_plan(plan(unlimited=True)).node_hours == pytest.approx((500 + 360) / 3600)
    # Several nodes share the work, and each of them has to start.
    assert prices.of_plan(plan(), nodes=3).node_hours == pytest.approx((1000 + 3 * 360) / 3600)


def test_what_was_held_is_priced_as_it_was(prices: Prices) -> None:
    assert prices.of_seconds(7200).amount == pytest.approx(5.0)


@pytest.mark.parametrize(
    ("said", "wrong"),
    [
        (SAID.replace("EUR", "euros"), "currency"),
        (SAID.replace("2.5", "-1"), "node_hour"),
        (SAID.replace("1000", "0"), "tokens_per_second"),
        (SAID.replace("1000", "inf"), "tokens_per_second"),
        (SAID.replace("node_hour", "node_hours"), "node_hours is unknown"),
        ('currency = "EUR"\n', "node_hour must be given"),
        ("currency", "prices.toml"),
    ],
)
def test_what_cannot_be_is_named(tmp_path: Path, said: str, wrong: str) -> None:
    (tmp_path / "prices.toml").write_text(said)
    with pytest.raises(UnsoundPrices, match=wrong):
        Prices.read(tmp_path / "prices.toml")


def test_the_analyst_sees_it_before_the_job_starts(prices: Prices) -> None:
    console = Console(record=True, width=120)
    spec = trainer_pb2.JobSpec(base_model="baseModels/m")
    priced = plan(unlimited=True)
    console.print(plan_table(priced, spec))
    assert "machines" not in console.export_text()
    priced.cost.CopyFrom(prices.of_plan(priced))
    console.print(plan_table(priced, spec))
    assert "about 0.24 node hours, 0.60 EUR, at most" in console.export_text()
