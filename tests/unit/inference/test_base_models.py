"""Whatever family a base model is of: what the trainer adapts of it is what an adapter may change here."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.inference.base_models import linear_shapes, locate, skeleton
from services.inference.canary import speak
from services.inference.engine import EngineSettings, Sampling
from services.inference.transformers_engine import TransformersEngine
from services.inference.verification import Limits, verify_adapter
from tests.support.families import FAMILIES
from tests.support.random_models import make_base
from tests.support.references import greedy, trained


@pytest.mark.parametrize("family", FAMILIES)
async def test_what_was_trained_is_verified_and_served(family: str, tmp_path: Path) -> None:
    # Some families' tokenizers add tokens of their own.
    base = make_base(tmp_path / "base", family, vocab_size=104)
    adapter = trained(base, tmp_path / "adapter")
    verify_adapter(adapter, linear_shapes(skeleton(base)), Limits())
    speak(base, 2, adapter)
    engine = TransformersEngine(str(base), EngineSettings("float32"))
    await engine.start()
    try:
        await engine.add_adapter(1, "one", adapter)
        for prompt in ("The patient", "0123456789"):
            tokens = await engine.tokenize(prompt)
            for number, directory in ((None, None), (1, adapter)):
                pieces = [piece async for piece in engine.generate(tokens, Sampling(8, 0), number, "salt")]
                expected = greedy(base, directory, prompt, 8)
                assert "".join(piece.text for piece in pieces)[: len(expected)] == expected
    finally:
        await engine.stop()


def test_what_is_no_model_is_refused_by_its_place(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"no causal language model in {tmp_path}"):
        skeleton(tmp_path)
    with pytest.raises(FileNotFoundError, match="neither a directory nor downloaded"):
        locate("nobody/has-this")
