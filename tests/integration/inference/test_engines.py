"""Both engines keep one contract; transformers with PEFT, in float32, is the reference."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.support.inference_fixtures import ENGINES
from tests.support.random_models import make_adapter
from tests.support.references import greedy

PROMPTS = ["The patient", "a", "0123456789 and so on, and so on"]


@pytest.fixture(scope="module")
def adapters(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("ten")
    return [make_adapter(tiny_base, root / str(seed), seed) for seed in range(10)]


@pytest.fixture(scope="module", params=ENGINES)
def seen(
    request: pytest.FixtureRequest,
    tiny_base: Path,
    adapters: list[Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Any]:
    """What the driver saw of one engine."""
    job = {
        "engine": request.param,
        "base": str(tiny_base),
        "adapters": [str(path) for path in adapters],
        "prompts": PROMPTS,
    }
    errors = tmp_path_factory.mktemp("driver") / "stderr"
    with errors.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("engine_driver.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(job))
    process.stdin.close()
    line = next((line for line in process.stdout if line.startswith("{")), "")
    children = psutil.Process(process.pid).children() if line else []
    process.kill()
    process.wait()
    assert line, errors.read_text()[-3000:]
    found: dict[str, Any] = json.loads(line)
    found |= {"children": len(children), "engine": request.param}
    found["orphans"] = len(psutil.wait_procs(children, timeout=10)[1])
    return found


@pytest.fixture(scope="module")
def reference(tiny_base: Path, adapters: list[Path]) -> Any:
    """Greedy text by transformers, to the first tie; adapter 0 is the base model."""

    @functools.cache
    def text(adapter: int, prompt: str, most: int = 24) -> str:
        return greedy(tiny_base, adapters[adapter - 1] if adapter else None, prompt, most)

    return text


def test_adapters_change_what_is_said(reference: Any) -> None:
    for prompt in PROMPTS:
        assert len({reference(adapter, prompt) for adapter in range(4)}) == 4


def test_the_base_model_is_the_reference(seen: dict[str, Any], reference: Any) -> None:
    assert [outcome[0] for outcome in seen["base"]] == [reference(0, p) for p in PROMPTS]
    # How many pieces a text comes in depends on how busy the machine is.
    again, first = ([(text, *rest) for text, _, *rest in seen[which]] for which in ("base_again", "base"))
    assert again == first
    assert seen["context_length"] == 256


def test_an_adapter_that_arrives_while_another_request_streams_is_the_reference(
    seen: dict[str, Any], reference: Any
) -> None:
    assert seen["still_running"] >= 1
    assert [outcome[0] for outcome in seen["second"]] == [reference(2, p) for p in PROMPTS]
    said = reference(1, PROMPTS[0], 120)
    assert len(said) > 100
    assert seen["streamed"][: len(said)] == said


def test_base_and_adapters_in_one_batch_do_not_mix(seen: dict[str, Any], reference: Any) -> None:
    assert seen["mixed"] == [reference(adapter, p) for adapter in range(3) for p in PROMPTS]


def test_eight_adapters_and_the_base_in_one_batch_do_not_mix(seen: dict[str, Any], reference: Any) -> None:
    assert seen["full"] == [reference(adapter, PROMPTS[0]) for adapter in range(9)]


def test_more_adapters_than_memory_keeps_are_read_again(seen: dict[str, Any], reference: Any) -> None:
    assert seen["evicted"] == 2 * [reference(adapter, PROMPTS[1]) for adapter in range(1, 11)]


def test_log_probabilities_are_the_references(
    seen: dict[str, Any], tiny_base: Path, adapters: list[Path], reference: Any
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_base), adapters[0]).eval()
    ids = tokenizer(PROMPTS[0], return_tensors="pt")["input_ids"]
    assert "".join(text for text, *_ in seen["logprobs"]) == reference(1, PROMPTS[0])[:5]
    for text, logprob, likeliest in seen["logprobs"]:
        with torch.inference_mode():
            best = model(input_ids=ids).logits[0, -1].log_softmax(-1).topk(3)
        assert [other for other, _ in likeliest] == tokenizer.batch_decode(best.indices[:, None])
        assert [other for _, other in likeliest] == pytest.approx(best.values.tolist(), abs=1e-3)
        # Greedy: the likeliest is what was made.
        assert (text, logprob) == tuple(likeliest[0])
        ids = torch.cat([ids, best.indices[None, :1]], dim=1)


def test_output_arrives_in_pieces(seen: dict[str, Any]) -> None:
    _, pieces, tokens, finish = seen["base"][0]
    assert tokens == 24
    assert pieces > 4
    assert finish == "length"


def test_a_whole_output_is_one_piece_and_the_same(seen: dict[str, Any]) -> None:
    for (text, _, tokens, finish), whole in zip(seen["base"], seen["whole"], strict=True):
        assert whole == [text, 1, tokens, finish]
    _, text, _, tokens, finish = seen["stop"]
    assert seen["whole_stop"] == [text, 1, tokens, finish]
    for (token, logprob, _), (again, about, _) in zip(seen["logprobs"], seen["whole_logprobs"], strict=True):
        assert (token, logprob) == (again, pytest.approx(about, abs=1e-4))


def test_a_request_that_nobody_waits_for_leaves_the_engine(seen: dict[str, Any]) -> None:
    assert all(before == 2 and after == 0 for before, after, _ in seen["leaving"])
    # The quickest of five: on a busy machine any of them may have been waiting for a processor.
    assert min(seconds for *_, seconds in seen["leaving"]) < 0.1


def test_a_stop_text_ends_the_output_and_is_not_in_it(seen: dict[str, Any], reference: Any) -> None:
    stop, text, _, tokens, finish = seen["stop"]
    whole = reference(0, PROMPTS[0])
    assert finish == "stop"
    assert text == whole[: whole.index(stop)]
    assert tokens < 24


def test_a_seed_repeats(seen: dict[str, Any]) -> None:
    first, again, other = seen["seeded"]
    assert first == again != other


def test_options_at_their_ends_are_kept(seen: dict[str, Any], reference: Any) -> None:
    """As sharp as may be asked is the likeliest token; as wide is some token, and nothing breaks."""
    for sharp in seen["sharp"]:
        assert sharp.startswith(reference(0, PROMPTS[0])[:12])
    assert all(1 <= tokens <= 24 for tokens in seen["far"])
    # The contract allows no such thing; should it ever, it is refused by name and not an accident.
    assert seen["too_hot"] == ("temperature" if seen["engine"] == "vllm" else "")


def test_an_adapter_that_is_not_there_is_refused_and_nobody_else_notices(seen: dict[str, Any], reference: Any) -> None:
    assert seen["refused"] == [99, 1]
    assert [outcome[0] for outcome in seen["third"]] == [reference(3, p) for p in PROMPTS]


def test_a_shape_is_kept_or_refused(seen: dict[str, Any]) -> None:
    if seen["structured"]:
        answer, _, digits = seen["regex"].partition(", ")
        assert answer in ("yes", "no")
        assert len(digits) == 3
        assert digits.isdigit()
    else:
        assert seen["regex"] == ["regex"]
    assert seen["bad_regex"] == ["regex"]


def test_an_engine_does_not_outlive_a_service_that_is_killed(seen: dict[str, Any]) -> None:
    assert seen["children"] >= 1 or seen["engine"] == "transformers"
    assert seen["orphans"] == 0
