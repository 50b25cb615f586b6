"""Each variant removes its idea and nothing else."""

import math
import sys

import agents
import numpy as np
import pytest
import torch

from dreamer import run
from dreamer.evaluation import open_loop
from dreamer.rssm import State
from dreamer.utils import make_rng
from lab.variants import VARIANTS, without

PACKAGE = [module for name, module in sys.modules.items() if name.startswith("dreamer.")]


def make_agent(variant, stir=0.3):
    """A tiny agent of this variant, to be used within `without(variant)` alone."""
    return agents.make_agent(stir=stir, **VARIANTS[variant].fields)


def make_batch(agent, seed=0):
    """Random rows of one episode that goes on."""
    batch = agents.make_batch(agent, seed)
    nothing = np.zeros_like(batch["is_first"])
    return batch | dict.fromkeys(["is_first", "is_last", "is_terminal"], nothing)


@pytest.fixture
def package(variant):
    """The package as the variant has it; after the test it is as before."""
    with without(variant):
        yield


def both(idea):
    """The agent without the idea, where the effect must be there, and the full one, where not."""
    return pytest.mark.parametrize("variant", [idea, "full"])


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_learns_dreams_and_is_gone_afterwards(variant):
    before = [dict(vars(module)) for module in PACKAGE]
    with without(variant):
        agent = make_agent(variant, stir=0.0)
        weights = [p.clone() for p in agent.parameters() if p.requires_grad]
        for seed in range(3):
            metrics, _ = agent.update(make_batch(agent, seed))
        assert all(torch.isfinite(value) for value in metrics.values())
        moved = [p for p in agent.parameters() if p.requires_grad]
        assert any(not torch.equal(*pair) for pair in zip(weights, moved, strict=True))
        batch = make_batch(agent, 9)
        dream = open_loop(agent, batch["obs"], batch["action"], 2, seed=0)
        assert np.isfinite(dream["obs"]).all()
    for module, names in zip(PACKAGE, before, strict=True):
        assert all(vars(module)[name] is value for name, value in names.items())


@both("stored states")
def test_without_stored_states_every_window_begins_from_zeros(variant, package):
    replay = run.ReplayBuffer(4, agents.LAYOUTS["discrete"], state=(4, 2, 3))
    state = State(torch.full((1, 4), 0.5), torch.eye(3)[None, :2], torch.ones(1, 2))
    obs, action, no = np.zeros((1, 3)), np.ones((1, 2)), np.zeros(1)
    for t in range(4):
        replay.add(obs, action, no, no + (t == 0), state=state)
    replay.refresh(np.array([1]), state)
    batch = replay.sample(64, 2, np.random.default_rng(0))
    known = batch["index"][:, 0] > 0
    assert known.any() and (batch["prev_action"][known] == 1).all()
    kept = 0.0 if variant == "stored states" else 1.0
    assert (batch["prev_deter"][known] == 0.5 * kept).all()
    assert (batch["prev_stoch"][known].sum((1, 2)) == 2 * kept).all()


@both("symlog")
def test_without_symlog_the_encoder_sees_the_observation_linearly(variant, package):
    agent = make_agent(variant)
    agent.update(make_batch(agent))  # the norm has statistics now
    norm, obs = agent.encoder.norm, torch.tensor([[1.0, -2.0, 3.0]])
    step = norm(obs) - norm(0 * obs)
    linear = torch.allclose(norm(2 * obs) - norm(0 * obs), 2 * step, rtol=1e-4)
    assert linear == (variant == "symlog")
    assert agent.critic.bins[-1] == pytest.approx(math.exp(20) - 1)  # two-hot keeps its bins


@both("two-hot")
def test_without_two_hot_heads_are_one_number_and_squared_error(variant, package):
    agent, feat = make_agent(variant), torch.randn(2, 12 + 3 * 4)
    for head in (agent.reward, agent.critic, agent.slow_critic):
        assert (head(feat).shape == (2, 1)) == (variant == "two-hot")
        if variant == "two-hot":
            assert torch.equal(head.predict(feat), head(feat)[:, 0])
            logits = torch.tensor([[2.0], [-1.0]])
            targets = torch.tensor([[5.0, 2.0], [0.0, -3.0]])  # two for each prediction
            assert head.loss(logits, targets).tolist() == [[9.0, 0.0], [1.0, 4.0]]
    fresh = make_agent(variant, stir=0.0)
    assert fresh.reward.predict(feat).tolist() == fresh.critic.predict(feat).tolist() == [0.0] * 2


@both("straight-through")
def test_without_straight_through_nothing_behind_a_sample_reaches_the_encoder(variant, package):
    agent = make_agent(variant)
    batch = agents.as_tensors(make_batch(agent))
    _, _, post, feat = agent.world_model_loss(batch)
    assert set(post.stoch.detach().unique().tolist()) <= {0.0, 1.0}
    agent.decoder.loss(agent.decoder(feat), batch["obs"]).mean().backward()
    grads = [p.grad for p in agent.encoder.parameters()]
    assert all(grad is None for grad in grads) == (variant == "straight-through")
    assert agent.rssm.gru.weight.grad.abs().sum() > 0  # what does not pass a sample still learns


@both("stochastic latent")
def test_without_a_stochastic_latent_nothing_is_drawn(variant, package):
    agent = make_agent(variant)
    batch = agents.as_tensors(make_batch(agent))

    def states(seed):
        rng = make_rng(torch.device("cpu"), seed)
        embed = agent.encoder(batch["obs"])
        post, state = agent.rssm.observe(embed, batch["action"], batch["is_first"], rng)
        return post, agent.rssm.imagine(state, lambda *_: batch["action"][:, 0], 8, rng)

    for one, other in zip(states(1), states(2), strict=True):
        assert torch.equal(one.stoch, other.stoch) == (variant == "stochastic latent")
    post, _ = states(1)
    if variant == "stochastic latent":
        assert torch.equal(post.stoch.argmax(-1), post.post_logits.argmax(-1))
    post.stoch[..., 0].sum().backward()  # straight-through gradients stay
    assert agent.rssm.post_out.weight.grad.abs().sum() > 0


@both("memory")
def test_without_memory_the_state_knows_the_present_observation_alone(variant, package):
    """Two pasts, one present: the same state, and the same action. The prior still knows where it
    comes from and what was done there, or there would be no dreams."""
    agent = make_agent(variant)
    batch, other = (agents.as_tensors(make_batch(agent, seed)) for seed in (0, 1))
    other["obs"][:, -1] = batch["obs"][:, -1]

    def acts(batch):
        state, rng = None, make_rng(torch.device("cpu"), 2)
        for t in range(6):
            action, state = agent.act(batch["obs"][:, t], batch["is_first"][:, t], state, rng=rng)
        return action, agent.rssm.get_feat(state)

    same = all(np.array_equal(*pair) for pair in zip(acts(batch), acts(other), strict=True))
    assert same == (variant == "memory")
    other["obs"][:, -1] += 3.0
    assert not torch.equal(acts(other)[1], acts(batch)[1])

    deter, stoch = torch.ones(3, 12), torch.eye(4)[:3].expand(3, 3, 4)
    actions = [agent.rssm.embed_action(torch.eye(2)[[i] * 3]) for i in (0, 1)]
    left, right = (agent.rssm.sequence_step(deter, stoch, action) for action in actions)
    assert not torch.equal(left, right)


@both("return scale")
def test_without_return_scale_advantages_keep_their_unit(variant, package):
    scale = make_agent(variant).ret_scale.update(torch.linspace(0, 1000, 1001)).item()
    assert scale == pytest.approx(1.0 if variant == "return scale" else 900.0)
