"""What to know about an environment before training."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from dreamer.agent import DreamerAgent
from dreamer.config import Config
from dreamer.envs import AgentEnv, MakeEnv, bounds_of, names_of, random_action
from dreamer.machine import fast_cpu
from dreamer.replay_buffer import Layout, ReplayBuffer

STEPS, SECONDS = 1_000, 10.0  # of random actions, whichever is over first
SMALL_STEP = 0.1  # of the spread: such steps drown in a dream's noise (LunarLander: 0.07)
UPDATES = 10  # that are timed


def check(env: MakeEnv, config: Config) -> Iterator[tuple[str, str]]:
    """What a new user needs to know, a line (what, found) for each thing. Raises ValueError and
    EnvFault where `train` would."""
    c = config
    made = AgentEnv(env, c.action_repeat, c.max_episode_steps)
    with contextlib.closing(made), fast_cpu():
        yield "environment", made.name
        yield "observations", str(made.given.observation_space)
        yield "actions", str(made.given.action_space)
        yield "layout", ", ".join(f"{k}={v}" for k, v in vars(made.layout).items() if v)
        yield "time limit", f"{made.time_limit:,} steps"
        modes = made.metadata.get("render_modes") or []
        drawn = {"human", "rgb_array"} & set(modes)
        yield "rendering", f"{', '.join(modes) or 'none'}{'' if drawn else ': watch will not work'}"
        same = np.array_equal(made.reset(seed=1)[0], made.reset(seed=1)[0])
        yield "reset by a seed", "repeats itself" if same else "differs: so will a resumed run"
        obs, rewards, ends, seconds = act_at_random(made, c)
        yield "speed", f"{1 / seconds:,.4g} steps per second"
        yield from describe(made, obs, rewards, ends)

        layout, rows = made.layout, min(c.capacity, c.steps // c.action_repeat)
        size = ReplayBuffer(1, layout, (c.deter, c.categoricals, c.classes)).row_bytes
        yield "replay", f"about {rows:,} rows, {rows * size / 1e6:,.1f} MB"
        updates, one = c.updates_after(c.steps), time_update(layout, c)
        yield "learning", f"{updates:,} updates in {c.steps:,} steps, {1000 * one:.0f} ms each here"
        steps = c.evals * c.eval_episodes * made.time_limit
        cost = f"at most {steps:,} steps, {steps * seconds / 60:,.1f} minutes of simulation"
        yield "evaluations", f"{c.evals} of {c.eval_episodes} episodes: {cost}"
        minutes = (updates * one + c.steps * seconds) / 60
        yield "time", f"about {minutes:,.1f} minutes here, without evaluations"


def act_at_random(env: AgentEnv, config: Config) -> tuple[np.ndarray, list, list, float]:
    """Observations (M, O) and rewards that random actions meet, what `info` says at the end of each
    episode, and seconds per environment step."""
    rng, began = np.random.default_rng(config.seed), time.perf_counter()
    obs, rewards, ends = [env.reset(seed=config.seed)[0]], list[float](), list[dict]()
    while len(rewards) < STEPS and (not rewards or time.perf_counter() - began < SECONDS):
        seen, reward, terminated, truncated, info = env.step(env.random_action(rng))
        obs.append(seen)
        rewards.append(reward)
        if terminated or truncated:
            ends.append(info)
            obs.append(env.reset(seed=config.seed + len(ends))[0])
    seconds = (time.perf_counter() - began) / len(rewards) / config.action_repeat
    return np.array(obs), rewards, ends, seconds


def describe(
    env: AgentEnv, obs: np.ndarray, rewards: list, ends: list
) -> Iterator[tuple[str, str]]:
    """What random actions have met."""
    actions = f"in {len(rewards):,} random actions"
    if ends:
        lengths, mean = [end["length"] for end in ends], np.mean([end["return"] for end in ends])
        many = f"{len(ends)} of {min(lengths)} to {max(lengths)} steps {actions}"
        yield "random episodes", f"{many}, mean return {mean:.4g}"
    else:
        yield "random episodes", f"none ended {actions}"
    yield "rewards", f"{min(rewards):.4g} to {max(rewards):.4g}, mean {np.mean(rewards):.4g}"
    if not any(rewards):
        yield "warning", f"no reward at all {actions}: the agent first has to meet one"
    vector, pixels = np.split(obs, [env.layout.vector_size], 1)
    if vector.size:
        yield "observed", f"{vector.min():.4g} to {vector.max():.4g}"
    if pixels.size:
        moving = f"{np.ptp(pixels, 0).astype(bool).mean():.1%} of them ever vary"
        yield "pixels", f"{pixels.min():.0f} to {pixels.max():.0f} of 255, {moving}"
    plain = vector[:, : env.layout.numbers + env.layout.flags].astype(float)
    names, moves = names_of(env.env.observation_space), np.ptp(plain, 0) > 0
    if still := [name for name, moved in zip(names, moves, strict=False) if not moved]:
        yield "never varied", f"{len(still)} of {len(moves)}: {', '.join(still[:5])}"
    low, high = bounds_of(env.env.observation_space)
    numbers = plain[:, : env.layout.numbers]
    outside = np.flatnonzero(((numbers < low - 1e-4) | (numbers > high + 1e-4)).any(0))
    if outside.size:
        first = ", ".join(names[i] for i in outside[:5])
        yield "out of bounds", f"{outside.size} of {len(low)}: {first}"
    numbers = numbers[:, moves[: env.layout.numbers]]
    if numbers.size:
        share = (np.abs(np.diff(numbers, axis=0)).mean(0) / numbers.std(0)).mean()
        advice = ": little; try a larger action_repeat" if share < SMALL_STEP else ""
        yield "one action moves", f"{share:.1%} of what random actions reach{advice}"


def time_update(layout: Layout, config: Config) -> float:
    """Seconds of an update, the median of a few."""
    update, times = make_update(layout, config), []
    for _ in range(UPDATES):
        began = time.perf_counter()
        update()
        times.append(time.perf_counter() - began)
    return float(np.median(times))


def make_update(layout: Layout, config: Config) -> Callable[[], Any]:
    """A function that makes one update of a fresh agent, on random rows."""
    agent, rng = DreamerAgent(layout, config), np.random.default_rng(0)
    replay = ReplayBuffer(config.seq_len, layout, agent.rssm.sizes)
    for t in range(config.seq_len):
        obs, action = rng.random((1, layout.obs_size)), random_action(layout, rng)[None]
        replay.add(obs, action, reward=np.ones(1), is_first=np.array([t == 0]))
    batch = replay.sample(config.batch_size, config.seq_len, rng)
    return lambda: agent.update(batch)
