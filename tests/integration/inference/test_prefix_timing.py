"""A tenant who guesses another's prompt cannot tell by the clock that the guess was right.

The engine keeps the prefixes that it has computed, and who sends the same text again gets the first token sooner. The
attack is real here: against prompts of their own, by the same clock, the attacker is right nearly always.
"""

from __future__ import annotations

import importlib.util
import random
import string
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from murmura.api.inference.v1 import inference_pb2
from murmura.api.inference.v1 import inference_service_pb2 as messages
from tests.support.inference_process import Service, deploy
from tests.support.random_models import make_base

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not importlib.util.find_spec("vllm"), reason="the transformers engine keeps no prefixes"),
]
# Tokens. A busy machine hardly blurs the clock for the one; by the other many guesses tell, if there is no salt.
CLEAR, SHORT = 700, 350
_generator = random.Random(3)  # one for all: a prompt that came twice would be a guess that is right by accident


@pytest.fixture(scope="module")
def service(trainer_key: Ed25519PrivateKey, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    # Prompts so long that computing one takes a multiple of all else.
    base = make_base(tmp_path_factory.mktemp("base"), max_position_embeddings=1024)
    service = deploy(tmp_path_factory.mktemp("timing"), "vllm", base, trainer_key)
    yield service
    service.process.kill()
    service.process.wait()


def prompt(tokens: int) -> str:
    return "".join(_generator.choices(string.ascii_letters, k=tokens))


def right_guesses(victim: Any, attacker: Any, trials: int, tokens: int) -> float:
    """Return the attacker's AUC: how often a guess that is right takes less time than one that is wrong."""
    options = inference_pb2.SamplingOptions(temperature=0, max_tokens=1)
    model = "baseModels/tiny"
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for trial in range(2 * trials):
        right = trial % 2 == 0
        guess = prompt(tokens)
        sent = guess if right else prompt(tokens)
        victim.Generate(messages.GenerateRequest(model=model, prompt=sent, options=options))
        started = time.perf_counter()
        attacker.Generate(messages.GenerateRequest(model=model, prompt=guess, options=options))
        seconds[right].append(time.perf_counter() - started)
    fast, slow = np.array(seconds[True])[:, None], np.array(seconds[False])[None]
    return float((fast < slow).mean())


def test_the_clock_tells_a_tenant_of_their_own_prompts(service: Service) -> None:
    ana = service.stub("ana@local")
    right_guesses(ana, ana, 3, CLEAR)  # warm
    assert right_guesses(ana, ana, 20, CLEAR) >= 0.95


def test_the_clock_tells_a_tenant_nothing_of_anothers_prompts(service: Service) -> None:
    ana, bob = service.stub("ana@local"), service.stub("bob@local")
    # With 150 guesses of each kind chance alone stays within 0.1 of a half.
    assert right_guesses(ana, bob, 150, SHORT) <= 0.6
