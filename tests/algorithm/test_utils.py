"""The maths, against hand-worked numbers and slow float64 references."""

import math

import numpy as np
import pytest
import torch
from conftest import CPU, assert_close64, float32_arrays, hats64, log_softmax64
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn

from dreamer.utils import (
    PercentileScale,
    derive_seed,
    frozen,
    lambda_return,
    make_rng,
    sample_onehot,
    symexp,
    symlog,
    twohot_bins,
    twohot_encode,
    twohot_loss,
    twohot_mean,
    unimix,
)

FLOAT32_MAX = float(np.finfo(np.float32).max)
BINS = twohot_bins()
BINS64 = BINS.double().numpy()


def float32s(low: float = -FLOAT32_MAX, high: float = FLOAT32_MAX):
    """float32 numbers; subnormals are left out, as training flushes them to zero."""
    bounds = float(np.float32(low)), float(np.float32(high))
    return st.floats(*bounds, width=32, allow_subnormal=False)


def arrays(shape, low: float, high: float):
    return hnp.arrays(np.float32, shape, elements=float32s(low, high))


def test_symlog_and_symexp_by_hand():
    e = math.e
    x = torch.tensor([0.0, e - 1, 1 - e, e**2 - 1, 1 - e**3])
    y = torch.tensor([0.0, 1.0, -1.0, 2.0, -3.0])
    torch.testing.assert_close(symlog(x), y)
    torch.testing.assert_close(symexp(y), x)


@given(float32s())
def test_symlog_matches_float64_over_all_of_float32(x):
    expected = math.copysign(math.log1p(abs(x)), x)
    assert symlog(torch.tensor(x)).item() == pytest.approx(expected, rel=1e-6, abs=1e-37)


@given(float32s(-88, 88))
def test_symexp_matches_float64(y):
    expected = math.copysign(math.expm1(abs(y)), y)
    assert symexp(torch.tensor(y)).item() == pytest.approx(expected, rel=1e-5, abs=1e-37)


@given(float32s().filter(bool))
def test_gradient_of_symlog_is_the_closed_form(x):
    value = torch.tensor(x, requires_grad=True)
    symlog(value).backward()
    assert value.grad.item() == pytest.approx(1 / (1 + abs(x)), rel=1e-6, abs=1e-37)


def test_bins_are_symexp_spaced_symmetric_and_zero_in_the_middle():
    grid = np.linspace(-20, 20, 255)
    expected = np.sign(grid) * np.expm1(np.abs(grid))
    np.testing.assert_allclose(BINS64, expected, rtol=1e-5, atol=1e-6)
    assert len(BINS) == 255 and BINS[127] == 0
    assert torch.equal(BINS, -BINS.flip(0))
    assert (BINS.diff() > 0).all()


def test_twohot_weights_by_hand_are_linear_in_raw_space():
    bins = torch.tensor([-4.0, -1.0, 0.0, 1.0, 4.0])
    x = torch.tensor([2.0, 3.25, -0.25, 1.0, 0.0, -4.0, 99.0, -1e30, math.inf])
    # 2 lies a third of the way from 1 to 4; symlog space would say ln(3/2)/ln(5/2) = 0.44.
    expected = torch.tensor(
        [
            [0, 0, 0, 2 / 3, 1 / 3],
            [0, 0, 0, 1 / 4, 3 / 4],
            [0, 1 / 4, 3 / 4, 0, 0],
            [0, 0, 0, 1, 0],
            [0, 0, 1, 0, 0],
            [1, 0, 0, 0, 0],
            [0, 0, 0, 0, 1],
            [1, 0, 0, 0, 0],
            [0, 0, 0, 0, 1],
        ]
    )
    torch.testing.assert_close(twohot_encode(x, bins), expected)


@given(float32s())
def test_twohot_encode_matches_hat_functions(x):
    weights = twohot_encode(torch.tensor(x), BINS).double().numpy()
    np.testing.assert_allclose(weights, hats64(x, BINS64), atol=2e-6)


@given(float32s(-4e8, 4e8))
def test_twohot_round_trip(x):
    target = twohot_encode(torch.tensor(x), BINS)
    read = twohot_mean(target.log(), BINS).item()
    assert read == pytest.approx(x, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("logit", [0.0, -3.7, 1e4])
def test_a_uniform_head_reads_exactly_zero(logit):
    assert twohot_mean(torch.full((5, 255), logit), BINS).eq(0).all()


def test_a_sure_head_reads_its_bin():
    assert torch.equal(twohot_mean(1e4 * torch.eye(255), BINS), BINS)


@settings(max_examples=50)
@given(float32_arrays(255), float32_arrays(1))
def test_twohot_and_gradients_over_all_of_float32(logits, target):
    x = torch.from_numpy(logits).requires_grad_()
    loss = twohot_loss(x, torch.from_numpy(target)[0], BINS)
    loss.backward()
    log_probs, weights = log_softmax64(logits), hats64(float(target[0]), BINS64)
    assert_close64(loss, -(weights * log_probs).sum(), 10 + np.abs(log_probs).max())
    assert_close64(x.grad, np.exp(log_probs) - weights, 10)

    x = torch.from_numpy(logits).requires_grad_()
    mean = twohot_mean(x, BINS)
    mean.backward()
    probs = np.exp(log_probs)
    expected, spread = (probs * BINS64).sum(), (probs * np.abs(BINS64)).sum()
    assert_close64(mean, expected, 10 * spread)
    assert_close64(x.grad, probs * (BINS64 - expected), 10 * spread)


def test_twohot_loss_of_several_numbers_is_that_of_each():
    rng = torch.Generator().manual_seed(0)
    logits, targets = torch.randn(2, 3, 255, generator=rng), torch.randn(2, 3, 4, generator=rng)
    losses = twohot_loss(logits, 10 * targets, BINS)
    assert losses.shape == (2, 3, 4)
    for i in range(4):
        torch.testing.assert_close(losses[..., i], twohot_loss(logits, 10 * targets[..., i], BINS))


def test_unimix_by_hand():
    log_probs = unimix(torch.tensor([1e4, 0.0, 0.0, 0.0]), 0.2)
    torch.testing.assert_close(log_probs.exp(), torch.tensor([0.85, 0.05, 0.05, 0.05]))
    log_probs = unimix(torch.tensor([0.0, math.log(3)]), 0.5)
    torch.testing.assert_close(log_probs.exp(), torch.tensor([0.375, 0.625]))
    plain = unimix(torch.tensor([0.0, -200.0]), 0.0)  # without a floor, and without rounding to 0
    assert plain.tolist() == [0, -200]


@given(arrays((3, 7), -1e4, 1e4), st.sampled_from([0.01, 0.1, 1.0]))
def test_unimix_is_a_distribution_with_a_floor_and_finite_gradients(logits, mix):
    x = torch.from_numpy(logits).requires_grad_()
    log_probs = unimix(x, mix)
    log_probs.sum().backward()
    probs = log_probs.exp()
    torch.testing.assert_close(probs.sum(-1), torch.ones(3))
    assert probs.min() >= mix / 7 * (1 - 1e-4)
    expected = (1 - mix) * np.exp(log_softmax64(logits)) + mix / 7
    np.testing.assert_allclose(probs.detach().numpy(), expected, rtol=1e-4)
    assert x.grad.isfinite().all()


def test_samples_invert_the_cumulative_distribution_by_hand():
    log_probs = torch.tensor([0.2, 0.5, 0.3]).log().expand(7, 3)
    uniform = torch.tensor([0.0, 0.19, 0.21, 0.69, 0.71, 0.99, 1 - 2**-24])
    index = sample_onehot(log_probs, uniform).argmax(-1)
    assert index.tolist() == [0, 0, 1, 1, 2, 2, 2]
    # What cannot be is never drawn, though rounding may leave the sum below 1.
    certain = torch.tensor([0.0, 1.0, 0.0]).log().sub(1e-3).expand(7, 3)
    assert sample_onehot(certain, uniform).argmax(-1).eq(1).all()


def test_samples_are_onehot_and_their_gradient_is_that_of_the_probabilities():
    rng = torch.Generator().manual_seed(0)
    logits, pull = torch.randn(5, 4, 6, generator=rng), torch.randn(5, 4, 6, generator=rng)
    x = logits.clone().requires_grad_()
    sample = sample_onehot(x.log_softmax(-1), torch.rand(5, 4, generator=rng))
    (sample * pull).sum().backward()
    assert ((sample == 0) | (sample == 1)).all() and sample.sum(-1).eq(1).all()
    y = logits.clone().requires_grad_()
    (y.softmax(-1) * pull).sum().backward()
    torch.testing.assert_close(x.grad, y.grad)
    assert y.grad.abs().max() > 0.01


# Three steps, an end on arriving at state 2; γ = 0.5, λ = 0.5.
REWARD, CONT, VALUE = [1.0, 2.0, 3.0], [1.0, 0.0, 1.0], [10.0, 20.0, 30.0, 40.0]
# R_2 = 3 + 0.5 * 40                           = 23
# R_1 = 2 + 0 (the end)                        = 2
# R_0 = 1 + 0.5 * (0.5 * 20 + 0.5 * R_1)       = 6.5
RETURNS = [6.5, 2.0, 23.0]


def lambda_return_of(reward, cont, value):
    tensors = (torch.tensor([x]) for x in (reward, value, cont))
    return lambda_return(*tensors, gamma=0.5, lam=0.5)[0].tolist()


def test_lambda_return_by_hand():
    assert lambda_return_of(REWARD, CONT, VALUE) == RETURNS
    assert lambda_return_of(REWARD, CONT, [-1e6, *VALUE[1:]]) == RETURNS  # v_0 is not read


@pytest.mark.parametrize("moved", ["reward", "cont", "value"])
def test_lambda_return_of_inputs_one_step_off_is_another(moved):
    """The hand-worked numbers tell a function that reads any input one step off."""
    inputs = {"reward": REWARD, "cont": CONT, "value": VALUE}
    for shifted in (np.roll(inputs[moved], 1).tolist(), np.roll(inputs[moved], -1).tolist()):
        assert lambda_return_of(**{**inputs, moved: shifted}) != RETURNS


def test_lambda_return_with_one_lambda_for_each_step():
    tensors = (torch.tensor([x]) for x in (REWARD, VALUE, CONT))
    lam = torch.tensor([[0.0, 0.5, 1.0]])  # λ_1 = 0 cuts R_0 off from R_1
    assert lambda_return(*tensors, 0.5, lam)[0].tolist() == [1 + 0.5 * 20, 2.0, 23.0]


def mixture_return64(reward, value, cont, gamma, lam):
    """λ-return as its definition, a mixture of n-step returns, float64."""
    steps = len(reward)
    result = np.zeros(steps)
    for t in range(steps):
        total, discount, share = 0.0, 1.0, 1.0
        for n in range(1, steps - t + 1):
            total += discount * reward[t + n - 1]
            discount *= gamma * cont[t + n - 1]
            n_step = total + discount * value[t + n]
            last = n == steps - t
            result[t] += (share if last else share * (1 - lam)) * n_step
            share *= lam
    return result


@given(
    st.data(),
    st.integers(1, 20),
    st.sampled_from([1.0, 1e4, 1e30]),
    st.floats(0, 1),
    st.sampled_from([0.0, 0.5, 0.95, 1.0]),
)
def test_lambda_return_matches_the_mixture_of_n_step_returns(data, steps, size, gamma, lam):
    reward = data.draw(arrays((2, steps), -size, size))
    value = data.draw(arrays((2, steps + 1), -size, size))
    cont = data.draw(arrays((2, steps), 0, 1))
    got = lambda_return(*map(torch.from_numpy, (reward, value, cont)), gamma, lam).numpy()
    for i in range(2):
        rows = (x[i].astype(np.float64) for x in (reward, value, cont))
        expected = mixture_return64(*rows, gamma, lam)
        np.testing.assert_allclose(got[i], expected, rtol=1e-5, atol=1e-5 * steps * size)


def test_gradients_of_the_lambda_return_are_those_of_finite_differences():
    rng = torch.Generator().manual_seed(0)
    sizes = (2, 5), (2, 6), (2, 5)  # reward, value, cont
    inputs = [torch.rand(n, generator=rng, dtype=torch.float64).requires_grad_() for n in sizes]
    assert torch.autograd.gradcheck(lambda *x: lambda_return(*x, 0.9, 0.8), inputs)


def test_percentile_scale_by_hand():
    scale = PercentileScale()
    assert scale.scale().item() == 1.0  # before any return was seen
    returns = torch.arange(101.0)
    assert scale.update(returns).item() == pytest.approx(90, rel=1e-5)  # debiased: at once right
    # 90 weighs 0.01 * 0.99 by now and 180 weighs 0.01.
    expected = (0.99 * 90 + 180) / 1.99
    assert scale.update(2 * returns.reshape(1, 101)).item() == pytest.approx(expected, rel=1e-5)


def test_percentile_scale_ignores_outliers_and_offset_and_has_a_floor_of_one():
    assert PercentileScale().update(torch.full((50,), 1e6)).item() == 1.0
    assert PercentileScale().update(torch.linspace(0, 0.5, 50)).item() == 1.0
    returns = torch.linspace(0, 100, 101)
    returns[0], returns[-1] = -1e9, 1e9
    assert PercentileScale().update(returns + 500).item() == pytest.approx(90, rel=1e-4)


def test_derived_seeds_are_repeatable_distinct_and_in_range():
    parts = [(seed, stream, i) for seed in range(5) for stream in range(5) for i in range(20)]
    seeds = [derive_seed(*p) for p in parts]
    assert seeds == [derive_seed(*p) for p in parts]
    assert len(set(seeds)) == len(parts)
    assert all(0 <= s < 2**31 for s in seeds)


def test_make_rng_depends_on_its_seed_alone():
    torch.manual_seed(1)
    first = torch.rand(4, generator=make_rng(CPU, 3, 1))
    torch.manual_seed(2)
    assert torch.equal(first, torch.rand(4, generator=make_rng(CPU, 3, 1)))
    assert not torch.equal(first, torch.rand(4, generator=make_rng(CPU, 4, 1)))


def test_frozen_lets_gradients_through_but_not_in_and_restores_what_it_found():
    open_part, closed_part = nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(False)
    x = torch.ones(2, requires_grad=True)
    with pytest.raises(RuntimeError), frozen(open_part, closed_part):
        (closed_part(open_part(x))).sum().backward()
        raise RuntimeError
    assert x.grad.abs().sum() > 0
    assert all(p.grad is None for p in open_part.parameters())
    assert all(p.requires_grad for p in open_part.parameters())
    assert not any(p.requires_grad for p in closed_part.parameters())
