"""Tools of the agent's tests: tiny agents and batches, and slow references in float64."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch
from conftest import hats64, tiny_config

from dreamer.agent import DreamerAgent
from dreamer.config import Config

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
        **make_start(config, np.roll(action[:, 0], 1, 0), rng),
    }


def make_start(config: Config, action: np.ndarray, rng: np.random.Generator) -> dict:
    """What was in the rows before the windows."""
    latent = rng.integers(config.classes, size=(config.batch_size, config.categoricals))
    return {
        "prev_deter": rng.uniform(-1, 1, (config.batch_size, config.deter)).astype(np.float32),
        "prev_stoch": np.eye(config.classes, dtype=np.float32)[latent],
        "prev_action": action,
    }


def as_tensors(batch: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(value) for name, value in batch.items()}


def adversarial_update(agent: DreamerAgent, rng: np.random.Generator) -> None:
    """An update on constant observations, sometimes huge, and on rewards of either sign that jump
    over ten orders of magnitude, with episode ends anywhere."""
    shape = agent.config.batch_size, agent.config.seq_len
    constant = 10.0 ** rng.integers(-3, 9) if rng.random() < 0.05 else 1.0
    action = rng.uniform(-1, 1, (*shape, agent.action_size)).astype(np.float32)
    if agent.discrete:
        action = np.eye(agent.action_size, dtype=np.float32)[action.argmax(-1)]
    reward = rng.choice([-1, 1], shape) * 10.0 ** rng.uniform(-2, 8, shape)
    is_last = rng.random(shape) < 0.2
    agent.update(
        {
            "obs": np.full((*shape, agent.obs_size), constant, np.float32),
            "action": action,
            "reward": reward.astype(np.float32),
            "is_first": rng.random(shape) < 0.2,
            "is_last": is_last,
            "is_terminal": is_last & (rng.random(shape) < 0.5),
            **make_start(agent.config, action[:, 0], rng),
        }
    )


def dreamed(agent: DreamerAgent, discrete: bool = True) -> SimpleNamespace:
    """World model, dream and behaviour of one batch: everything that an update computes."""
    batch = as_tensors(make_batch(agent.config, discrete))
    post, feat, model_loss, _ = agent.learn_world(batch)
    starts = agent.choose_starts(feat.shape[0] * feat.shape[1])
    dream = agent.imagine(post, starts)
    loss, ret, metrics = agent.learn_behaviour(dream)
    return SimpleNamespace(
        batch=batch,
        post=post,
        feat=feat,
        model_loss=model_loss,
        starts=starts,
        dream=dream,
        loss=loss,
        ret=ret,
        metrics=metrics,
    )


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


def twohot_cross_entropy(critic, logits: torch.Tensor, target: np.ndarray) -> np.ndarray:
    """Between softmax(logits) and the dense two-hot code of the target, in float64."""
    log_probs = logits.detach().double().log_softmax(-1).numpy()
    return -(hats64(target, critic.bins.double().numpy()) * log_probs).sum(-1)


def expected_value(critic, logits: torch.Tensor) -> np.ndarray:
    bins = critic.bins.double().numpy()
    return (logits.detach().double().softmax(-1).numpy() * bins).sum(-1)
