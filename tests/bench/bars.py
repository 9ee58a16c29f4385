"""What each bench is to show: figures, bars, beside whom they were measured, and what was tried where one is short."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any


@dataclass(frozen=True)
class Figure:
    """A figure of a bench.

    Attributes:
        title: for people.
        peer: beside whom it was measured in the same run; or how, where there is no peer.
        of: takes it out of what the bench printed.
        least, most: its bar; neither: it has none and is there to be seen.
        tried: where it was found short: what was tried, and why it is so.
    """

    title: str
    peer: str
    of: Callable[[Any], float]
    least: float | None = None
    most: float | None = None
    tried: str = ""

    def bar(self) -> str:
        """Return its bar in words."""
        if self.least is not None:
            return f"≥ {self.least:g}"
        return "none" if self.most is None else f"≤ {self.most:g}"

    def met(self, value: float) -> bool:
        """Say whether a value reaches the bar."""
        return (self.least is None or value >= self.least) and (self.most is None or value <= self.most)


def at(*path: str | int) -> Callable[[Any], float]:
    """Return what takes the value at a path."""

    def take(found: Any) -> float:
        for part in path:
            found = found[part]
        return float(found)

    return take


_HTTP = partial(
    Figure,
    peer="vLLM's HTTP server",
    tried="The engine fills both cores, what stands before it takes a hundredth of them, and a round of one way "
    "differs from its next by more than a tenth when the host is busy. Tried: an engine for each way, and, since, one "
    "for all three, by turns. Not tried: a machine with a core to spare; a GPU, since there is one engine only.",
)
_ECHO = "a bare grpc.aio echo of the same messages"
_PLAIN = "plain LoRA (PEFT), same model and rows"


def _accounting() -> tuple[Figure, ...]:
    return (
        Figure(
            "noise needed, worst of seven jobs", "exact PLD", lambda f: max(f["single"]["ours_over_pld"][:7]), most=1.02
        ),
        Figure("noise needed, N = 10⁶, q = 10⁻³, ε = 1", "exact PLD", at("single", "ours_over_pld", 7), most=1.04),
        Figure("the same by an RDP accountant", "exact PLD", at("single", "rdp_over_pld", 7)),
        Figure(
            "ε of ten adaptive jobs",
            "exact PLD of all of them as one",
            lambda f: f["ten_jobs"]["ours_epsilon"] / f["ten_jobs"]["pld_epsilon"],
            most=1.01,
        ),
        Figure("slowest price, s", "a clock", at("slowest_price_seconds"), most=2.0),
    )


def _ledger() -> tuple[Figure, ...]:
    return tuple(
        figure
        for store in ("sqlite", "redis")
        for figure in (
            Figure(f"{store}: calls/s on one account", _ECHO, at(store, "one_account_over_echo"), least=0.5),
            Figure(f"{store}: calls/s on 64 accounts", _ECHO, at(store, "many_accounts_over_echo")),
            Figure(f"{store}: p99", _ECHO, at(store, "p99_over_echo"), most=5.0),
            Figure(f"{store}: overspent units", "the journal", at(store, "overspent"), most=0.0),
        )
    )


def _inference() -> tuple[Figure, ...]:
    found = []
    for streams in ("16", "64"):
        path = ("streams", streams)
        found += [
            Figure(
                f"tokens/s, {streams} streams", "bare AsyncLLM in process", at(*path, "tokens_over_bare"), least=0.95
            ),
            _HTTP(title=f"tokens/s, {streams} streams", of=at(*path, "tokens_over_http"), least=1.0),
            _HTTP(title=f"first token p99, {streams} streams", of=at(*path, "ttft_p99_over_http"), most=1.0),
        ]
    return (
        *found,
        Figure("eight adapters, tokens/s", "one adapter", at("eight_adapters_over_one"), least=0.9),
        Figure(
            "first token p50 on one stream, ms later",
            "bare AsyncLLM in process",
            at("streams", "1", "ttft_p50_ms_over_bare"),
            most=5.0,
            tried="The service and the engine share two cores; where there are more, nobody waits for a turn. Not "
            "tried: a lower priority for the engine.",
        ),
    )


def _streaming() -> tuple[Figure, ...]:
    found = []
    for streams in ("16", "64"):
        title = f"processor's time a streamed token, server and client, {streams} streams"
        found += [
            Figure(title, "vLLM's HTTP server", at(streams, "cpu_over_http")),
            Figure(f"{title}, µs", "a clock", at(streams, "us_a_token")),
            Figure(f"tokens/s, {streams} streams", "vLLM's HTTP server", at(streams, "tokens_over_http")),
            Figure(f"first token p99, {streams} streams", "vLLM's HTTP server", at(streams, "ttft_p99_over_http")),
        ]
    return tuple(found)


_BUSY = (
    "Two cores are all busy with four services, a cluster's API and a hundred clients, so it moves with what the host "
    "does: the very code that took 0.67 s on 2026-11-25 took 0.97 and 1.17 s three days later, and today's took 0.91 "
    "to 1.39 in fourteen runs. No part of the trainer stands out in a profile."
)


def _control() -> tuple[Figure, ...]:
    found = []
    for key, title in (("to_pod", "from a wish to its pod"), ("to_done", "from an adapter to the end")):
        for count in ("1", "100"):
            for rank, bar in (("p50", 1.0), ("p99", 5.0)):
                most = bar if count == "100" else None
                shown = at(count, f"{key}_{rank}_s")
                found.append(Figure(f"{title}, {count} at once, {rank}, s", "a clock", shown, most=most, tried=_BUSY))
    return (*found, Figure("Jobs, pods, Services left after 100", "the cluster", at("100", "leaked"), most=0.0))


BENCHES: dict[str, tuple[Figure, ...]] = {
    "accounting": _accounting(),
    "ledger": _ledger(),
    "train": (
        Figure("tokens/s, padded", _PLAIN, at("padded_over_plain"), least=0.95),
        Figure(
            "tokens/s, padded",
            "Opacus, hooks",
            at("padded_over_opacus_hooks"),
            least=1.1,
            tried="It moves with what the host does: 1.132, 1.09, 1.094 and 1.109 in four runs between which nothing "
            "was changed. At the ceiling of plain LoRA what is left to gain is Opacus's to lose.",
        ),
        Figure("tokens/s, padded", "Opacus, ghost clipping", at("padded_over_opacus_ghost")),
        Figure("peak memory", _PLAIN, at("memory_over_plain"), most=1.15),
        Figure(
            "tokens/s, packed, PHEE's lengths",
            f"{_PLAIN}, padded",
            at("packed_over_plain_on_phee"),
            least=1.3,
            tried="On a GPU, 64 sentences a step are 2,700 tokens, 6,500 with padding. All contenders take a quarter "
            "of a second for them, in which the host launches kernels and the GPU waits: nothing is left to save. "
            "Tried: cuDNN's attention off, for it seems to plan each new shape (with it: 0.567, with 16 sentences). "
            "This figure was measured apart from the others, with the bench's own functions.",
        ),
    ),
    "utility": tuple(
        Figure(f"perplexity, {name}", "the base model", lambda found, key=key: found[key] / found["base"])  # type: ignore[misc]
        for key, name in (("1", "ε = 1"), ("3", "ε = 3"), ("8", "ε = 8"), ("22", "ε = 22"), ("unlimited", "no privacy"))
    ),
    "dataset": (
        Figure(
            "rows/s to a worker, TLS",
            "Arrow Flight with TLS, same batches",
            at("over_flight_tls"),
            least=0.6,
        ),
        Figure(
            "rows/s to a worker, no TLS",
            "Arrow Flight, same batches",
            at("over_flight"),
            least=0.6,
            tried="One core of the service reads, deciphers and sends; Flight sends what lies in its memory, and "
            "gRPC's Python copies each message where Flight's C++ does not. Tried without gain: a mapped file, a "
            "thread that deciphers ahead, a piece made while the last is on its way, a larger write buffer, larger "
            "HTTP/2 windows, other sizes of pieces, two streams, rows opened while the ledger is asked.",
        ),
        Figure("peak memory, ten times the rows", "a tenth of them", at("memory_growth"), most=1.1),
        Figure("import murmura, s", "a clock", at("import_seconds"), most=0.3),
    ),
    "control": _control(),
    "inference": _inference(),
    "streaming": _streaming(),
}
