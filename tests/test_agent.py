"""The agent: whose gradient each loss is, and every target against slow references."""

from __future__ import annotations

import dataclasses
import math
import typing

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import tiny_config
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.distributions import Bernoulli, Categorical, Independent, Normal, kl_divergence

from dreamer.agent import (
    RANGES,
    Config,
    DreamerAgent,
    critic_loss,
    dream_weight,
    model_loss,
    pathwise_loss,
    rate_factor,
    reinforce_loss,
)
from dreamer.networks import Critic
from dreamer.rssm import get_feat
from dreamer.utils import has_cpp_compiler, make_rng

CPU = torch.device("cpu")
OBS, ACTION = 3, 2
MODEL_PARTS = ("encoder", "rssm", "decoder", "reward", "cont")
PARTS = (*MODEL_PARTS, "actor", "critic", "slow_critic")


def make_agent(discrete: bool = True, stir: float = 0.2, **changes) -> DreamerAgent:
    """A tiny agent. Its weights are moved by `stir`, so that no head is zero because it is fresh
    and the slow critic is not the critic."""
    agent = DreamerAgent(OBS, ACTION, discrete, tiny_config(**changes))
    rng = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in agent.parameters():
            p += stir * torch.randn(p.shape, generator=rng)
    return agent


def make_batch(config: Config, discrete: bool = True, seed: int = 0) -> dict[str, np.ndarray]:
    """Random rows with episode ends of both kinds."""
    rng = np.random.default_rng(seed)
    shape = config.batch_size, config.seq_len
    if discrete:
        action = np.eye(ACTION, dtype=np.float32)[rng.integers(ACTION, size=shape)]
    else:
        action = rng.uniform(-1, 1, (*shape, ACTION)).astype(np.float32)
    is_last = rng.random(shape) < 0.3
    is_first = np.concatenate([rng.random((shape[0], 1)) < 0.5, is_last[:, :-1]], 1)
    return {
        "obs": rng.normal(size=(*shape, OBS)).astype(np.float32),
        "action": action,
        "reward": (3 * rng.normal(size=shape)).astype(np.float32),
        "is_first": is_first,
        "is_last": is_last,
        "is_terminal": is_last & (rng.random(shape) < 0.5),
    }


def as_tensors(batch: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(value) for name, value in batch.items()}


def reached(agent: DreamerAgent, loss: torch.Tensor) -> set[str]:
    """The parts of the agent into whose weights the loss sends a gradient."""
    agent.zero_grad(set_to_none=True)
    loss.backward(retain_graph=True)
    return {
        part
        for part in PARTS
        for p in getattr(agent, part).parameters()
        if p.grad is not None and p.grad.abs().max() > 0
    }


def dreamed(agent: DreamerAgent, discrete: bool = True, start_cont=None):
    """World model, dream and behaviour of one batch: everything that an update computes."""
    batch = as_tensors(make_batch(agent.config, discrete))
    post, feat, loss, model_metrics = agent.learn_world(batch)
    starts = agent.choose_starts(feat.shape[0] * feat.shape[1])
    dream = agent.imagine(post, starts)
    if start_cont is None:
        start_cont = 1 - batch["is_terminal"].flatten()[starts].float()
    behaviour, ret, metrics = agent.learn_behaviour(dream, start_cont)
    return batch, post, feat, loss, starts, dream, start_cont, behaviour, ret, metrics


def twohot_cross_entropy(critic, logits: torch.Tensor, target: np.ndarray) -> np.ndarray:
    """Dense, float64; weights by linear interpolation of each bin's hat function."""
    bins = critic.bins.double().numpy()
    log_probs = logits.detach().double().log_softmax(-1).numpy().reshape(-1, len(bins))
    weights = [[np.interp(x, bins, row) for row in np.eye(len(bins))] for x in target.flatten()]
    return -(np.array(weights) * log_probs).sum(-1).reshape(target.shape)


def expected_value(critic, logits: torch.Tensor) -> np.ndarray:
    bins = critic.bins.double().numpy()
    return (logits.detach().double().softmax(-1).numpy() * bins).sum(-1)


@pytest.fixture(autouse=True)
def one_scale(monkeypatch):
    """Two-hot bins from -e^4 to e^4: with stirred weights the usual ones read values of 1e6."""
    small = torch.linspace(-4, 4, 255)
    small = small.sign() * small.abs().expm1()
    small = (small - small.flip(0)) / 2
    monkeypatch.setattr("dreamer.networks.twohot_bins", lambda num_bins=255: small.clone())


# ---------------------------------------------------------------- whose gradient


@pytest.mark.parametrize("discrete", [True, False])
def test_world_model_loss_reaches_the_world_model_alone(discrete):
    agent = make_agent(discrete)
    loss = dreamed(agent, discrete)[3]
    assert reached(agent, loss) == set(MODEL_PARTS)


@pytest.mark.parametrize("discrete", [True, False])
def test_reinforce_loss_reaches_the_actor_alone(discrete):
    agent = make_agent(discrete, ent_coef=0.0)
    *_, dream, _, _, ret, metrics = dreamed(agent, discrete)
    assert reached(agent, metrics["actor_loss"]) == {"actor"}
    assert not dream.action.requires_grad and not ret.requires_grad  # no graph in the dream


@pytest.mark.parametrize("discrete", [True, False])
def test_pathwise_loss_reaches_the_actor_alone(discrete):
    agent = make_agent(discrete, ent_coef=0.0, actor_grad="pathwise")
    *_, metrics = dreamed(agent, discrete)
    assert reached(agent, metrics["actor_loss"]) == {"actor"}


def record_actions(agent: DreamerAgent, monkeypatch) -> list[torch.Tensor]:
    """A list that receives every dreamed action, as part of the dream's graph."""
    imagine, actions = agent.rssm.imagine, []

    def recorded(start, policy, horizon, rng):
        def record(feat, t):
            actions.append(policy(feat, t))
            return actions[-1]

        return imagine(start, record, horizon, rng)

    monkeypatch.setattr(agent.rssm, "imagine", recorded)
    return actions


@pytest.mark.parametrize("discrete", [True, False])
def test_pathwise_gradient_flows_through_the_world_model(discrete, monkeypatch):
    """A world that feels actions passes the returns' gradient to every action of a dream; in one
    that does not, the actor gets none."""
    agent = make_agent(discrete, ent_coef=0.0, actor_grad="pathwise")
    actions = record_actions(agent, monkeypatch)
    *_, ret, _ = dreamed(agent, discrete)
    grads = torch.autograd.grad(ret.sum(), actions, retain_graph=True)
    assert len(grads) == 4 and all(grad.abs().max() > 1e-6 for grad in grads)
    with torch.no_grad():
        agent.rssm.in_action.weight.zero_()
    *_, metrics = dreamed(agent, discrete)
    agent.zero_grad()
    metrics["actor_loss"].backward()
    assert all(p.grad is None or p.grad.eq(0).all() for p in agent.actor.parameters())


@pytest.mark.parametrize("actor_grad", ["reinforce", "pathwise"])
def test_the_dreams_critic_loss_reaches_the_critic_alone(actor_grad):
    agent = make_agent(actor_grad=actor_grad)
    *_, metrics = dreamed(agent)
    assert reached(agent, metrics["critic_loss"]) == {"critic"}


@pytest.mark.parametrize("discrete", [True, False])
def test_pathwise_entropy_does_not_reach_back_into_the_dream(discrete, monkeypatch):
    """The entropy of a state's policy is raised there, not by going to states of more entropy."""
    agent = make_agent(discrete, ent_coef=0.1, actor_grad="pathwise")
    actions, entropies = record_actions(agent, monkeypatch), []

    def recorded(ret, ret_scale, entropy, weight, ent_coef):
        entropies.append(entropy)
        return pathwise_loss(ret, ret_scale, entropy, weight, ent_coef)

    monkeypatch.setattr("dreamer.agent.pathwise_loss", recorded)
    dreamed(agent, discrete)
    grads = torch.autograd.grad(entropies[0].sum(), actions, allow_unused=True)
    assert grads == (None,) * 4


def test_replay_value_loss_reaches_the_critic_alone():
    agent = make_agent()
    batch, _, feat, _, starts, *_, ret, _ = dreamed(agent)
    loss = agent.replay_value_loss(batch, feat, starts, ret[:, 0].detach())
    assert reached(agent, loss) == {"critic"}


def test_an_update_knows_ends_from_time_limits_and_anchors_where_it_dreamed(monkeypatch):
    """What `update` hands on: a start has no future where the task ended, but has one at a time
    limit; the replayed values lean on the return of the dream's first state."""
    agent = make_agent()
    batch = make_batch(agent.config)
    batch["is_last"][:2, 3], batch["is_terminal"][:2, 3] = True, [True, False]
    batch["is_first"][:2, 4] = True
    learn_behaviour, replay_value_loss, seen = agent.learn_behaviour, agent.replay_value_loss, {}

    def behaviour(dream, start_cont):
        loss, ret, metrics = learn_behaviour(dream, start_cont)
        seen.update(start_cont=start_cont, ret=ret)
        return loss, ret, metrics

    def replay(batch, feat, starts, imag_return):
        seen.update(starts=starts, imag_return=imag_return)
        return replay_value_loss(batch, feat, starts, imag_return)

    monkeypatch.setattr(agent, "learn_behaviour", behaviour)
    monkeypatch.setattr(agent, "replay_value_loss", replay)
    seen_ends = set()
    for _ in range(20):  # until both ends were among the random starts
        agent.update(batch)
        for start, cont in zip(seen["starts"].tolist(), seen["start_cont"].tolist(), strict=True):
            row = divmod(start, batch["reward"].shape[1])
            assert cont == 1 - batch["is_terminal"][row]
            seen_ends.add((bool(batch["is_last"][row]), cont))
        assert torch.equal(seen["imag_return"], seen["ret"][:, 0])
    assert {(True, 0.0), (True, 1.0), (False, 1.0)} <= seen_ends


@pytest.mark.parametrize("actor_grad", ["reinforce", "pathwise"])
@pytest.mark.parametrize("discrete", [True, False])
def test_an_update_moves_every_part_and_leaves_it_finite(discrete, actor_grad):
    agent = make_agent(discrete, actor_grad=actor_grad)
    before = {part: [p.clone() for p in getattr(agent, part).parameters()] for part in PARTS}
    metrics = agent.update(make_batch(agent.config, discrete))
    for part in PARTS:
        after = list(getattr(agent, part).parameters())
        assert any(not torch.equal(p, q) for p, q in zip(before[part], after, strict=True)), part
        assert all(p.isfinite().all() for p in after), part
    for name, value in metrics.items():
        assert value.shape == () and value.isfinite() and not value.requires_grad, name


def test_rates_fall_with_the_updates_by_hand():
    config = Config(steps=1_600, train_ratio=4, batch_size=2, seq_len=16, lr_halving=20)
    assert [config.updates_after(steps) for steps in (0, 7, 8, 1_600)] == [0, 0, 1, 200]
    expected = {0: 1, 20: 1 / 2, 40: 1 / 3, 60: 0.3, 150: 0.3}  # the last quarter is 50 updates
    expected |= {151: 0.3 * 0.98, 175: 0.3 * 0.5, 199: 0.3 * 0.05, 200: 0.3 * 0.05, 999: 0.3 * 0.05}
    assert {u: rate_factor(config, u) for u in expected} == pytest.approx(expected)
    short = Config(steps=40, train_ratio=4, batch_size=2, seq_len=16, lr_halving=20)
    assert rate_factor(short, 4) == pytest.approx(1 / 1.2 * 0.8)  # 5 updates in all, both factors


def test_optimizer_follows_the_rates():
    sizes = {"steps": 12, "train_ratio": 4, "batch_size": 2, "seq_len": 6}
    agent = make_agent(model_lr=0.3, actor_lr=0.1, critic_lr=0.2, lr_halving=2, **sizes)
    batch = make_batch(agent.config, True)
    factors = []
    for updates in range(6):
        factors.append(rate_factor(agent.config, updates))
        rates = [group["lr"] for group in agent.optimizer.param_groups]
        assert rates == pytest.approx([0.3 * factors[-1], 0.1 * factors[-1], 0.2 * factors[-1]])
        agent.update(batch)
    assert factors == sorted(factors, reverse=True) and factors[-1] < factors[0] / 5


# ---------------------------------------------------------------- pure losses


def test_model_loss_by_hand():
    parts = {
        "obs_loss": torch.tensor([[1.0, 3.0]]),
        "reward_loss": torch.tensor([[10.0, 10.0]]),
        "cont_loss": torch.tensor([[0.0, 200.0]]),
        "prior_reward_loss": torch.tensor([[20.0, 60.0]]),
        "prior_cont_loss": torch.tensor([[7.0, 9.0]]),
        "dyn_loss": torch.tensor([[1000.0, 3000.0]]),
        "rep_loss": torch.tensor([[1000.0, 5000.0]]),
    }
    loss, metrics = model_loss(parts, beta_obs=2, beta_dyn=0.5, beta_rep=0.1)
    assert loss.item() == pytest.approx(2 * 2 + 10 + 100 + 40 + 8 + 0.5 * 2000 + 0.1 * 3000)
    assert metrics["obs_loss"] == 2 and metrics["rep_loss"] == 3000


def test_dream_weights_by_hand():
    cont = torch.tensor([[1.0, 1.0, 0.0, 1.0], [0.0, 1.0, 1.0, 1.0], [1.0, 0.5, 1.0, 1.0]])
    expected = [[0.5, 0.25, 0, 0], [0, 0, 0, 0], [0.5, 0.125, 0.0625, 0.03125]]
    assert dream_weight(cont, 0.5).tolist() == expected


def test_reinforce_loss_by_hand():
    log_prob = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    adv = torch.tensor([[3.0, -4.0]], requires_grad=True)
    entropy, weight = torch.tensor([[0.5, 0.7]]), torch.tensor([[1.0, 0.5]])
    loss = reinforce_loss(log_prob, adv, entropy, weight, ent_coef=0.1)
    # -(1 * (3 * -1 + 0.05) + 0.5 * (-4 * -2 + 0.07)) / 2
    assert loss.item() == pytest.approx((2.95 - 4.035) / 2)
    loss.backward()
    assert adv.grad is None
    assert log_prob.grad.tolist() == [[-1.5, 1.0]]  # a good action becomes likelier


def test_pathwise_loss_by_hand():
    ret = torch.tensor([[3.0, -4.0]], requires_grad=True)
    entropy, weight = torch.tensor([[0.5, 0.7]]), torch.tensor([[1.0, 0.5]])
    loss = pathwise_loss(ret, torch.tensor(2.0), entropy, weight, ent_coef=0.1)
    assert loss.item() == pytest.approx(-(1.55 + 0.5 * (-2 + 0.07)) / 2)
    loss.backward()
    assert ret.grad.tolist() == [[-0.25, -0.125]]


def test_critic_loss_matches_a_dense_cross_entropy():
    critic = Critic(4, 8, 1)
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 255, generator=rng)
    ret, slow = 10 * torch.randn(2, 3, generator=rng), 10 * torch.randn(2, 3, generator=rng)
    weight = torch.rand(2, 3, generator=rng)
    loss = critic_loss(critic, logits, ret, slow, weight, slow_weight=0.7)
    dense = twohot_cross_entropy(critic, logits, ret.numpy())
    dense = dense + 0.7 * twohot_cross_entropy(critic, logits, slow.numpy())
    assert loss.item() == pytest.approx((weight.numpy() * dense).mean(), rel=1e-5)


# ---------------------------------------------------------------- learn_world


def test_world_model_losses_match_torch_distributions():
    agent = make_agent(unimix=0.05, free_nats=1.4, beta_obs=3, beta_dyn=0.5, beta_rep=0.2)
    rng = torch.Generator()
    rng.set_state(agent.rng.get_state())
    batch, post, feat, loss, *_ = dreamed(agent)
    torch.rand(post.prior_logits.shape[:-1], generator=rng)  # what filtering has drawn
    guess = get_feat(agent.rssm.guess(post, rng))
    assert not torch.equal(guess, feat)
    cont = 1 - batch["is_terminal"].float()  # a truncated row goes on
    assert (batch["is_last"] & ~batch["is_terminal"]).any() and batch["is_terminal"].any()
    kl = kl_divergence(
        Independent(Categorical(logits=post.post_logits), 1),
        Independent(Categorical(logits=post.prior_logits), 1),
    )
    assert (kl < 1.4).any() and (kl > 1.4).any()
    norm = agent.encoder.norm
    symlog = batch["obs"].sign() * (batch["obs"].abs() + 1).log()
    error = (agent.decoder(feat) - (symlog - norm.mean) / norm.std).square().sum(-1)
    heads = sum(
        twohot_cross_entropy(agent.reward, agent.reward(x), batch["reward"].numpy()).mean()
        - Bernoulli(logits=agent.cont(x)).log_prob(cont).mean()
        for x in (feat, guess)
    )
    expected = 3 * error.mean() + heads + 0.7 * kl.clamp(min=1.4).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)


def test_the_world_model_learns_one_batch_by_heart():
    agent = make_agent(stir=0, steps=10_000, model_lr=1e-2, hidden=32, deter=32, imag_horizon=1)
    batch = make_batch(agent.config)
    losses = [agent.update(batch) for _ in range(150)]
    assert losses[0]["reward_loss"].item() == pytest.approx(math.log(255), rel=1e-5)
    assert losses[-1]["reward_loss"] < 1  # two-hot targets have an entropy of up to ln 2
    assert losses[-1]["cont_loss"] < 0.1 < losses[0]["cont_loss"]
    assert losses[-1]["obs_loss"] < 0.3 * losses[0]["obs_loss"]


def loss_of_posteriors(parts, *weights):
    """The paper's loss of the world model: nothing is predicted from guesses."""
    nothing = torch.zeros_like(parts["reward_loss"])
    parts = {**parts, "prior_reward_loss": nothing, "prior_cont_loss": nothing}
    return model_loss(parts, *weights)


@pytest.mark.parametrize("guesses", [True, False])
def test_what_cannot_be_foreseen_is_dreamed_as_often_as_it_happens(guesses, monkeypatch):
    """Every third episode ends after its first row, by chance, with a reward of -9. A posterior
    sees each end; guesses give it, on average, a probability of a third and a reward of -3.
    Without losses on guesses, as in the paper, it is half of that: the categoricals are drawn one
    by one, and hardly a guess looks like an end as the posterior shows it."""
    sizes = {"batch_size": 30, "seq_len": 2, "imag_horizon": 1, "categoricals": 12}
    agent = make_agent(stir=0, steps=10_000, model_lr=1e-2, **sizes)
    end = np.arange(30) % 3 == 0
    last = np.stack([np.zeros(30, bool), end], 1)
    batch = {
        "obs": last[..., None] * np.ones(OBS, np.float32),
        "action": np.tile(np.eye(ACTION, dtype=np.float32)[0], (30, 2, 1)),
        "reward": -9 * last.astype(np.float32),
        "is_first": np.tile([True, False], (30, 1)),
        "is_last": last,
        "is_terminal": last,
    }
    with monkeypatch.context() as patch:
        if not guesses:
            patch.setattr("dreamer.agent.model_loss", loss_of_posteriors)
        for _ in range(150):
            agent.update(batch)
    with torch.no_grad():
        post, feat, *_ = agent.learn_world(as_tensors(batch))
        seen = agent.cont.predict(feat)[:, 1]
        assert seen[end].mean() < 0.2 < 0.8 < seen[~end].mean()
        feats = [get_feat(agent.rssm.guess(post, agent.rng))[:, 1] for _ in range(20)]
        cont = torch.stack([agent.cont.predict(feat) for feat in feats]).mean().item()
        reward = torch.stack([agent.reward.predict(feat) for feat in feats]).mean().item()
    if guesses:
        assert cont == pytest.approx(2 / 3, abs=0.07) and reward == pytest.approx(-3, abs=0.6)
    else:
        assert cont > 0.8 and reward > -1.5


# ---------------------------------------------------------------- learn_behaviour


def lambda_returns64(reward, value, cont, gamma, lam):
    """R_t for t < H from r_{t+1}, c_{t+1} (index t) and v_0..v_H, one trajectory, float64."""
    ret, returns = value[-1], []
    for t in reversed(range(len(reward))):
        ret = reward[t] + gamma * cont[t] * ((1 - lam) * value[t + 1] + lam * ret)
        returns.insert(0, ret)
    return returns


@pytest.mark.parametrize("actor_grad", ["reinforce", "pathwise"])
@pytest.mark.parametrize("discrete", [True, False])
def test_behaviour_losses_match_a_slow_reference(discrete, actor_grad):
    """Rewards, continues and values of states 1..H make the return of states 0..H-1; percentiles
    of the returns scale the advantages; what lies after an end does not count."""
    settings = {"ent_coef": 0.1, "gamma": 0.9, "lam": 0.8, "slow_weight": 0.6}
    agent = make_agent(discrete, actor_grad=actor_grad, imag_starts=1000, **settings)
    with torch.no_grad():
        for mlp, size in ((agent.reward.mlp, 3), (agent.actor.mlp, 10), (agent.cont.mlp, 5)):
            mlp[-1].weight *= size  # strong opinions, that differ between states
    *_, dream, start_cont, _, ret, metrics = dreamed(agent, discrete)
    assert 0 < start_cont.mean() < 1

    feat = get_feat(dream).detach()
    reward = expected_value(agent.reward, agent.reward(feat))
    cont = agent.cont(feat).sigmoid().detach().double().numpy()
    logits = agent.critic(feat)
    value = expected_value(agent.critic, logits)
    slow_value = expected_value(agent.slow_critic, agent.slow_critic(feat))
    returns = [
        lambda_returns64(reward[n, 1:], value[n], cont[n, 1:], 0.9, 0.8) for n in range(len(value))
    ]
    returns = np.array(returns)  # (N, H)
    np.testing.assert_allclose(ret.detach().numpy(), returns, rtol=1e-3, atol=1e-3)

    low, high = np.percentile(returns, [5, 95])
    scale = max(1.0, high - low)
    assert scale > 1.5
    weight = np.zeros_like(returns)
    for n in range(len(returns)):
        alive = 1.0
        for t in range(returns.shape[1]):
            alive *= 0.9 * (start_cont[n].item() if t == 0 else cont[n, t])
            weight[n, t] = alive

    policy = agent.actor(feat[:, :-1])
    if discrete:
        reference = Categorical(logits=policy.log_probs)
        log_prob = reference.log_prob(dream.action.argmax(-1))
    else:
        reference = Independent(Normal(policy.mean, policy.std), 1)
        log_prob = reference.log_prob(dream.action)
    log_prob, entropy = (x.detach().double().numpy() for x in (log_prob, reference.entropy()))
    if actor_grad == "reinforce":
        gain = (returns - value[:, :-1]) / scale * log_prob
    else:
        gain = returns / scale
    actor_loss = -(weight * (gain + 0.1 * entropy)).mean()
    critic = twohot_cross_entropy(agent.critic, logits[:, :-1], returns)
    critic = critic + 0.6 * twohot_cross_entropy(agent.critic, logits[:, :-1], slow_value[:, :-1])
    assert metrics["ret_scale"].item() == pytest.approx(scale, rel=1e-3)
    assert metrics["actor_loss"].item() == pytest.approx(actor_loss, rel=1e-3, abs=1e-4)
    assert metrics["critic_loss"].item() == pytest.approx((weight * critic).mean(), rel=1e-3)
    assert metrics["entropy"].item() == pytest.approx(entropy.mean(), rel=1e-4)


@pytest.mark.parametrize("actor_grad", ["reinforce", "pathwise"])
def test_a_terminal_start_has_no_weight(actor_grad):
    agent = make_agent(actor_grad=actor_grad)
    ends = torch.zeros(agent.config.num_starts)
    *_, loss, _, metrics = dreamed(agent, start_cont=ends)
    assert loss == 0 and metrics["actor_loss"] == 0 and metrics["critic_loss"] == 0
    *_, loss, _, metrics = dreamed(agent, start_cont=1 - ends)
    assert metrics["actor_loss"] != 0 and metrics["critic_loss"] > 0


def test_dreamed_actions_are_the_actors_own():
    """A sure actor does in every dreamed state what it is sure of."""
    agent = make_agent(unimix=0.0)
    with torch.no_grad():
        agent.actor.mlp[-1].weight *= 300
    batch = as_tensors(make_batch(agent.config))
    post = agent.learn_world(batch)[0]
    dream = agent.imagine(post, torch.arange(7))
    policy = agent.actor(get_feat(dream)[:, :-1])
    assert policy.log_probs.amax(-1).exp().mean() > 0.98
    assert torch.equal(policy.mode().argmax(-1), dream.action.argmax(-1))
    assert len(dream.action.argmax(-1).unique()) == 2


def test_dreams_start_from_distinct_posterior_states():
    agent = make_agent()
    assert agent.config.batch_size * agent.config.seq_len == 18
    starts = agent.choose_starts(18)
    assert len(starts) == 7 and len(set(starts.tolist())) == 7 and starts.max() < 18
    counts = torch.bincount(torch.cat([agent.choose_starts(18) for _ in range(900)]), minlength=18)
    assert (counts - 350).abs().max() < 75  # five standard deviations of 14.6
    everything = make_agent(imag_starts=1000)
    assert everything.choose_starts(18).tolist() == list(range(18))
    post = agent.learn_world(as_tensors(make_batch(agent.config)))[0]
    dream = agent.imagine(post, starts)
    for i, start in enumerate(starts.tolist()):
        assert torch.equal(dream.deter[i, 0], post.deter[start // 6, start % 6])


# ---------------------------------------------------------------- replay value loss

REWARD = [0.0, 1.0, 2.0, 3.0, 4.0]
IMAGINED = [10.0, 20.0, 30.0, 40.0, 50.0]  # imagined returns of the five states
# Row 2 ends an episode. γ = λ = 0.5.
#   R_3 = 4 + 0.5 * 50                           = 29
#   R_1 = 2 + 0.5 * 30 (the time limit cuts λ)   = 17     or 2 where the task ended
#   R_0 = 1 + 0.5 * (0.5 * 20 + 0.5 * R_1)       = 10.25  or 6.5
#   row 2 has no successor, hence no loss; row 4 is the window's last.


@pytest.mark.parametrize(
    ("terminal", "targets"), [(False, [10.25, 17.0, 29.0]), (True, [6.5, 2.0, 29.0])]
)
@pytest.mark.parametrize("slow_weight", [0.0, 0.5])
def test_replay_value_targets_by_hand(terminal, targets, slow_weight):
    agent = make_agent(gamma=0.5, lam=0.5, slow_weight=slow_weight)
    batch = {
        "reward": torch.tensor([REWARD]),
        "is_first": torch.tensor([[False, False, False, True, False]]),
        "is_last": torch.tensor([[False, False, True, False, False]]),
        "is_terminal": torch.tensor([[False, False, terminal, False, False]]),
    }
    feat = torch.randn(1, 5, 12 + 3 * 4, generator=torch.Generator().manual_seed(0))
    loss = agent.replay_value_loss(batch, feat, torch.arange(5), torch.tensor(IMAGINED))
    rows = [0, 1, 3]
    logits = agent.critic(feat)[0, rows]
    expected = twohot_cross_entropy(agent.critic, logits, np.array(targets))
    slow = expected_value(agent.slow_critic, agent.slow_critic(feat))[0, rows]
    expected = expected + slow_weight * twohot_cross_entropy(agent.critic, logits, slow)
    assert loss.item() == pytest.approx(expected.sum() / 4, rel=1e-4)


def test_replay_values_bootstrap_on_the_critic_where_nothing_was_dreamed():
    agent = make_agent(gamma=0.5, lam=0.0, slow_weight=0.0)
    nowhere = torch.zeros(1, 3, dtype=torch.bool)
    batch = {
        "reward": torch.tensor([[0.0, 1.0, 2.0]]),
        "is_first": nowhere,
        "is_last": nowhere,
        "is_terminal": nowhere,
    }
    feat = torch.randn(1, 3, 12 + 3 * 4, generator=torch.Generator().manual_seed(0))
    loss = agent.replay_value_loss(batch, feat, torch.tensor([2, 0]), torch.tensor([7.0, -9.0]))
    logits = agent.critic(feat)[0]
    value = expected_value(agent.critic, logits)
    targets = np.array([1 + 0.5 * value[1], 2 + 0.5 * 7])
    expected = twohot_cross_entropy(agent.critic, logits[:2], targets)
    assert loss.item() == pytest.approx(expected.mean(), rel=1e-4)


# ---------------------------------------------------------------- update


def test_slow_critic_moves_by_two_percent():
    agent = make_agent(slow_rate=0.02)
    before = [p.clone() for p in agent.slow_critic.parameters()]
    agent.update(make_batch(agent.config))
    moved = zip(before, agent.slow_critic.parameters(), agent.critic.parameters(), strict=True)
    for old, slow, fast in moved:
        torch.testing.assert_close(slow, 0.98 * old + 0.02 * fast)
        assert not slow.requires_grad


def test_a_fresh_slow_critic_is_the_critic():
    agent = DreamerAgent(OBS, ACTION, True, tiny_config())
    for slow, fast in zip(agent.slow_critic.parameters(), agent.critic.parameters(), strict=True):
        assert torch.equal(slow, fast) and slow is not fast


def test_the_loss_is_the_sum_of_its_parts():
    agent = make_agent(replay_value_weight=0.3)
    metrics = agent.update(make_batch(agent.config))
    expected = (
        metrics["model_loss"]
        + metrics["actor_loss"]
        + metrics["critic_loss"]
        + 0.3 * metrics["replay_value_loss"]
    )
    torch.testing.assert_close(metrics["loss"], expected)


def test_gradients_are_clipped_for_each_group():
    agent = make_agent(grad_clip=1e-3)
    metrics = agent.update(make_batch(agent.config))
    groups = {
        "model": [p for part in MODEL_PARTS for p in getattr(agent, part).parameters()],
        "actor": list(agent.actor.parameters()),
        "critic": list(agent.critic.parameters()),
    }
    for name, params in groups.items():
        norm = torch.stack([p.grad.norm() for p in params if p.grad is not None]).norm()
        assert norm.item() == pytest.approx(1e-3, rel=1e-2)
        assert metrics[f"{name}_grad_norm"] > 1e-3  # as it was before


@pytest.mark.parametrize("discrete", [True, False])
def test_same_seed_same_numbers(discrete):
    def weights_and_metrics(seed):
        torch.manual_seed(np.random.default_rng().integers(1000))  # the global seed is irrelevant
        agent = DreamerAgent(OBS, ACTION, discrete, tiny_config(seed=seed))
        metrics = [agent.update(make_batch(agent.config, discrete, i)) for i in range(3)]
        return list(agent.state_dict().values()), metrics[-1]

    first, again, other = (weights_and_metrics(seed) for seed in (3, 3, 4))
    assert all(torch.equal(x, y) for x, y in zip(first[0], again[0], strict=True))
    assert first[1] == again[1]
    assert first[1]["loss"] != other[1]["loss"]


@pytest.mark.parametrize(
    "extreme",
    [
        {"imag_horizon": 1},
        {"batch_size": 1, "seq_len": 2},
        {"categoricals": 1, "classes": 2},
        {"deter": 1, "hidden": 1},
        {"unimix": 0.0, "free_nats": 0.0},
        {"gamma": 1.0, "lam": 1.0},
        {"gamma": 0.0, "lam": 0.0},
    ],
    ids=str,
)
def test_sensible_extremes_can_be_updated(extreme):
    agent = make_agent(stir=0, **extreme)
    for i in range(3):
        metrics = agent.update(make_batch(agent.config, seed=i))
    assert all(value.isfinite() for value in metrics.values())
    assert all(p.isfinite().all() for p in agent.parameters())


# ---------------------------------------------------------------- acting


@pytest.mark.parametrize("discrete", [True, False])
def test_acting_filters_as_training_does(discrete):
    """`act`, one observation after the other, and `observe`, on the replayed rows, meet the same
    deter and the same latents; also where exploration replaced the action, where an action was
    out of range and clipped for the replay, and across episode starts."""
    agent = make_agent(discrete)
    rng = np.random.default_rng(0)
    steps, envs = 12, 3
    obs = rng.normal(size=(steps, envs, OBS)).astype(np.float32)
    is_first = rng.random((steps, envs)) < 0.2
    is_first[0] = True
    act_rng, state = make_rng(CPU, 11), None
    states, actions = [], []
    for t in range(steps):
        action, state = agent.act(obs[t], is_first[t], state, greedy=True, rng=act_rng)
        if t % 2:
            action = rng.uniform(-3, 3, action.shape).astype(np.float32)
            if discrete:
                action = np.eye(ACTION, dtype=np.float32)[action.argmax(-1)]
            state = state._replace(action=torch.from_numpy(action))
        states.append(state)
        actions.append(np.clip(action, -1, 1))

    with torch.no_grad():
        embed = agent.encoder(torch.from_numpy(obs).transpose(0, 1))
        post, _ = agent.rssm.observe(
            embed,
            torch.from_numpy(np.stack(actions, 1)),
            torch.from_numpy(is_first).T,
            make_rng(CPU, 11),  # greedy acting draws nothing but the latents' numbers
        )
    for t, state in enumerate(states):
        torch.testing.assert_close(state.deter, post.deter[:, t], rtol=0, atol=1e-5)
        assert torch.equal(state.stoch, post.stoch[:, t])


@pytest.mark.parametrize("discrete", [True, False])
def test_act_returns_actions_and_the_state_that_holds_them(discrete):
    agent = make_agent(discrete)
    obs, first = np.ones((4, OBS)), np.ones(4, bool)
    action, state = agent.act(obs, first)
    assert action.shape == (4, ACTION) and action.dtype == np.float32
    np.testing.assert_array_equal(state.action.numpy(), action)
    if discrete:
        assert ((action == 0) | (action == 1)).all() and (action.sum(-1) == 1).all()


@pytest.mark.parametrize("discrete", [True, False])
def test_greedy_actions_are_the_mode(discrete):
    agent = make_agent(discrete)
    action, state = agent.act(np.ones((4, OBS)), np.ones(4, bool), greedy=True)
    policy = agent.actor(get_feat(state))
    mode = F.one_hot(policy.log_probs.argmax(-1), ACTION) if discrete else policy.mean.detach()
    np.testing.assert_array_equal(action, mode.numpy())


def test_sampled_actions_follow_the_policy():
    """Averages over 2000 environments of one observation, each with latents of its own."""
    agent = make_agent()
    n = 2000
    action, state = agent.act(np.ones((n, OBS)), np.ones(n, bool))
    probs = agent.actor(get_feat(state)).log_probs.exp().mean(0).detach().numpy()
    np.testing.assert_allclose(action.mean(0), probs, atol=5 * math.sqrt(0.25 / n))


def test_acting_with_a_generator_of_its_own_leaves_the_agents_alone():
    agent = make_agent()
    before, world = agent.rng.get_state(), torch.get_rng_state()
    agent.act(np.ones((2, OBS)), np.ones(2, bool), rng=make_rng(CPU, 1))
    assert torch.equal(before, agent.rng.get_state())
    assert torch.equal(world, torch.get_rng_state())
    agent.act(np.ones((2, OBS)), np.ones(2, bool))
    assert not torch.equal(before, agent.rng.get_state())


# ---------------------------------------------------------------- compile


@pytest.mark.slow
@pytest.mark.skipif(not has_cpp_compiler(), reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("discrete", [True, False])
def test_compiled_equals_eager(discrete):
    """Same numbers up to rounding: first losses and gradients, and the states met in acting."""
    results = []
    for compiled in (False, True):
        agent = make_agent(discrete, compile=compiled)
        metrics = agent.update(make_batch(agent.config, discrete))
        grads = {name: p.grad for name, p in agent.named_parameters() if p.grad is not None}
        action, state = agent.act(np.ones((2, OBS)), np.ones(2, bool), rng=make_rng(CPU, 1))
        results.append([metrics, grads, torch.from_numpy(action), tuple(state)])
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-4)


# ---------------------------------------------------------------- Config

FIELDS = {
    field.name: typing.get_type_hints(Config)[field.name] for field in dataclasses.fields(Config)
}
NUMBERS = [name for name, kind in FIELDS.items() if kind in (int, float)]


def test_every_number_has_a_range():
    assert set(RANGES) == set(NUMBERS)
    assert all(low < high for low, high in RANGES.values())


@pytest.mark.parametrize("name", NUMBERS)
def test_the_ends_of_a_range_are_allowed_and_nothing_beyond(name):
    low, high = RANGES[name]
    others = {"capacity": 10**5} if name == "seq_len" else {"seq_len": 2}
    others.pop(name, None)
    for value in (low, high):
        assert getattr(Config(**{name: value}, **others), name) == value
    step = 1 if FIELDS[name] is int else 1e-3 * max(1, abs(high))
    for value in (low - step, high + step):
        check_refused(name, value)


def check_refused(name: str, value: object) -> None:
    """The error names field, value and what is allowed."""
    with pytest.raises(ValueError) as error:
        Config(**{name: value})
    text = str(error.value)
    assert text.startswith(f"Config.{name} must be") and repr(value) in text
    if name in RANGES:
        low, high = RANGES[name]
        assert f"{low:g} to {high:g}" in text


def not_allowed(name: str):
    """Values of every kind that the field must refuse."""
    kind = FIELDS[name]
    wrong = [
        st.none(),
        st.text(max_size=5),
        st.lists(st.integers(), max_size=2),
        st.complex_numbers(),
    ]
    if kind is not bool:
        wrong.append(st.booleans())
    if kind is int:
        wrong.append(st.floats())
    if kind in (int, float):
        low, high = RANGES[name]
        wrong += [st.sampled_from([math.nan, math.inf, -math.inf, np.float32("nan"), 10**400])]
        wrong += [st.floats(max_value=low, exclude_max=True)]
        wrong += [st.floats(min_value=high, exclude_min=True)]
        wrong += [st.integers(max_value=math.ceil(low) - 1), st.integers(min_value=int(high) + 1)]
    else:
        wrong += [st.integers(), st.floats()]
    return st.one_of(wrong)


@pytest.mark.parametrize("name", FIELDS)
@given(data=st.data())
def test_nonsense_is_refused(name, data):
    check_refused(name, data.draw(not_allowed(name)))


def test_a_window_longer_than_the_buffer_is_refused():
    with pytest.raises(ValueError, match=r"Config.seq_len must be at most capacity \(10\), got 11"):
        Config(capacity=10, seq_len=11)


def test_steps_that_are_no_multiple_of_action_repeat_are_refused():
    with pytest.raises(ValueError, match=r"Config.steps must be a multiple of action_repeat \(4\)"):
        Config(steps=58, action_repeat=4)


def test_an_unknown_field_and_a_change_are_refused():
    with pytest.raises(TypeError, match="imag_horizn"):
        Config(imag_horizn=3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().seed = 3


def test_the_modules_of_two_agents_are_their_own():
    first, second = make_agent(), make_agent()
    shared = {id(p) for p in first.parameters()} & {id(p) for p in second.parameters()}
    assert not shared and isinstance(first, nn.Module)
