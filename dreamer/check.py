"""What to know of an environment before an hour is spent on it."""

import time
from collections.abc import Iterator

import numpy as np

from dreamer.config import Config
from dreamer.envs import AgentEnv, EnvSpec
from dreamer.replay_buffer import ReplayBuffer
from dreamer.run import wrappers_with_memory

STEPS, SECONDS = 1_000, 10.0  # of random actions, whichever is over first


def check(spec: EnvSpec, config: Config) -> Iterator[tuple[str, str]]:
    """(what, found) for each thing that a new user needs to know. Raises ValueError and EnvFault
    where `train` would."""
    env = AgentEnv(spec, config.action_repeat, config.max_episode_steps)
    yield "environment", env.name
    yield "observations", f"{env.obs_space}: {env.obs_size} numbers"
    classes = f"one-hot vectors of {list(env.segments[:8])}{'...' if env.segments[8:] else ''}"
    size = f"{env.action_size} numbers" if not env.segments else classes
    yield "actions", f"{env.action_space}: {size}"
    limit = getattr(getattr(env.env, "spec", None), "max_episode_steps", None)
    yield "time limit", f"{limit or 'none known'}; cut at {env.max_episode_steps:,} in any case"
    same = np.array_equal(env.reset(1), env.reset(1))
    yield "reset by a seed", "repeats itself" if same else "differs: so will a resumed run"
    for name in wrappers_with_memory(env.env):
        yield "warning", f"{name} keeps running statistics, which evaluations do not share"

    obs, rewards, lengths, seconds = random_steps(env, config.seed)
    yield "speed", f"{len(rewards) * config.action_repeat / seconds:,.0f} steps per second"
    ends = f"{min(lengths)} to {max(lengths)} steps" if lengths else "none ended"
    yield "random episodes", f"{ends}, in {len(rewards)} actions"
    yield "rewards", f"{rewards.min():.4g} to {rewards.max():.4g}, mean {rewards.mean():.4g}"
    yield "observed", f"{obs.min():.4g} to {obs.max():.4g}"
    still = np.flatnonzero(np.ptp(obs, 0) == 0)
    if len(still):
        yield "never varied", f"{len(still)} of {env.obs_size} numbers, the first is {still[0]}"
    if env.masked:
        yield "action mask", "given: part of what is observed and dreamed; masked: never chosen"

    rows = min(config.capacity, 2 * config.steps // config.action_repeat)
    row = ReplayBuffer(2, env.obs_size, env.action_size, env.segments).rows.values()
    yield "replay", f"{rows:,} rows or fewer, {rows * sum(c[0].nbytes for c in row) / 1e6:,.1f} MB"
    cost = f"{config.eval_cost:g} steps for each step of training or fewer (eval_cost)"
    yield "evaluations", f"{config.evals} of up to {config.eval_episodes} episodes, {cost}"
    yield "learning", f"{config.updates_after(config.steps):,} updates in {config.steps:,} steps"
    yield "set first", "steps and train_ratio; action_repeat where one step changes little"
    env.close()


def random_steps(env: AgentEnv, seed: int) -> tuple[np.ndarray, np.ndarray, list[int], float]:
    """What random actions meet: observations (M, O), rewards (M,), the lengths of the episodes that
    ended, and the seconds that it took."""
    rng, began = np.random.default_rng(seed), time.perf_counter()
    seen: list[np.ndarray] = []
    rewards: list[float] = []
    lengths: list[int] = []
    done = True
    while len(rewards) < STEPS and (not rewards or time.perf_counter() - began < SECONDS):
        if done:
            seen.append(env.reset(seed + len(lengths)))
        obs, reward, terminated, truncated = env.step(env.random_action(rng))
        seen.append(obs)
        rewards.append(reward)
        done = terminated or truncated
        if done:
            lengths.append(env.episode_steps)
    return np.array(seen), np.array(rewards), lengths, time.perf_counter() - began
