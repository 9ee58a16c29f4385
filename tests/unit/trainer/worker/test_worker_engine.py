"""The mechanism: what a step is, and each way in which DP-SGD has gone wrong elsewhere."""

from __future__ import annotations

import copy
import inspect
import io

import numpy as np
import pytest
import torch

from services.trainer.worker.data import Row, Unit
from services.trainer.worker.engine import PrivateRun, TrainingSettings, train_private
from services.trainer.worker.evaluate import perplexity
from services.trainer.worker.execution import Execution
from services.trainer.worker.lora import UnsupportedModelError
from services.trainer.worker.noise import GaussianNoise
from services.trainer.worker.runs import AdapterUnmovedError
from services.trainer.worker.sampling import PoissonSampler
from services.trainer.worker.streams import RunKey
from services.trainer.worker.text import plain_rows
from tests.support import families

LENGTHS = [[5, 9, 2], [12], [], [7, 7], [30, 3, 4, 5], [40]]


def trained(model) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad]).cpu()


@pytest.mark.parametrize("family", families.FAMILIES)
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("memory", [1, 1 << 30])
def test_a_step_without_noise_is_the_mean_of_clipped_unit_gradients(
    make_model, make_units, make_settings, update_of, unit_loop, key, family, packed, memory
):
    single = family in families.SINGLE_PRECISION
    model, units = make_model(family, torch.float32 if single else torch.float64), make_units(LENGTHS)
    each = unit_loop(model, units)
    norms = each.norm(dim=1, keepdim=True)
    bound = float(norms[norms > 0].median())
    assert (norms > bound).any()
    expected = (each * (bound / norms.clamp(min=bound))).sum(dim=0) / 4.0
    settings = make_settings(
        clipping_norm=bound,
        expected_batch_units=4.0,
    )
    execution = Execution(packed, micro_batch_tokens=32, gradient_bytes=memory)
    run = PrivateRun(model, units, settings, key, execution)
    assert run._packed is (packed and family not in families.NEVER_PACKED)
    found = update_of(run)
    rounds = single or family in families.OWN_ATTENTION
    rtol, atol = (1e-2, 1e-6) if rounds else (1e-10, 1e-12)
    torch.testing.assert_close(found, expected, rtol=rtol, atol=atol)


@pytest.mark.parametrize("clipping", ["flat", "normalised"])
def test_one_unit_moves_the_sum_by_at_most_the_norm_and_no_other_unit_at_all(
    make_model, make_units, make_settings, update_of, key, clipping
):
    """Pins the per-sequence loss: with a mean over the batch's tokens the others would change as well."""
    settings = make_settings(clipping=clipping, clipping_norm=1e-3)
    units = make_units(LENGTHS)
    everyone = update_of(PrivateRun(make_model(), units, settings, key))
    for index in range(len(units)):
        zeroed = [Unit(()) if i == index else unit for i, unit in enumerate(units)]
        without = update_of(PrivateRun(make_model(), zeroed, settings, key))
        alone = update_of(PrivateRun(make_model(), [units[index]], settings, key))
        torch.testing.assert_close(everyone - without, alone, rtol=1e-8, atol=1e-12)
        assert alone.norm() <= 1e-3 * (1 + 1e-9)


def test_rows_of_a_unit_are_combined_before_clipping(make_model, make_units, make_settings, update_of, key):
    [unit] = make_units([[9, 9, 9, 9]])
    settings = make_settings(clipping_norm=1e-3)
    one_unit = update_of(PrivateRun(make_model(), [unit], settings, key, Execution(micro_batch_tokens=1)))
    assert one_unit.norm() == pytest.approx(1e-3, rel=1e-6)
    four_units = [Unit((row,)) for row in unit.rows]
    assert update_of(PrivateRun(make_model(), four_units, settings, key)).norm() > 1.5e-3


def test_units_beyond_the_bounds_are_refused(make_model, make_units, make_settings, key):
    with pytest.raises(ValueError, match="more rows"):
        PrivateRun(make_model(), make_units([[4] * 5]), make_settings(), key)
    with pytest.raises(ValueError, match="longer"):
        PrivateRun(make_model(), make_units([[20]]), make_settings(max_length=19), key)


def test_an_empty_batch_adds_noise_and_takes_a_step(make_model, make_units, make_settings, update_of, key):
    settings = make_settings(
        sampling_probability=1e-15,
        noise_multiplier=2.0,
        clipping_norm=3.0,
        expected_batch_units=10.0,
    )
    run = PrivateRun(make_model(), make_units(LENGTHS), settings, key)
    update = update_of(run)
    assert run.completed_steps == 1
    assert update.std() == pytest.approx(2.0 * 3.0 / 10.0, rel=0.08)


def test_a_unit_whose_gradient_is_not_finite_adds_nothing(make_model, make_units, make_settings, update_of, key):
    units = make_units([[5, 9], [12], [7]], lowest=12)
    bad = Unit((Row.of([12, 11, 13]), units[1].rows[0]))
    model = make_model()
    model.get_input_embeddings().weight.data[11] = torch.nan
    found = update_of(PrivateRun(model, [units[0], bad, units[2]], make_settings(), key))
    expected = update_of(PrivateRun(make_model(), [units[0], units[2]], make_settings(), key))
    assert expected.norm() > 0
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("tokens", "memory"), [(10_000, 1 << 30), (16, 1 << 30), (16, 1)])
def test_the_noise_of_an_update_does_not_depend_on_micro_batches(
    make_model, make_units, make_settings, update_of, key, tokens, memory
):
    model, units = make_model(), make_units(LENGTHS)
    shape = {"expected_batch_units": 5.0, "clipping_norm": 0.7, "clipping": "normalised"}
    cut = Execution(micro_batch_tokens=tokens, gradient_bytes=memory)
    quiet = update_of(PrivateRun(model, units, make_settings(**shape), key, cut))
    noisy = update_of(PrivateRun(model, units, make_settings(noise_multiplier=1.5, **shape), key, cut))
    noise = noisy - quiet
    assert noise.std() == pytest.approx(1.5 * 0.7 / 5.0, rel=0.08)
    assert abs(noise.mean()) < 5 * noise.std() / noise.numel() ** 0.5


def test_one_draw_per_logical_step_whatever_the_micro_batches(make_model, make_units, make_settings, key, monkeypatch):
    drawn = []
    draw = PoissonSampler.draw
    monkeypatch.setattr(PoissonSampler, "draw", lambda self: drawn.append(draw(self)) or drawn[-1])
    results = []
    for tokens, memory in ((10_000, 1 << 30), (16, 1 << 30), (16, 1), (1, 20_000)):
        model = make_model()
        settings = make_settings(
            steps=4,
            sampling_probability=0.5,
            noise_multiplier=0.3,
        )
        execution = Execution(micro_batch_tokens=tokens, gradient_bytes=memory)
        train_private(model, make_units(LENGTHS), settings, key, execution=execution)
        results.append(trained(model))
    assert len(drawn) == 4 * 4
    assert all(np.array_equal(drawn[i], drawn[i % 4]) for i in range(16))
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=1e-7, atol=1e-9)


def test_another_key_draws_other_batches_and_noise(make_model, make_units, make_settings, key):
    settings = make_settings(noise_multiplier=0.3)
    results = []
    for each in (key, key, RunKey.generate()):
        model = make_model()
        train_private(model, make_units(LENGTHS), settings, each)
        results.append(trained(model))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_the_sum_and_the_noise_are_in_double_precision(make_model, make_units, make_settings, key, monkeypatch):
    dtypes = set()
    add = GaussianNoise.add_
    monkeypatch.setattr(
        GaussianNoise,
        "add_",
        lambda self, total: dtypes.add(total.dtype) or add(self, total),
    )
    model = make_model(dtype=torch.bfloat16)
    train_private(model, make_units(LENGTHS), make_settings(noise_multiplier=1.0), key)
    assert dtypes == {torch.float64}
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}


def test_a_run_has_a_fixed_number_of_steps_and_tells_nothing_else(
    make_model, make_units, make_settings, key, capfd, caplog
):
    told: list[tuple] = []
    for units in (make_units(LENGTHS), [Unit(())] * 6):
        told.append([])
        settings = make_settings(steps=7, sampling_probability=0.3, noise_multiplier=1.0)
        caplog.set_level(0)
        result = train_private(make_model(), units, settings, key, lambda *args, **kw: told[-1].append((args, kw)))
        assert result is None
    assert told[0] == told[1] == [((step,), {}) for step in range(1, 8)]
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def test_what_on_step_raises_stops_the_run(make_model, make_units, make_settings, key):
    class Stop(Exception):
        pass

    seen = []

    def on_step(step):
        seen.append(step)
        if step == 2:
            raise Stop

    with pytest.raises(Stop):
        train_private(make_model(), make_units(LENGTHS), make_settings(steps=9), key, on_step)
    assert seen == [1, 2]


def test_adapters_that_do_not_move_are_an_error(make_model, make_units, make_settings, key, monkeypatch):
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self: None)
    with pytest.raises(AdapterUnmovedError, match="did not move"):
        train_private(make_model(), make_units(LENGTHS), make_settings(noise_multiplier=1.0), key)


def test_an_adapter_that_receives_no_gradient_is_found_before_any_row_is_read(
    make_model, make_units, make_settings, key
):
    """Noise alone would move such an adapter, so that comparing weights could not tell."""
    model = make_model()
    with torch.no_grad():
        model.base_model.model.model.layers[1].mlp.up_proj.lora_A["default"].weight.zero_()
    with pytest.raises(UnsupportedModelError, match=r"1 adapters get no gradient.*up_proj"):
        train_private(model, make_units(LENGTHS), make_settings(noise_multiplier=1.0), key)


@pytest.mark.parametrize("at", [0, 1, 3])
def test_resume_is_bit_exact(make_model, make_units, make_settings, key, at):
    settings = make_settings(steps=6, sampling_probability=0.5, noise_multiplier=0.5, clipping="normalised")
    units = make_units(LENGTHS)
    model = make_model(dtype=torch.float32)
    run = PrivateRun(model, units, settings, key)
    for _ in range(at):
        run.step()
    checkpoint = io.BytesIO()
    torch.save(run.state_dict(), checkpoint)
    for _ in range(3):
        run.step()

    again = make_model(dtype=torch.float32, fresh=True)
    resumed = PrivateRun(again, units, settings, RunKey.generate())
    checkpoint.seek(0)
    resumed.load_state_dict(torch.load(checkpoint, weights_only=False))
    assert resumed.completed_steps == at
    for _ in range(3):
        resumed.step()
    assert torch.equal(trained(model), trained(again))
    assert resumed.completed_steps == at + 3


def test_a_saved_state_is_a_copy(make_model, make_units, make_settings, key):
    run = PrivateRun(make_model(), make_units(LENGTHS), make_settings(noise_multiplier=1.0), key)
    saved = run.state_dict()
    kept = copy.deepcopy(saved)
    run.step()
    assert all(torch.equal(a, b) for a, b in zip(saved["parameters"], kept["parameters"], strict=True))
    assert saved["completed_steps"] == 0


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 0},
        {"expected_batch_units": 0.0},
        {"sampling_probability": 1.01},
        {"sampling_probability": 0.0},
        {"noise_multiplier": -0.1},
        {"noise_multiplier": float("nan")},
        {"clipping_norm": float("inf")},
        {"clipping": "none"},
        {"learning_rate": 0.0},
        {"max_rows_per_unit": 0},
    ],
)
def test_senseless_settings_are_refused(make_settings, change):
    with pytest.raises(ValueError):
        make_settings(**change)


def test_training_improves_what_it_is_trained_on(make_model, make_units, make_settings, key):
    class Known:
        bos_token_id, eos_token_id = 0, 1

        def __call__(self, texts, add_special_tokens, split_special_tokens):
            return {"input_ids": [[10 + ord(c) % 40 for c in text] for text in texts]}

    texts = ["the cat sat on the mat", "the dog sat on the log"] * 4
    units = [Unit((row,)) for row in plain_rows(Known(), texts, 64)]
    model = make_model(dtype=torch.float32, fresh=True)
    before = perplexity(model, Known(), texts).perplexity
    settings = make_settings(
        steps=60,
        expected_batch_units=8.0,
        learning_rate=0.05,
        clipping="normalised",
        clipping_norm=1.0,
    )
    train_private(model, units, settings, key)
    assert perplexity(model, Known(), texts).perplexity < 0.5 * before


def test_no_signature_of_a_run_offers_a_loss():
    assert inspect.signature(train_private).return_annotation == "None"
    public = {name for name in dir(PrivateRun) if not name.startswith("_")}
    assert public == {"step", "check", "state_dict", "load_state_dict"}
    assert {f for f in TrainingSettings.__dataclass_fields__} >= {"steps", "noise_multiplier"}
