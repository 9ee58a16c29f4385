"""A base model of any family is served with its adapters: by vLLM, and where that takes none, by transformers.

Each costs the start of an engine, so the suite takes one that vLLM runs with transformers' code, and one of which it
takes no adapters; `make test-families` takes all.
"""

from __future__ import annotations

import importlib.util
import os
import uuid
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from murmura.api.inference.v1 import inference_pb2
from murmura.api.inference.v1 import inference_service_pb2 as messages
from tests.support.families import FAMILIES, WITHOUT_VLLM
from tests.support.inference_process import deploy
from tests.support.random_models import make_base, publish
from tests.support.references import greedy, trained

VLLM = importlib.util.find_spec("vllm") is not None
PROMPTS = ("The patient", "0123456789")


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES if "MURMURA_TEST_FAMILIES" in os.environ else ("gpt2", "stablelm"))
def test_a_base_model_of_any_family_is_served(family: str, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", family, vocab_size=104)
    adapter = trained(base, tmp_path / "adapter")
    key = Ed25519PrivateKey.generate()
    publish(tmp_path / "artifacts", "adapters/one", adapter, key)
    service = deploy(tmp_path, "auto", base, key)
    try:
        stub = service.stub()
        stub.LoadAdapter(messages.LoadAdapterRequest(request_id=str(uuid.uuid4()), name="adapters/one"))
        for model, directory in (("baseModels/tiny", None), ("adapters/one", adapter)):
            for prompt in PROMPTS:
                options = inference_pb2.SamplingOptions(temperature=0, max_tokens=12)
                answer = stub.Generate(messages.GenerateRequest(model=model, prompt=prompt, options=options))
                expected = greedy(base, directory, prompt, 12)
                assert answer.text[: len(expected)] == expected
        log = (tmp_path / "log").read_text()
        assert ("vLLM serves: it is installed." in log) is VLLM
        assert ("For tiny it is transformers, slowly: " in log) is (VLLM and family in WITHOUT_VLLM)
    finally:
        service.process.kill()
        service.process.wait()


@pytest.mark.skipif(not VLLM, reason="vLLM is not installed here")
def test_an_operator_who_names_vllm_gets_no_other_engine(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", "gpt2")
    with pytest.raises(AssertionError, match=r"The base model tiny cannot be served: vLLM takes no adapters of GPT2"):
        deploy(tmp_path, "vllm", base, Ed25519PrivateKey.generate())
