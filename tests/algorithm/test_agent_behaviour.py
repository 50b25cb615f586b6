"""Dreams, and what actor and critic learn from them, against slow references in float64."""

import numpy as np
import pytest
import torch
from agents import (
    LAYOUTS,
    as_tensors,
    dreamed,
    expected_value,
    make_agent,
    make_batch,
    twohot_cross_entropy,
)
from torch.distributions import Categorical, Independent, Normal

from dreamer.agent import DreamerAgent, pathwise_loss

pytestmark = pytest.mark.usefixtures("one_scale")


def test_dreamed_actions_are_the_actors_own():
    """A sure actor does in every dreamed state what it is sure of; an unsure one varies."""
    agent = make_agent(unimix=0.0)
    with torch.no_grad():
        agent.actor.mlp[-1].weight *= 3000
    batch = as_tensors(make_batch(agent))
    post = agent.world_model_loss(batch)[2]
    dream = agent.imagine(post, torch.arange(7))
    policy = agent.actor(agent.rssm.get_feat(dream)[:, :-1])
    (log_probs,) = policy.log_probs
    assert log_probs.amax(-1).exp().mean() > 0.98
    assert torch.equal(policy.mode().argmax(-1), dream.action.argmax(-1))
    assert len(dream.action.argmax(-1).unique()) == 2
    unsure = dreamed(make_agent("continuous", stir=0)).dream.action  # (N, H, A)
    assert unsure.std(1).min() > 0.05  # each step draws numbers of its own


def test_dreams_start_from_distinct_posterior_states():
    agent = make_agent()
    assert agent.config.batch_size * agent.config.seq_len == 18
    starts = agent.choose_starts(18)
    assert len(starts) == 7 and len(set(starts.tolist())) == 7 and starts.max() < 18
    counts = torch.bincount(torch.cat([agent.choose_starts(18) for _ in range(900)]), minlength=18)
    assert (counts - 350).abs().max() < 75  # five standard deviations of 14.6
    everything = make_agent(imag_starts=1000)
    assert sorted(everything.choose_starts(18).tolist()) == list(range(18))
    post = agent.world_model_loss(as_tensors(make_batch(agent)))[2]
    dream = agent.imagine(post, starts)
    for i, start in enumerate(starts.tolist()):
        assert torch.equal(dream.deter[i, 0], post.deter[start // 6, start % 6])


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


@pytest.mark.parametrize("kind", ["discrete", "continuous"])
def test_pathwise_gradient_flows_through_the_world_model(kind, monkeypatch):
    """A world that feels actions passes the returns' gradient to every action of a dream; in one
    that does not, the actor gets none."""
    agent = make_agent(kind, ent_coef=0.0, actor_grad="pathwise")
    actions = record_actions(agent, monkeypatch)
    ret = dreamed(agent).ret
    grads = torch.autograd.grad(ret.sum(), actions, retain_graph=True)
    assert len(grads) == 4 and all(grad.abs().max() > 1e-6 for grad in grads)
    later = actions[1].sum()  # the policy reads states, it does not pass gradients on to them
    assert torch.autograd.grad(later, actions[:1], None, True, allow_unused=True) == (None,)
    with torch.no_grad():
        agent.rssm.in_action[0].weight.zero_()
    metrics = dreamed(agent).metrics
    agent.zero_grad()
    metrics["actor_loss"].backward()
    assert all(p.grad is None or p.grad.eq(0).all() for p in agent.actor.parameters())


@pytest.mark.parametrize("kind", ["discrete", "continuous"])
def test_pathwise_entropy_does_not_reach_back_into_the_dream(kind, monkeypatch):
    """The entropy of a state's policy is raised there, not by going to states of more entropy."""
    agent = make_agent(kind, ent_coef=0.1, actor_grad="pathwise")
    actions, entropies = record_actions(agent, monkeypatch), []

    def recorded(ret, ret_scale, entropy, weight, ent_coef):
        entropies.append(entropy)
        return pathwise_loss(ret, ret_scale, entropy, weight, ent_coef)

    monkeypatch.setattr("dreamer.agent.pathwise_loss", recorded)
    dreamed(agent)
    grads = torch.autograd.grad(entropies[0].sum(), actions, allow_unused=True)
    assert grads == (None,) * 4


def lambda_returns64(reward, value, cont, gamma, lam):
    """R_t for t < H from r_{t+1}, c_{t+1} (index t) and v_0..v_H, one trajectory, float64."""
    ret, returns = value[-1], []
    for t in reversed(range(len(reward))):
        ret = reward[t] + gamma * cont[t] * ((1 - lam) * value[t + 1] + lam * ret)
        returns.insert(0, ret)
    return returns


@pytest.mark.parametrize("actor_grad", ["reinforce", "pathwise"])
@pytest.mark.parametrize("kind", LAYOUTS)
def test_behaviour_losses_match_a_slow_reference(kind, actor_grad):
    """Rewards, continues and values of states 1..H make the return of states 0..H-1; percentiles
    of the returns scale the advantages; what lies after an end does not count."""
    settings = {"ent_coef": 0.1, "gamma": 0.9, "lam": 0.8, "slow_weight": 0.6}
    agent = make_agent(kind, actor_grad=actor_grad, imag_starts=1000, **settings)
    with torch.no_grad():
        for mlp, size in ((agent.reward.mlp, 3), (agent.actor.mlp, 10), (agent.cont.mlp, 5)):
            mlp[-1].weight *= size  # strong opinions, that differ between states
    d = dreamed(agent)

    feat = agent.rssm.get_feat(d.dream).detach()
    reward = expected_value(agent.reward, agent.reward(feat))
    cont = agent.cont(feat).sigmoid().detach().double().numpy()
    logits = agent.critic(feat)
    value = expected_value(agent.critic, logits)
    slow_value = expected_value(agent.slow_critic, agent.slow_critic(feat))
    returns = [
        lambda_returns64(reward[n, 1:], value[n], cont[n, 1:], 0.9, 0.8) for n in range(len(value))
    ]
    returns = np.array(returns)  # (N, H)
    np.testing.assert_allclose(d.ret.detach().numpy(), returns, rtol=1e-3, atol=1e-3)

    low, high = np.percentile(returns, [5, 95])
    scale = max(1.0, high - low)
    assert scale > 1.5
    weight = np.cumprod(0.9 * cont[:, :-1], 1)

    policy = agent.actor(feat[:, :-1])
    if agent.layout.discrete:  # one or several independent categoricals
        chosen = [part.argmax(-1) for part in d.dream.action.split(agent.actor.categories, -1)]
        references = [Categorical(logits=log_probs) for log_probs in policy.log_probs]
    else:
        chosen = [d.dream.action]
        references = [Independent(Normal(policy.mean, policy.std), 1)]
    pairs = zip(references, chosen, strict=True)
    log_prob = sum(part.log_prob(action) for part, action in pairs).detach().double().numpy()
    entropy = sum(part.entropy() for part in references).detach().double().numpy()
    if actor_grad == "reinforce":
        gain = (returns - value[:, :-1]) / scale * log_prob
    else:
        gain = returns / scale
    actor_loss = -(weight * (gain + 0.1 * entropy)).mean()
    critic = twohot_cross_entropy(agent.critic, logits[:, :-1], returns)
    critic = critic + 0.6 * twohot_cross_entropy(agent.critic, logits[:, :-1], slow_value[:, :-1])
    metrics = d.metrics
    assert metrics["ret_scale"].item() == pytest.approx(scale, rel=1e-3)
    assert metrics["actor_loss"].item() == pytest.approx(actor_loss, rel=1e-3, abs=1e-4)
    assert metrics["critic_loss"].item() == pytest.approx((weight * critic).mean(), rel=1e-3)
    assert metrics["entropy"].item() == pytest.approx(entropy.mean(), rel=1e-4)


@pytest.mark.parametrize("actor_grad", ["reinforce", "pathwise"])
def test_what_lies_after_an_end_has_no_weight(actor_grad):
    """Also in the first state of a dream, which the continue head takes for an end here."""
    agent = make_agent(actor_grad=actor_grad)
    metrics = dreamed(agent).metrics
    assert metrics["actor_loss"] != 0 and metrics["critic_loss"] > 0
    with torch.no_grad():
        agent.cont.mlp[-1].bias.fill_(-1e9)
    ended = dreamed(agent)
    losses = [ended.loss, ended.metrics["actor_loss"], ended.metrics["critic_loss"]]
    assert losses == [0, 0, 0]


def test_an_update_anchors_values_where_it_dreamed(monkeypatch):
    """What `update` hands on: the replayed values lean on the return of a dream's first state."""
    agent = make_agent()
    batch = make_batch(agent)
    behaviour_loss, replay_value_loss, seen = agent.actor_critic_loss, agent.replay_value_loss, {}

    def behaviour(dream):
        loss, metrics, seen["ret"] = behaviour_loss(dream)
        return loss, metrics, seen["ret"]

    def replay(batch, feat, starts, imag_return):
        seen["imag_return"] = imag_return
        return replay_value_loss(batch, feat, starts, imag_return)

    monkeypatch.setattr(agent, "actor_critic_loss", behaviour)
    monkeypatch.setattr(agent, "replay_value_loss", replay)
    agent.update(batch)
    assert torch.equal(seen["imag_return"], seen["ret"][:, 0])
