"""The agent's losses: whose gradient each of them is, and what they are, by hand."""

import numpy as np
import pytest
import torch
from agents import (
    LAYOUTS,
    MODEL_PARTS,
    as_tensors,
    dreamed,
    expected_value,
    make_agent,
    make_batch,
    reached,
    twohot_cross_entropy,
)
from torch.distributions import Bernoulli, Categorical, Independent, kl_divergence

from dreamer.agent import critic_loss, dream_weight, model_loss, pathwise_loss, reinforce_loss
from dreamer.networks import Critic, DiscretePolicy

pytestmark = pytest.mark.usefixtures("one_scale")


@pytest.mark.parametrize("kind", LAYOUTS)
def test_world_model_loss_reaches_the_world_model_alone(kind):
    agent = make_agent(kind)
    assert reached(agent, dreamed(agent).model_loss) == set(MODEL_PARTS)
    assert all(p.grad.abs().max() > 0 for p in agent.decoder.parameters())  # images' too


@pytest.mark.parametrize("actor_grad", ["reinforce", "pathwise"])
@pytest.mark.parametrize("kind", LAYOUTS)
def test_actor_loss_reaches_the_actor_alone(kind, actor_grad):
    agent = make_agent(kind, ent_coef=0.0, actor_grad=actor_grad)
    found = dreamed(agent)
    assert reached(agent, found.metrics["actor_loss"]) == {"actor"}
    graph = actor_grad == "pathwise"  # REINFORCE differentiates nothing through the dream
    assert found.dream.action.requires_grad == found.ret.requires_grad == graph


@pytest.mark.parametrize("actor_grad", ["reinforce", "pathwise"])
def test_the_dreams_critic_loss_reaches_the_critic_alone(actor_grad):
    agent = make_agent(actor_grad=actor_grad)
    assert reached(agent, dreamed(agent).metrics["critic_loss"]) == {"critic"}


def test_replay_value_loss_reaches_the_critic_alone():
    agent = make_agent()
    d = dreamed(agent)
    loss = agent.replay_value_loss(d.batch, d.feat, d.starts, d.ret[:, 0].detach())
    assert reached(agent, loss) == {"critic"}


def test_model_loss_by_hand():
    parts = {
        "obs_loss": torch.tensor([[1.0, 3.0]]),
        "reward_loss": torch.tensor([[10.0, 10.0]]),
        "cont_loss": torch.tensor([[0.0, 200.0]]),
        "dyn_loss": torch.tensor([[1000.0, 3000.0]]),
        "rep_loss": torch.tensor([[1000.0, 5000.0]]),
        "image_loss": torch.tensor([[1e5, 1e5]]),
    }
    loss, metrics = model_loss(parts, beta_obs=2, beta_dyn=0.5, beta_rep=0.1)
    assert loss.item() == pytest.approx(2 * 2 + 10 + 100 + 0.5 * 2000 + 0.1 * 3000 + 1e5)
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


def test_world_model_losses_match_torch_distributions():
    agent = make_agent(unimix=0.05, free_nats=1.4, beta_obs=3, beta_dyn=0.5, beta_rep=0.2)
    d = dreamed(agent)
    batch, post, feat = d.batch, d.post, d.feat
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
    heads = twohot_cross_entropy(agent.reward, agent.reward(feat), batch["reward"].numpy()).mean()
    heads -= Bernoulli(logits=agent.cont(feat)).log_prob(cont).mean()
    expected = 3 * error.mean() + heads + 0.7 * kl.clamp(min=1.4).mean()
    assert d.model_loss.item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("part", ["prev_deter", "prev_stoch", "prev_action"])
def test_a_window_goes_on_from_what_was_before_it_unless_it_starts_an_episode(part):
    agent = make_agent()
    batch = as_tensors(make_batch(agent))
    batch["is_first"][:, 0] = torch.tensor([True, False, False])
    other = {**batch, part: batch[part].roll(1, -1)}
    deter, changed = (agent.world_model_loss(x)[2].deter[:, 0] for x in (batch, other))
    assert (deter != changed).any(-1).tolist() == [False, True, True]


REWARD = [0.0, 1.0, 2.0, 3.0, 4.0]
IMAGINED = [10.0, 20.0, 30.0, 40.0, 50.0]  # imagined returns of the five states
# Row 2 ends an episode. γ = λ = 0.5.
#   R_3 = 4 + 0.5 * 50                           = 29
#   R_1 = 2 + 0.5 * 30 (the time limit cuts λ)   = 17     or 2 where the task ended
#   R_0 = 1 + 0.5 * (0.5 * 20 + 0.5 * R_1)       = 10.25  or 6.5
#   where row 1's action is 0.2 times as likely as the likeliest, its λ is 3 * 0.2 of itself, 0.3:
#   R_0 = 1 + 0.5 * (0.7 * 20 + 0.3 * R_1)       = 10.55
#   row 2 has no successor, hence no loss; row 4 is the window's last.


@pytest.mark.parametrize(
    ("terminal", "likely", "targets"),
    [(False, 0.4, [10.25, 17, 29]), (True, 1, [6.5, 2, 29]), (False, 0.2, [10.55, 17, 29])],
)
@pytest.mark.parametrize("slow_weight", [0.0, 0.5])
def test_replay_value_targets_by_hand(terminal, likely, targets, slow_weight):
    agent = make_agent(gamma=0.5, lam=0.5, slow_weight=slow_weight)
    odds = torch.tensor([[1, likely]]) / (1 + likely)
    agent.actor.forward = lambda feat: DiscretePolicy([odds.log().expand(1, 5, 2)])
    batch = {
        "action": torch.eye(2)[torch.tensor([[0, 1, 0, 0, 0]])],
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
    batch = dict.fromkeys(["is_first", "is_last", "is_terminal"], nowhere)
    batch["reward"] = torch.tensor([[0.0, 1.0, 2.0]])
    batch["action"] = torch.ones(1, 3, 1)
    agent.actor.forward = lambda feat: DiscretePolicy([torch.zeros(1, 3, 1)])  # no choice
    feat = torch.randn(1, 3, 12 + 3 * 4, generator=torch.Generator().manual_seed(0))
    loss = agent.replay_value_loss(batch, feat, torch.tensor([2, 0]), torch.tensor([7.0, -9.0]))
    logits = agent.critic(feat)[0]
    value = expected_value(agent.critic, logits)
    targets = np.array([1 + 0.5 * value[1], 2 + 0.5 * 7])
    expected = twohot_cross_entropy(agent.critic, logits[:2], targets)
    assert loss.item() == pytest.approx(expected.mean(), rel=1e-4)
