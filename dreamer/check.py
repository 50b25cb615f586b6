"""What to know of an environment before an hour is spent on it."""

import time
from collections.abc import Iterator

import numpy as np

from dreamer.config import Config
from dreamer.envs import AgentEnv, EnvSpec
from dreamer.replay_buffer import ReplayBuffer
from dreamer.run import wrappers_with_memory

STEPS, SECONDS = 1_000, 10.0  # of random actions, whichever is over first
SMALL_STEP = 0.1  # of the spread: such steps drown in a dream's noise (LunarLander: 0.07)


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
    cut = f"an episode is cut after {env.max_episode_steps:,} steps (max_episode_steps)"
    yield "time limit", f"{limit:,} steps" if limit else f"none known; {cut}"
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
    share = step_size(obs, np.array([k == 0 for k in env.obs_parts for _ in range(max(k, 1))]))
    if share is not None:
        advice = ": little; try a larger action_repeat" if share < SMALL_STEP else ""
        yield "one action moves", f"{share:.1%} of what random actions reach{advice}"
    if env.masked:
        yield "action mask", "given: part of what is observed and dreamed; masked: never chosen"

    rows = min(config.capacity, 2 * config.steps // config.action_repeat)
    row = ReplayBuffer(2, env.obs_size, env.action_size, env.segments).rows.values()
    yield "replay", f"{rows:,} rows or fewer, {rows * sum(c[0].nbytes for c in row) / 1e6:,.1f} MB"
    cost = f"at most {config.eval_cost:g} steps for each step of training (eval_cost)"
    many = f"{config.evals} of up to {config.eval_episodes} episodes, {cost}"
    yield "evaluations", many if config.evals else "none (evals)"
    yield "learning", f"{config.updates_after(config.steps):,} updates in {config.steps:,} steps"
    first = "" if limit or lengths else "max_episode_steps, as no episode ended; then "
    yield "set first", f"{first}steps and train_ratio"
    env.close()


def step_size(obs: np.ndarray, numbers: np.ndarray) -> float | None:
    """How far one action moves the numbers of observations (M, O), in units of their spread: the
    mean over those that vary; None without any. numbers (O,) bool."""
    seen = obs[:, numbers & (np.ptp(obs, 0) > 0)].astype(float)
    return (
        float((np.abs(np.diff(seen, axis=0)).mean(0) / seen.std(0)).mean()) if seen.size else None
    )


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
