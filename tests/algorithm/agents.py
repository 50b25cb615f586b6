"""Tools of the agent's tests: tiny agents and batches, and slow references in float64."""

from types import SimpleNamespace

import numpy as np
import torch
from conftest import hats64, tiny_config

from dreamer.agent import DreamerAgent
from dreamer.replay_buffer import Layout

LAYOUTS = {
    "discrete": Layout(numbers=3, action_categories=(2,)),
    "continuous": Layout(numbers=3, action_numbers=2),
    "everything": Layout(2, 1, (3,), ((8, 8, 1), (9, 10, 3)), action_categories=(2, 3)),
}
MODEL_PARTS = ("encoder", "rssm", "decoder", "reward", "cont")
PARTS = (*MODEL_PARTS, "actor", "critic", "slow_critic")


def make_agent(kind: str = "discrete", stir: float = 0.2, **changes) -> DreamerAgent:
    """A tiny agent. Its weights are moved by `stir`, so that no head is zero because it is fresh
    and the slow critic is not the critic."""
    agent = DreamerAgent(LAYOUTS[kind], tiny_config(**changes))
    rng = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in agent.parameters():
            p += stir * torch.randn(p.shape, generator=rng)
    return agent


def one_hots(sizes: tuple[int, ...], shape: tuple[int, ...], rng: np.random.Generator):
    """Random one-hot vectors of these sizes, one after another: (*shape, sum of sizes)."""
    parts = [np.eye(k, dtype=np.float32)[rng.integers(k, size=shape)] for k in sizes]
    return np.concatenate([np.zeros((*shape, 0), np.float32), *parts], -1)


def random_obs(layout: Layout, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    numbers = rng.normal(size=(*shape, layout.numbers))
    flags = rng.integers(2, size=(*shape, layout.flags))
    pixels = rng.integers(256, size=(*shape, layout.pixels))
    parts = numbers, flags, one_hots(layout.categories, shape, rng), pixels
    return np.concatenate(parts, -1, dtype=np.float32)


def random_action(layout: Layout, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    if layout.discrete:
        return one_hots(layout.action_categories, shape, rng)
    return rng.uniform(-1, 1, (*shape, layout.action_numbers)).astype(np.float32)


def make_batch(agent: DreamerAgent, seed: int = 0) -> dict[str, np.ndarray]:
    """Random rows with episode ends of both kinds."""
    rng, config, layout = np.random.default_rng(seed), agent.config, agent.layout
    shape = config.batch_size, config.seq_len
    is_last = rng.random(shape) < 0.3
    is_first = np.concatenate([rng.random((shape[0], 1)) < 0.5, is_last[:, :-1]], 1)
    return {
        "obs": random_obs(layout, shape, rng),
        "action": random_action(layout, shape, rng),
        "reward": (3 * rng.normal(size=shape)).astype(np.float32),
        "is_first": is_first,
        "is_last": is_last,
        "is_terminal": is_last & (rng.random(shape) < 0.5),
        # What was in the rows before the windows.
        "prev_deter": rng.uniform(-1, 1, (shape[0], config.deter)).astype(np.float32),
        "prev_stoch": one_hots((config.classes,), (shape[0], config.categoricals), rng),
        "prev_action": random_action(layout, shape[:1], rng),
    }


def as_tensors(batch: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(value) for name, value in batch.items()}


def adversarial_update(agent: DreamerAgent, rng: np.random.Generator) -> None:
    """An update on constant observations, sometimes huge, and on rewards of either sign that jump
    over ten orders of magnitude, with episode ends anywhere."""
    batch = make_batch(agent, int(rng.integers(10**6)))
    shape = batch["reward"].shape
    batch["obs"][:] = 10.0 ** rng.integers(-3, 9) if rng.random() < 0.05 else 1.0
    batch["reward"][:] = rng.choice([-1, 1], shape) * 10.0 ** rng.uniform(-2, 8, shape)
    batch["is_first"] = rng.random(shape) < 0.2
    agent.update(batch)


def dreamed(agent: DreamerAgent) -> SimpleNamespace:
    """World model, dream and behaviour of one batch: everything that an update computes."""
    d = SimpleNamespace(batch=as_tensors(make_batch(agent)))
    d.model_loss, _, d.post, d.feat = agent.world_model_loss(d.batch)
    d.starts = agent.choose_starts(d.feat.shape[0] * d.feat.shape[1])
    d.dream = agent.imagine(d.post, d.starts)
    d.loss, d.metrics, d.ret = agent.actor_critic_loss(d.dream)
    return d


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
