"""`make bench-accounting`: how much noise our currency needs, beside the exact PLD and an RDP accountant.

Prints a table for people on standard error and one JSON line on standard output.
"""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from collections.abc import Callable

import dp_accounting
from dp_accounting.pld import privacy_loss_distribution as pld
from dp_accounting.rdp import RdpAccountant
from rich.console import Console
from rich.table import Table

from services.ledger import accounting, profiles
from services.ledger.accounting import E18, Cap, Mechanism, Unit

# Units in the data, expected batch, epochs, epsilon, delta.
JOBS = (
    (2608, 12, 3, 22.0, 1e-5),
    (2608, 64, 3, 22.0, 1e-5),
    (2608, 256, 10, 8.0, 1e-5),
    (42061, 1024, 10, 8.0, 1e-5),
    (42061, 1024, 10, 3.0, 1e-5),
    (42061, 512, 5, 1.0, 1e-5),
    (200_000, 4096, 3, 2.0, 1e-6),
    (1_000_000, 1024, 1, 1.0, 1e-7),
)
HOUSE = Mechanism(0.6, 0.004, 750)
TEN_DELTA = 1e-5
TOLERANCE = 1.0005


def main() -> int:
    """Run the benchmark; returns the exit code."""
    logging.getLogger("absl").setLevel(logging.ERROR)  # the RDP accountant tells of every order that it skips
    table = Table(title="Noise multiplier that a target needs; ratios to the exact PLD")
    for heading in ("units", "batch", "epochs", "ε", "δ", "exact PLD", "ours", "ours / PLD", "RDP / PLD", "price, s"):
        table.add_column(heading, justify="right")
    ours_over_pld, rdp_over_pld, seconds = [], [], []
    for units, batch, epochs, epsilon, delta in JOBS:
        probability, steps = batch / units, math.ceil(epochs * units / batch)
        exact = _least_noise(lambda sigma: _pld(Mechanism(sigma, probability, steps), delta) <= epsilon)  # noqa: B023
        rdp = _least_noise(lambda sigma: _rdp(Mechanism(sigma, probability, steps), delta) <= epsilon)  # noqa: B023
        cap = _cap(epsilon, delta, Unit())
        ours, _ = accounting.calibrate(cap, epsilon, probability, steps, delta / 10)
        seconds.append(_timed_price(ours, delta / 10))
        ours_over_pld.append(ours.noise_multiplier / exact)
        rdp_over_pld.append(rdp / exact)
        figures = (
            f"{exact:.4f}",
            f"{ours.noise_multiplier:.4f}",
            f"{ours_over_pld[-1]:.4f}",
            f"{rdp_over_pld[-1]:.4f}",
        )
        table.add_row(
            f"{units:,}", str(batch), str(epochs), f"{epsilon:g}", f"{delta:g}", *figures, f"{seconds[-1]:.2f}"
        )

    # Ten jobs, each chosen after the last, in an account whose unit is what the house usually runs.
    unit = Unit(HOUSE.noise_multiplier, HOUSE.sampling_probability)
    cap = _cap(8.0, TEN_DELTA, unit)
    spent = sum(accounting.price(HOUSE, unit, TEN_DELTA / 100) for _ in range(10))
    ten = {
        "ours_epsilon": accounting.epsilon_of(cap, spent),
        "pld_epsilon": _pld(Mechanism(HOUSE.noise_multiplier, HOUSE.sampling_probability, 10 * HOUSE.steps), TEN_DELTA),
        "rdp_epsilon": _rdp(Mechanism(HOUSE.noise_multiplier, HOUSE.sampling_probability, 10 * HOUSE.steps), TEN_DELTA),
    }
    seconds.append(_timed_price(HOUSE, TEN_DELTA / 100))
    console = Console(file=sys.stderr, width=120)
    console.print(table)
    console.print(
        f"Ten adaptive jobs of (0.6, 0.004, 750) in a matched unit, ε at δ = {TEN_DELTA:g}: ours "
        f"{ten['ours_epsilon']:.3f}, exact PLD {ten['pld_epsilon']:.3f}, RDP {ten['rdp_epsilon']:.3f}. "
        f"Slowest price: {max(seconds):.2f} s."
    )
    rounded = {
        "single": {
            "ours_over_pld": [round(ratio, 4) for ratio in ours_over_pld],
            "rdp_over_pld": [round(ratio, 4) for ratio in rdp_over_pld],
        },
        "ten_jobs": {name: round(value, 4) for name, value in ten.items()},
        "slowest_price_seconds": round(max(seconds), 3),
    }
    print(json.dumps(rounded))
    return 0


def _cap(epsilon: float, delta: float, unit: Unit) -> Cap:
    delta_e18 = round(delta * E18)
    return Cap(epsilon, delta_e18, delta_e18 // 10, unit)


def _timed_price(mechanism: Mechanism, truncation: float) -> float:
    profiles.forget()
    started = time.perf_counter()
    accounting.price(mechanism, Unit(), truncation)
    return time.perf_counter() - started


def _pld(mechanism: Mechanism, delta: float) -> float:
    single = pld.from_gaussian_mechanism(
        mechanism.noise_multiplier,
        sampling_prob=mechanism.sampling_probability,
        value_discretization_interval=1e-4,
    )
    return float(single.self_compose(mechanism.steps).get_epsilon_for_delta(delta))


def _rdp(mechanism: Mechanism, delta: float) -> float:
    event = dp_accounting.PoissonSampledDpEvent(
        mechanism.sampling_probability, dp_accounting.GaussianDpEvent(mechanism.noise_multiplier)
    )
    return float(RdpAccountant().compose(event, mechanism.steps).get_epsilon(delta))


def _least_noise(enough: Callable[[float], bool]) -> float:
    low, high = 0.2, 1.0
    while not enough(high):
        low, high = high, 2 * high
    while high / low > TOLERANCE:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


if __name__ == "__main__":
    sys.exit(main())
