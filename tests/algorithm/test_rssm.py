"""The RSSM: time convention, what a first row erases, and whose gradient the KL is."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch.distributions import Categorical, Independent, kl_divergence

from dreamer.rssm import RSSM, State, kl_losses

B, T, E, A, D, S, K = 3, 8, 5, 2, 6, 4, 3


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def rssm() -> RSSM:
    torch.manual_seed(0)
    return RSSM(E, A, D, 16, S, K, 0.01)


def window(rng: torch.Generator, batch: int = B, steps: int = T):
    """Random embed, actions and no first rows."""
    embed = 2 * torch.randn(batch, steps, E, generator=rng)
    action = torch.rand(batch, steps, A, generator=rng) * 2 - 1
    return embed, action, torch.zeros(batch, steps, dtype=torch.bool)


def noise() -> torch.Generator:
    """Always the same random numbers."""
    return torch.Generator().manual_seed(7)


def some_state(rng: torch.Generator, batch: int = B) -> State:
    index = torch.randint(K, (batch, S), generator=rng)
    deter = torch.randn(batch, D, generator=rng).tanh()
    return State(deter, torch.eye(K)[index], torch.rand(batch, A, generator=rng))


def rows_that_differ(x: torch.Tensor, y: torch.Tensor) -> list[bool]:
    """For each time step: does any number differ by more than rounding?"""
    return ((x - y).abs() > 1e-5).flatten(2).any(-1).any(0).tolist()


def test_shapes_and_one_hot_latents(rssm, rng):
    post, state = rssm.observe(*window(rng), noise())
    assert post.deter.shape == (B, T, D) and rssm.get_feat(post).shape == (B, T, D + S * K)
    for x in (post.stoch, post.post_logits, post.prior_logits):
        assert x.shape == (B, T, S, K)
    assert torch.equal(post.stoch, post.stoch.round()) and post.stoch.sum(-1).eq(1).all()
    assert torch.equal(state.deter, post.deter[:, -1])
    assert torch.equal(state.stoch, post.stoch[:, -1])


def test_deter_is_the_gru_that_numpy_computes(rssm, rng):
    """tanh(reset * cand), an update gate shifted by -1; state, latent and action go through a layer
    each."""
    with torch.no_grad():
        rssm.gru.bias.copy_(torch.linspace(-1, 1, 3 * D))
    embed, action, is_first = window(rng)
    state = some_state(rng)
    post, _ = rssm.observe(embed[:, :1], action[:, :1], is_first[:, :1], noise(), state)

    def norm(x):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-4)

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    deter, stoch, prev_action = (x.flatten(1).double().numpy() for x in state)
    read = []
    layers = rssm.in_deter, rssm.in_stoch, rssm.in_action
    for layer, x in zip(layers, (deter, stoch, prev_action), strict=True):
        weight, bias = (p.detach().double().numpy() for p in layer[0].parameters())
        x = norm(x @ weight.T + bias)
        read.append(x * sigmoid(x))  # SiLU
    gru = rssm.gru.weight.detach().double().numpy(), rssm.gru.bias.detach().double().numpy()
    gates = np.concatenate(read, 1) @ gru[0].T + gru[1]
    reset, cand, update = np.split(gates, 3, 1)
    cand, update = np.tanh(sigmoid(reset) * cand), sigmoid(update - 1)
    expected = update * cand + (1 - update) * deter
    np.testing.assert_allclose(post.deter[:, 0].detach().numpy(), expected, atol=1e-5)


def test_a_window_at_once_equals_step_by_step(rssm, rng):
    embed, action, is_first = window(rng)
    is_first[1, 0] = is_first[0, 3] = is_first[2, 5] = True
    state = some_state(rng)
    whole, whole_state = rssm.observe(embed, action, is_first, noise(), state)
    steps, one_rng = [], noise()
    for t in range(T):
        now = slice(t, t + 1)
        step, state = rssm.observe(embed[:, now], action[:, now], is_first[:, now], one_rng, state)
        steps.append(step)
    for name in whole._fields:
        parts = torch.cat([getattr(step, name) for step in steps], 1)
        torch.testing.assert_close(getattr(whole, name), parts, rtol=0, atol=1e-5)
    torch.testing.assert_close(tuple(whole_state), tuple(state), rtol=0, atol=1e-5)


def test_windows_of_a_batch_do_not_touch_each_other(rssm, rng):
    embed, action, is_first = window(rng)
    post, _ = rssm.observe(embed, action, is_first, noise())
    others = embed.clone()
    others[1:] += 5
    after, _ = rssm.observe(others, action.flip(0).index_copy(0, torch.tensor([0]), action[:1]),
                            is_first, noise())  # fmt: skip
    assert torch.equal(post.deter[0], after.deter[0]) and torch.equal(post.stoch[0], after.stoch[0])
    assert not torch.equal(post.deter[1:], after.deter[1:])


@pytest.mark.parametrize("part", State._fields)
@pytest.mark.parametrize("first", [True, False])
def test_a_first_row_erases_deter_stoch_and_previous_action(rssm, rng, part, first):
    """Each part of the past matters to the next deter, unless the row is a first one."""
    embed, action, is_first = window(rng, steps=2)
    is_first[:, 0] = first
    state = some_state(rng)
    value = getattr(state, part)
    changed = value.roll(1, -1) if part == "stoch" else -value
    other = state._replace(**{part: changed})
    post, _ = rssm.observe(embed, action, is_first, noise(), state)
    after, _ = rssm.observe(embed, action, is_first, noise(), other)
    assert torch.equal(post.deter, after.deter) == first
    if first:
        assert torch.equal(post.stoch, after.stoch)
        fresh, _ = rssm.observe(embed, action, is_first, noise())  # from the zero state
        assert torch.equal(post.deter, fresh.deter)


@pytest.mark.parametrize("t", [0, 3, T - 2, T - 1])
def test_an_action_reaches_the_next_state_and_not_its_own(rssm, rng, t):
    """That of the last row waits in the returned state."""
    embed, action, is_first = window(rng)
    other = action.clone()
    other[:, t] *= -1
    post, _ = rssm.observe(embed, action, is_first, noise())
    after, state = rssm.observe(embed, other, is_first, noise())
    differ = rows_that_differ(post.deter, after.deter)
    assert differ[: t + 2] == [False] * (t + 1) + [True] * (t + 1 < T)
    assert torch.equal(state.action, other[:, -1])


def test_an_observation_reaches_its_own_posterior_but_not_its_own_prior(rssm, rng):
    embed, action, is_first = window(rng)
    other = embed.clone()
    other[:, 3] *= -4
    post, _ = rssm.observe(embed, action, is_first, noise())
    after, _ = rssm.observe(other, action, is_first, noise())
    assert rows_that_differ(post.post_logits, after.post_logits)[:4] == [False] * 3 + [True]
    assert rows_that_differ(post.prior_logits, after.prior_logits)[:5] == [False] * 4 + [True]


def test_an_action_out_of_range_acts_as_the_clipped_one_but_feels_gradients(rssm, rng):
    embed, action, is_first = window(rng)
    action = (3 * action.sign()).requires_grad_()
    post, _ = rssm.observe(embed, action, is_first, noise())
    clipped, _ = rssm.observe(embed, action.clamp(-1, 1), is_first, noise())
    torch.testing.assert_close(post.deter, clipped.deter)
    post.deter.square().sum().backward()
    assert action.grad[:, :-1].ne(0).all()


def test_latents_are_drawn_from_their_own_distribution(rssm, rng):
    """20,000 draws of one posterior and one prior agree with them to 0.02, 5 standard errors."""
    many = 20_000
    embed, action, is_first = window(rng, batch=1, steps=1)
    state = State(*(x.expand(many, *x.shape[1:]) for x in some_state(rng, 1)))
    inputs = (x.expand(many, *x.shape[1:]) for x in (embed, action, is_first))
    post, _ = rssm.observe(*inputs, noise(), state)
    probs = post.post_logits[0, 0].exp()
    torch.testing.assert_close(post.stoch[:, 0].mean(0), probs, atol=0.02, rtol=0)
    assert (probs - 1 / K).abs().max() > 0.1
    dream = rssm.imagine(state, lambda feat, t: state.action, 1, noise())
    probs = post.prior_logits[0, 0].exp()  # the same deter: it has not seen the observation
    torch.testing.assert_close(dream.deter[:, 1], post.deter[:, 0])
    torch.testing.assert_close(dream.stoch[:, 1].mean(0), probs, atol=0.02, rtol=0)
    assert (post.prior_logits[0, 0].exp() - post.post_logits[0, 0].exp()).abs().max() > 0.05


def test_posterior_and_prior_keep_the_unimix_floor(rng):
    torch.manual_seed(0)
    rssm = RSSM(E, A, D, 16, S, K, 0.09)
    with torch.no_grad():
        for p in rssm.parameters():
            p *= 30
    post, _ = rssm.observe(*window(rng), noise())
    for logits in (post.post_logits, post.prior_logits):
        probs = logits.exp()
        assert probs.max() > 0.9  # very sure, but for the floor
        assert probs.min().item() == pytest.approx(0.09 / K, rel=1e-3)
        torch.testing.assert_close(probs.sum(-1), torch.ones(B, T, S))


HORIZON = 5


def dream_with(rssm, state, actions, rng=None):
    return rssm.imagine(state, lambda feat, t: actions[:, t], HORIZON, rng or noise())


def test_a_dream_begins_at_its_start_and_records_what_was_done(rssm, rng):
    state, actions = some_state(rng), torch.rand(B, HORIZON, A, generator=rng)
    feats = []

    def policy(feat, t):
        feats.append(feat)
        return actions[:, t]

    dream = rssm.imagine(state, policy, HORIZON, noise())
    assert dream.deter.shape == (B, HORIZON + 1, D)
    assert dream.stoch.shape == (B, HORIZON + 1, S, K)
    assert torch.equal(dream.deter[:, 0], state.deter)
    assert torch.equal(dream.stoch[:, 0], state.stoch)
    assert torch.equal(dream.action, actions)
    assert torch.equal(torch.stack(feats, 1), rssm.get_feat(dream)[:, :-1])  # the state acted upon


@pytest.mark.parametrize("t", [0, 2, HORIZON - 1])
def test_a_dreamed_action_reaches_the_next_state_and_not_its_own(rssm, rng, t):
    state, actions = some_state(rng), torch.rand(B, HORIZON, A, generator=rng)
    other = actions.clone()
    other[:, t] *= -1
    dream, after = dream_with(rssm, state, actions), dream_with(rssm, state, other)
    differ = rows_that_differ(dream.deter, after.deter)
    assert differ[: t + 2] == [False] * (t + 1) + [True]


def test_a_dream_uses_no_posterior_and_not_the_action_that_led_to_its_start(rssm, rng):
    state, actions = some_state(rng), torch.rand(B, HORIZON, A, generator=rng)
    dream = dream_with(rssm, state, actions)
    posterior = [p for name, p in rssm.named_parameters() if name.startswith("post")]
    assert posterior
    with torch.no_grad():
        for p in posterior:
            p.fill_(math.nan)
    after = dream_with(rssm, state._replace(action=-state.action), actions)
    assert torch.equal(dream.deter, after.deter) and torch.equal(dream.stoch, after.stoch)


def test_a_dream_moves_as_the_filter_does_but_for_the_latents(rssm, rng):
    """Fed with the latents that were dreamed, the filter's GRU takes the same way."""
    state, actions = some_state(rng), torch.rand(B, HORIZON, A, generator=rng)
    dream = dream_with(rssm, state, actions)
    for t in range(HORIZON):
        here = State(dream.deter[:, t], dream.stoch[:, t], actions[:, t])
        embed, _, is_first = window(rng, steps=1)
        post, _ = rssm.observe(embed, actions[:, t : t + 1], is_first, noise(), here)
        torch.testing.assert_close(post.deter[:, 0], dream.deter[:, t + 1])


def test_gradients_run_from_a_dream_back_to_its_actions(rssm, rng):
    """Through deter and, straight through the samples, through stoch."""
    state = some_state(rng)
    for name in ("deter", "stoch"):
        actions = torch.rand(B, HORIZON, A, generator=rng).requires_grad_()
        dream = dream_with(rssm, state, actions)
        last = getattr(dream, name)[:, -1].flatten(1)
        (last * torch.randn(last.shape, generator=rng)).sum().backward()
        assert (actions.grad.abs().amax((0, 2)) > 1e-7).all(), name


# KL[(1/2, 1/2) || (1/4, 3/4)] = 1/2 ln 2 + 1/2 ln 2/3 = 1/2 ln 4/3 = 0.144 nats
HALF, QUARTER = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.75]).log()


@pytest.mark.parametrize(
    ("latents", "free_nats", "expected"),
    [
        (10, 1.0, 5 * math.log(4 / 3)),  # each latent is below 1 nat, their sum of 1.44 above
        (5, 1.0, 1.0),  # a sum of 0.72
        (5, 0.0, 2.5 * math.log(4 / 3)),
    ],
)
def test_kl_sums_latents_before_the_free_nats(latents, free_nats, expected):
    post, prior = HALF.expand(1, 1, latents, 2), QUARTER.expand(1, 1, latents, 2)
    for loss in kl_losses(post, prior, free_nats):
        assert loss.shape == (1, 1) and loss.item() == pytest.approx(expected, rel=1e-5)


def test_dyn_trains_the_prior_and_rep_the_posterior():
    post = HALF.repeat(1, 1, 10, 1).requires_grad_()
    prior = QUARTER.repeat(1, 1, 10, 1).requires_grad_()
    dyn, rep = kl_losses(post, prior, 1.0)
    dyn_grads = torch.autograd.grad(dyn.sum(), (post, prior), allow_unused=True)
    rep_grads = torch.autograd.grad(rep.sum(), (post, prior), allow_unused=True)
    assert dyn_grads[0] is None and rep_grads[1] is None
    # d KL / d prior logits = p - q: the prior is drawn to the posterior.
    torch.testing.assert_close(dyn_grads[1], torch.tensor([-0.25, 0.25]).expand(1, 1, 10, 2))
    assert rep_grads[0].abs().max() > 0.1


def test_no_gradient_where_the_free_nats_clip():
    post = HALF.repeat(1, 2, 10, 1).requires_grad_()
    prior = QUARTER.repeat(1, 2, 10, 1)
    prior[0, 1, 5:] = HALF  # step 1 has 0.72 nats
    prior.requires_grad_()
    dyn, rep = kl_losses(post, prior, 1.0)
    (dyn + rep).sum().backward()
    for grad in (post.grad, prior.grad):
        assert grad[0, 0].abs().max() > 0.1 and grad[0, 1].eq(0).all()


logits64 = hnp.arrays(
    np.float32, (2, 3, 4, 5), elements=st.floats(-60, 60, width=32, allow_subnormal=False)
)


@given(logits64, logits64, st.sampled_from([0.0, 1.0, 20.0]))
def test_kl_matches_torch_distributions_in_float64(post, prior, free_nats):
    """The floor is that of each time step alone."""
    post, prior = torch.from_numpy(post), torch.from_numpy(prior)
    q, p = (Independent(Categorical(logits=x.double()), 1) for x in (post, prior))
    expected = kl_divergence(q, p).clamp(min=free_nats).float()
    for loss in kl_losses(post, prior, free_nats):
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-4)
