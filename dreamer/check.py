"""What to know about an environment before training."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from dreamer.agent import DreamerAgent
from dreamer.config import Config
from dreamer.envs import AgentEnv, MakeEnv, names_of
from dreamer.machine import fast_cpu
from dreamer.replay_buffer import ReplayBuffer

STEPS, SECONDS = 1_000, 10.0  # of random actions, whichever is over first
SMALL_STEP = 0.1  # of the spread: such steps drown in a dream's noise (LunarLander: 0.07)
UPDATES = 10  # that are timed


def check(env: MakeEnv, config: Config) -> Iterator[tuple[str, str]]:
    """(what, found) for each thing that a new user needs to know. Raises ValueError and EnvFault
    where `train` would."""
    made = AgentEnv(env, config.action_repeat, config.max_episode_steps)
    with contextlib.closing(made), fast_cpu():
        yield from look(made, config)


def look(env: AgentEnv, config: Config) -> Iterator[tuple[str, str]]:
    """`check` of an existing environment, which stays open."""
    layout, inner = env.layout, env.env.env  # below the time limit of ours
    yield "environment", env.name
    yield "observations", f"{inner.observation_space}"
    yield "actions", f"{inner.action_space}"
    yield "layout", ", ".join(f"{k}={v}" for k, v in vars(layout).items() if v)
    limit = env.env.spec and inner.spec and inner.spec.max_episode_steps
    cut = f"none known; episodes are cut after {config.max_episode_steps:,} (max_episode_steps)"
    yield "time limit", f"{limit:,} steps" if limit else cut
    modes = inner.metadata.get("render_modes") or []
    drawn = {"human", "rgb_array"} & set(modes)
    yield "rendering", f"{', '.join(modes) or 'none'}{'' if drawn else ': watch will not work'}"
    same = np.array_equal(env.reset(seed=1)[0], env.reset(seed=1)[0])
    yield "reset by a seed", "repeats itself" if same else "differs: so will a resumed run"

    obs, rewards, episodes, seconds = random_steps(env, config.seed)
    speed = len(rewards) * config.action_repeat / seconds
    yield "speed", f"{speed:,.4g} steps per second"
    actions = f"in {len(rewards):,} random actions"
    lengths, returns = [length for length, _ in episodes], [ret for _, ret in episodes]
    ends = f"{min(lengths)} to {max(lengths)} steps" if lengths else "none ended"
    yield "random episodes", f"{ends}, {actions}"
    if returns:
        yield "random return", f"{np.mean(returns):.4g}, mean of {len(returns)} episodes"
    yield "rewards", f"{rewards.min():.4g} to {rewards.max():.4g}, mean {rewards.mean():.4g}"
    if not rewards.any():
        yield "warning", f"no reward at all {actions}: the agent first has to meet one"
    vector, pixels = np.split(obs, [layout.vector_size], 1)
    yield from look_at_numbers(vector, inner.observation_space, env.layout.numbers)
    if layout.images:
        moving = f"{np.ptp(pixels, 0).astype(bool).mean():.1%} of them ever vary"
        yield "pixels", f"{pixels.min():.0f} to {pixels.max():.0f} of 255, {moving}"
    share = step_size(obs[:, : layout.numbers])
    if share is not None:
        advice = ": little; try a larger action_repeat" if share < SMALL_STEP else ""
        yield "one action moves", f"{share:.1%} of what random actions reach{advice}"
    yield from look_at_cost(env, config, obs, seconds / len(rewards) / config.action_repeat)
    yield "set first", f"{'' if limit or lengths else 'max_episode_steps, '}steps and train_ratio"


def look_at_numbers(vector: np.ndarray, space: Any, numbers: int) -> Iterator[tuple[str, str]]:
    """What observations (M, V) look like, of which the first ones are numbers."""
    if not vector.size:
        return
    names = names_of(space)
    yield "observed", f"{vector.min():.4g} to {vector.max():.4g}"
    still = [name for name, spread in zip(names, np.ptp(vector, 0), strict=True) if spread == 0]
    if still:
        yield "never varied", f"{len(still)} of {len(names)}: {', '.join(still[:5])}"
    low, high = bounds_of(space)
    seen = vector[:, :numbers]
    beyond = ((seen < low - 1e-4) | (seen > high + 1e-4)).any(0)
    if beyond.any():
        outside = [name for name, b in zip(names, beyond, strict=False) if b]
        yield "warning", f"beyond the bounds of their space: {', '.join(outside[:5])}"


def bounds_of(space: Any) -> tuple[np.ndarray, np.ndarray]:
    """Least and largest value of each number of an observation, in the order of its layout."""
    from dreamer.envs import kind_of, leaves

    boxes = [part for _, part, _ in leaves(space) if kind_of(part) == "numbers"]
    low, high = ([np.ravel(getattr(box, end)) for box in boxes] for end in ("low", "high"))
    return tuple(np.concatenate([np.zeros(0), *bounds]) for bounds in (low, high))


def look_at_cost(
    env: AgentEnv, config: Config, obs: np.ndarray, seconds: float
) -> Iterator[tuple[str, str]]:
    """What a run takes, where a step of the environment takes so many seconds."""
    c = config
    agent = DreamerAgent(env.layout, c)
    replay = ReplayBuffer(max(c.seq_len, 100), env.layout, agent.rssm.sizes)
    rng = np.random.default_rng(0)
    for t in range(replay.length):
        action = env.random_action(rng)[None]
        replay.add(obs[[t % len(obs)]], action, np.zeros(1), np.array([t == 0]))
    began = time.perf_counter()
    for _ in range(UPDATES):
        agent.update(replay.sample(c.batch_size, c.seq_len, rng))
    update = (time.perf_counter() - began) / UPDATES
    rows = min(c.capacity, 2 * c.steps // c.action_repeat)
    size = sum(x[0].nbytes for x in replay.rows.values())
    yield "replay", f"{rows:,} rows or fewer, {rows * size / 1e6:,.1f} MB"
    updates = c.updates_after(c.steps)
    yield "learning", f"{updates:,} updates in {c.steps:,} steps, {1000 * update:.0f} ms each here"
    limit = env.env.env.spec and env.env.env.spec.max_episode_steps
    steps = c.evals * c.eval_episodes * (limit or c.max_episode_steps)
    yield (
        "evaluations",
        (
            f"{c.evals} of {c.eval_episodes} episodes: at most {steps:,} steps, "
            f"{steps * seconds / 60:,.1f} minutes of simulation"
        ),
    )
    yield (
        "time",
        f"about {(updates * update + c.steps * seconds) / 60:,.1f} minutes here, and these",
    )


def step_size(numbers: np.ndarray) -> float | None:
    """How far one action moves numbers (M, N), in units of their spread: the mean over those that
    vary; None without any."""
    seen = numbers[:, np.ptp(numbers, 0) > 0].astype(float)
    moved = np.abs(np.diff(seen, axis=0)).mean(0) / seen.std(0)
    return float(moved.mean()) if seen.size else None


def random_steps(
    env: AgentEnv, seed: int
) -> tuple[np.ndarray, np.ndarray, list[tuple[int, float]], float]:
    """What random actions meet: observations (M, O), rewards (M,), (length, return) of each episode
    that ended, and the seconds that it took."""
    rng, began = np.random.default_rng(seed), time.perf_counter()
    seen, rewards = [env.reset(seed=seed)[0]], []
    episodes: list[tuple[int, float]] = []
    while len(rewards) < STEPS and (not rewards or time.perf_counter() - began < SECONDS):
        obs, reward, terminated, truncated, info = env.step(env.random_action(rng))
        seen.append(obs)
        rewards.append(reward)
        if terminated or truncated:
            episodes.append((info["length"], info["return"]))
            seen.append(env.reset(seed=seed + len(episodes))[0])
    return np.array(seen), np.array(rewards), episodes, time.perf_counter() - began
