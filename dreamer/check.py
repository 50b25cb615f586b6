"""What to know about an environment before training."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from gymnasium import spaces

from dreamer.config import Config
from dreamer.envs import AgentEnv, EnvSpec
from dreamer.replay_buffer import ReplayBuffer
from dreamer.run import wrappers_with_memory
from dreamer.spaces import image_shape

STEPS, SECONDS = 1_000, 10.0  # of random actions, whichever is over first
SMALL_STEP = 0.1  # of the spread: such steps drown in a dream's noise (LunarLander: 0.07)


def check(spec: EnvSpec, config: Config) -> Iterator[tuple[str, str]]:
    """(what, found) for each thing that a new user needs to know. Raises ValueError and EnvFault
    where `train` would."""
    with contextlib.closing(AgentEnv(spec, config.action_repeat, config.max_episode_steps)) as env:
        yield from look(env, config)


def look(env: AgentEnv, config: Config) -> Iterator[tuple[str, str]]:
    """`check` of an existing environment, which stays open."""
    yield "environment", env.name
    numbers = env.obs_size - env.pixels
    parts = [count(numbers, "number")] * bool(numbers)
    parts += [f"an image of {h} x {w} pixels, {count(c, 'channel')}" for h, w, c in env.images]
    yield "observations", f"{described(env.obs_space)}: {' and '.join(parts)}"
    classes = f"one-hot vectors of {list(env.segments[:8])}{'...' if env.segments[8:] else ''}"
    size = classes if env.segments else count(env.action_size, "number")
    yield "actions", f"{env.action_space}: {size}"
    limit = getattr(getattr(env.env, "spec", None), "max_episode_steps", None)
    cut = f"an episode is cut after {env.max_episode_steps:,} steps (max_episode_steps)"
    yield "time limit", count(limit, "step") if limit else f"none known; {cut}"
    modes = env.env.metadata.get("render_modes") or []
    drawn = {"human", "rgb_array"} & set(modes)
    yield "rendering", f"{', '.join(modes) or 'none'}{'' if drawn else ': watch will not work'}"
    same = np.array_equal(env.reset(1), env.reset(1))
    yield "reset by a seed", "repeats itself" if same else "differs: so will a resumed run"
    for name in wrappers_with_memory(env.env):
        yield "warning", f"{name} keeps running statistics, which evaluations do not share"

    obs, rewards, episodes, seconds = random_steps(env, config.seed)
    speed, actions = len(rewards) * config.action_repeat / seconds, count(len(rewards), "action")
    yield "speed", f"{speed:,.{0 if speed > 10 else 2}f} steps per second"
    lengths, returns = [length for length, _ in episodes], [ret for _, ret in episodes]
    ends = f"{min(lengths)} to {max(lengths)} steps" if lengths else "none ended"
    yield "random episodes", f"{ends}, in {actions}"
    ret = f"{np.mean(returns):.4g}, mean of {count(len(returns), 'episode')}" if returns else ""
    yield "random return", ret or f"none ended in {actions} ({seconds:.1f} s)"
    yield "rewards", f"{rewards.min():.4g} to {rewards.max():.4g}, mean {rewards.mean():.4g}"
    obs, pixels = np.split(obs, [numbers], 1)
    if numbers:
        yield "observed", f"{obs.min():.4g} to {obs.max():.4g}"
    if env.images:
        moving = f"{np.ptp(pixels, 0).astype(bool).mean():.1%} of them ever vary"
        yield "pixels", f"{pixels.min():.0f} to {pixels.max():.0f} of 255, {moving}"
    still = np.flatnonzero(np.ptp(obs, 0) == 0)
    if len(still):
        names = entries(env.obs_space) + [f"action_mask[{i}]" for i in range(env.action_size)]
        listed = ", ".join(names[i] for i in still[:5]) + ", ..." * (len(still) > 5)
        yield "never varied", f"{len(still)} of {count(numbers, 'number')}: {listed}"
    kinds = [k == 0 for k in env.obs_parts for _ in range(max(k, 1))]
    share = step_size(obs, np.array(kinds, bool))
    if share is not None:
        advice = ": little; try a larger action_repeat" if share < SMALL_STEP else ""
        yield "one action moves", f"{share:.1%} of what random actions reach{advice}"
    if env.masked:
        yield "action mask", "given: part of what is observed and dreamed; masked: never chosen"

    rows = min(config.capacity, 2 * config.steps // config.action_repeat)
    state = config.deter, config.categoricals, config.classes
    sizes = env.obs_size, env.action_size, env.segments
    row = ReplayBuffer(2, *sizes, state, env.pixels).rows.values()
    yield "replay", f"{rows:,} rows or fewer, {rows * sum(c[0].nbytes for c in row) / 1e6:,.1f} MB"
    cost = f"at most {config.eval_cost:g} steps for each step of training (eval_cost)"
    many = f"{config.evals} of up to {config.eval_episodes} episodes, {cost}"
    yield "evaluations", many if config.evals else "none (evals)"
    updates = count(config.updates_after(config.steps), "update")
    yield "learning", f"{updates} in {count(config.steps, 'step')}"
    minutes = config.steps * (1 + config.eval_cost * (config.evals > 0)) / speed / 60
    long = f"{max(minutes, 0.1):,.1f} minutes" if minutes < 90 else f"{minutes / 60:,.1f} hours"
    yield "time", f"at most {long} of simulation, with evaluations; the learning is not included"
    first = "" if limit or lengths else "max_episode_steps, as no episode ended; then "
    if first and len(rewards) < 100:
        first = "max_episode_steps, perhaps (too slow to say); then "
    yield "set first", f"{first}steps and train_ratio"


def described(space: Any) -> str:
    """The space in short: the bounds of an image need no saying."""
    shape = getattr(space, "shape", None)
    return f"Box({shape}, {space.dtype})" if image_shape(space) else str(space)


def count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def entries(space: Any, name: str = "") -> list[str]:
    """A name for each entry of the flattened observation."""
    if isinstance(space, spaces.Dict):
        parts = [(f"{name}.{key}".lstrip("."), part) for key, part in space.spaces.items()]
    elif isinstance(space, spaces.Tuple):
        parts = [(f"{name}[{i}]", part) for i, part in enumerate(space.spaces)]
    elif image_shape(space):
        return []
    else:
        return [f"{name}[{i}]" if name else str(i) for i in range(spaces.flatdim(space))]
    return [entry for label, part in parts for entry in entries(part, label)]


def step_size(obs: np.ndarray, numbers: np.ndarray) -> float | None:
    """How far one action moves the numbers of observations (M, O), in units of their spread: the
    mean over those that vary; None without any. numbers (O,) bool."""
    seen = obs[:, numbers & (np.ptp(obs, 0) > 0)].astype(float)
    return (
        float((np.abs(np.diff(seen, axis=0)).mean(0) / seen.std(0)).mean()) if seen.size else None
    )


def random_steps(
    env: AgentEnv, seed: int
) -> tuple[np.ndarray, np.ndarray, list[tuple[int, float]], float]:
    """What random actions meet: observations (M, O), rewards (M,), (length, return) of each episode
    that ended, and the seconds that it took."""
    rng, began, start = np.random.default_rng(seed), time.perf_counter(), 0
    seen: list[np.ndarray] = []
    rewards: list[float] = []
    episodes: list[tuple[int, float]] = []
    while len(rewards) < STEPS and (not rewards or time.perf_counter() - began < SECONDS):
        if len(rewards) == start:  # where an episode begins
            seen.append(env.reset(seed + len(episodes)))
        obs, reward, terminated, truncated = env.step(env.random_action(rng))
        seen.append(obs)
        rewards.append(reward)
        if terminated or truncated:
            episodes.append((env.episode_steps, sum(rewards[start:])))
            start = len(rewards)
    return np.array(seen), np.array(rewards), episodes, time.perf_counter() - began
