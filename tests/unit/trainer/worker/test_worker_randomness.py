"""Sampling is Poisson, noise is Gaussian, both are keyed, separate, and resume bit by bit."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from scipy import stats

from services.trainer.worker.noise import GaussianNoise
from services.trainer.worker.sampling import PoissonSampler
from services.trainer.worker.streams import KeyedStream, NormalLanes, RunKey


def draws(key, units=200, probability=0.13, count=3000) -> np.ndarray:
    """Return a (count, units) table of who was drawn."""
    sampler = PoissonSampler(key.stream("sampling"), units, probability)
    table = np.zeros((count, units), dtype=bool)
    for row in table:
        row[sampler.draw()] = True
    return table


def test_every_unit_is_drawn_with_the_probability(key):
    table = draws(key)
    frequency = table.mean(axis=0)
    z = (frequency - 0.13) / np.sqrt(0.13 * 0.87 / len(table))
    assert np.abs(z).max() < 5
    assert stats.kstest(z, "norm").pvalue > 1e-4


def test_the_batch_size_varies_as_a_binomial(key):
    sizes = draws(key).sum(axis=1)
    variance = 200 * 0.13 * 0.87
    assert abs(sizes.mean() - 26) < 5 * np.sqrt(variance / len(sizes))
    assert 0.9 < sizes.var() / variance < 1.1


def test_units_and_steps_are_drawn_independently(key):
    table = draws(key).astype(float) - 0.13
    between_units = np.corrcoef(table.T)[np.triu_indices(200, 1)] * np.sqrt(len(table))
    assert 0.97 < between_units.std() < 1.03
    between_steps = (table[1:] * table[:-1]).mean() / (0.13 * 0.87)
    assert abs(between_steps) < 5 / np.sqrt(table[1:].size)


def test_edge_probabilities(key):
    assert PoissonSampler(key.stream("s"), 5, 1.0).draw().tolist() == [0, 1, 2, 3, 4]
    assert len(PoissonSampler(key.stream("s"), 1000, 1e-15).draw()) == 0
    for probability in (0.0, -0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="probability"):
            PoissonSampler(key.stream("s"), 5, probability)
    with pytest.raises(ValueError, match="units"):
        PoissonSampler(key.stream("s"), 0, 0.5)


def test_noise_is_standard_normal_times_its_deviation(key):
    drawn = GaussianNoise(NormalLanes(key, "noise"), 2.5).add_(torch.zeros(200_000, dtype=torch.float64))
    assert stats.kstest(drawn.numpy() / 2.5, "norm").pvalue > 1e-4


def test_noise_is_fresh_and_is_added(key):
    noise = GaussianNoise(NormalLanes(key, "noise"), 1.0)
    first = noise.add_(torch.full((10, 3), 100.0, dtype=torch.float64)) - 100
    second = noise.add_(torch.full((10, 3), 100.0, dtype=torch.float64)) - 100
    assert 0 < first.abs().max() < 10
    assert abs(np.corrcoef(first.flatten(), second.flatten())[0, 1]) < 0.9


def test_lanes_of_noise_are_unrelated(key):
    drawn = NormalLanes(key, "noise").take(8 * 10_000).reshape(8, -1)
    assert np.abs(np.corrcoef(drawn)[np.triu_indices(8, 1)]).max() < 5 / np.sqrt(10_000)
    assert len(np.unique(drawn)) == drawn.size


def test_noise_that_was_begun_is_what_is_added(key):
    noise, other = (GaussianNoise(NormalLanes(key, "noise"), 1.0) for _ in range(2))
    for count in (17, 5, 33):
        noise.begin(count)
        assert torch.equal(*(one.add_(torch.zeros(count, dtype=torch.float64)) for one in (noise, other)))


def test_noise_is_drawn_once_and_used_once(key):
    noise = GaussianNoise(NormalLanes(key, "noise"), 1.0)
    noise.begin(5)
    with pytest.raises(RuntimeError, match="has not been used"):
        noise.begin(5)
    with pytest.raises(RuntimeError, match="is being drawn"):
        noise.state_dict()
    with pytest.raises(RuntimeError, match="for 5 numbers, not for 6"):
        noise.add_(torch.zeros(6, dtype=torch.float64))


def test_noise_is_refused_in_single_precision(key):
    with pytest.raises(TypeError, match="double"):
        GaussianNoise(NormalLanes(key, "noise"), 1.0).add_(torch.zeros(3))


@pytest.mark.parametrize("deviation", [1e-9, 0.3, 1.0, 2.5, 1e6])
def test_a_noised_sum_lies_on_a_lattice_coarser_than_its_rounding(key, deviation):
    noise = GaussianNoise(NormalLanes(key, "noise"), deviation)
    assert deviation / 2**17 <= noise.spacing <= deviation / 2**16
    generator = torch.Generator().manual_seed(1)
    parts = deviation * torch.randn(300, 2000, dtype=torch.float64, generator=generator)
    # The same summands in another order: different last bits, which must not show.
    one, other = parts.cumsum(0)[-1], parts.flip(0).cumsum(0)[-1]
    assert not torch.equal(one, other)
    released = [GaussianNoise(NormalLanes(key, "noise"), deviation).add_(total.clone()) for total in (one, other)]
    assert torch.equal(*released)
    assert torch.equal(released[0] / noise.spacing, (released[0] / noise.spacing).round())


def test_without_noise_nothing_is_rounded(key):
    total = torch.tensor([1 / 3], dtype=torch.float64)
    assert GaussianNoise(NormalLanes(key, "noise"), 0.0).add_(total.clone()) == total


@pytest.mark.parametrize("deviation", [-1.0, float("inf"), float("nan")])
def test_senseless_noise_is_refused(key, deviation):
    with pytest.raises(ValueError, match="standard deviation"):
        GaussianNoise(NormalLanes(key, "noise"), deviation)


def test_streams_of_two_purposes_or_keys_are_unrelated(key):
    one, other = key.stream("sampling").uint64(1000), key.stream("noise").uint64(1000)
    assert not np.intersect1d(one, other).size
    assert not np.intersect1d(one, RunKey.generate().stream("sampling").uint64(1000)).size
    assert np.array_equal(one, key.stream("sampling").uint64(1000))


def test_the_generator_is_aes_in_counter_mode():
    """FIPS 197, appendix B: the stream's first block is the encryption of counter 0 under the key."""
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    secret = 0x000102030405060708090A0B0C0D0E0F
    cipher = Cipher(algorithms.AES(secret.to_bytes(16, "little")), modes.ECB())
    block = cipher.encryptor().update(bytes(16))
    assert KeyedStream(secret).uint64(2).tobytes() == block


def test_a_key_is_random_and_never_shown():
    key = RunKey.generate()
    assert key.secret != RunKey.generate().secret
    assert repr(key) == "RunKey()"
    with pytest.raises(ValueError, match="32 bytes"):
        RunKey(b"short")


@pytest.mark.parametrize("taken", [0, 1, 7, 33])
def test_sampler_and_noise_resume_bit_by_bit(key, taken):
    sampler = PoissonSampler(key.stream("sampling"), 37, 0.4)
    noise = GaussianNoise(NormalLanes(key, "noise"), 1.0)
    for _ in range(taken):
        sampler.draw()
        noise.add_(torch.zeros(taken, dtype=torch.float64))
    saved = copy.deepcopy((sampler.state_dict(), noise.state_dict()))
    expected = [sampler.draw() for _ in range(5)]
    expected_noise = noise.add_(torch.zeros(11, dtype=torch.float64))

    other = RunKey.generate()
    sampler = PoissonSampler(other.stream("sampling"), 37, 0.4)
    noise = GaussianNoise(NormalLanes(other, "noise"), 1.0)
    sampler.load_state_dict(saved[0])
    noise.load_state_dict(saved[1])
    assert all(np.array_equal(sampler.draw(), drawn) for drawn in expected)
    assert torch.equal(noise.add_(torch.zeros(11, dtype=torch.float64)), expected_noise)


def test_a_shuffle_is_a_uniform_permutation(key):
    stream = key.stream("rows")
    counts = np.zeros((4, 4))
    for _ in range(4000):
        counts[np.arange(4), stream.shuffled(4)] += 1
    assert stats.chisquare(counts.flatten()).pvalue > 1e-4
