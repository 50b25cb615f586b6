"""What to know about an environment before training."""

import contextlib
import time
from collections.abc import Generator, Iterator

import numpy as np

from dreamer.agent import DreamerAgent
from dreamer.config import Config
from dreamer.envs import AgentEnv, MakeEnv, bounds_of, names_of
from dreamer.machine import fast_cpu
from dreamer.replay_buffer import ReplayBuffer

STEPS, SECONDS = 1_000, 10.0  # of random actions, whichever is over first
SMALL_STEP = 0.1  # of the spread: such steps drown in a dream's noise (LunarLander: 0.07)
UPDATES = 10  # that are timed
Lines = Iterator[tuple[str, str]]  # (what, found)


def check(env: MakeEnv, config: Config) -> Lines:
    """What a new user needs to know, a line for each thing. Raises ValueError and EnvFault where
    `train` would."""
    made = AgentEnv(env, config.action_repeat, config.max_episode_steps)
    with contextlib.closing(made), fast_cpu():
        yield from check_spaces(made)
        obs, seconds = yield from check_random_actions(made, config)
        yield from check_cost(made, config, obs, seconds)


def check_spaces(env: AgentEnv) -> Lines:
    """What the environment says of itself."""
    yield "environment", env.name
    yield "observations", str(env.given.observation_space)
    yield "actions", str(env.given.action_space)
    yield "layout", ", ".join(f"{k}={v}" for k, v in vars(env.layout).items() if v)
    yield "time limit", f"{env.time_limit:,} steps"
    modes = env.metadata.get("render_modes") or []
    drawn = {"human", "rgb_array"} & set(modes)
    yield "rendering", f"{', '.join(modes) or 'none'}{'' if drawn else ': watch will not work'}"
    same = np.array_equal(env.reset(seed=1)[0], env.reset(seed=1)[0])
    yield "reset by a seed", "repeats itself" if same else "differs: so will a resumed run"


def check_random_actions(
    env: AgentEnv, config: Config
) -> Generator[tuple[str, str], None, tuple[np.ndarray, float]]:
    """What random actions meet. Returns observations (M, O), and seconds per environment step."""
    rng, began = np.random.default_rng(config.seed), time.perf_counter()
    seen, rewards, ends = [env.reset(seed=config.seed)[0]], list[float](), list[tuple]()
    while len(rewards) < STEPS and (not rewards or time.perf_counter() - began < SECONDS):
        obs, reward, terminated, truncated, info = env.step(env.random_action(rng))
        seen.append(obs)
        rewards.append(reward)
        if terminated or truncated:
            ends.append((info["length"], info["return"]))
            seen.append(env.reset(seed=config.seed + len(ends))[0])
    seconds = (time.perf_counter() - began) / len(rewards) / config.action_repeat
    actions, obs = f"in {len(rewards):,} random actions", np.array(seen)
    yield "speed", f"{1 / seconds:,.4g} steps per second"
    if ends:
        lengths, returns = zip(*ends, strict=True)
        yield "random episodes", f"{len(ends)} of {min(lengths)} to {max(lengths)} steps, {actions}"
        yield "random return", f"{np.mean(returns):.4g}"
    else:
        yield "random episodes", f"none ended {actions}"
    yield "rewards", f"{min(rewards):.4g} to {max(rewards):.4g}, mean {np.mean(rewards):.4g}"
    if not any(rewards):
        yield "warning", f"no reward at all {actions}: the agent first has to meet one"

    vector, pixels = np.split(obs, [env.layout.vector_size], 1)
    space, numbers = env.env.observation_space, vector[:, : env.layout.numbers].astype(float)
    if env.layout.vector_size:
        yield "observed", f"{vector.min():.4g} to {vector.max():.4g}"
        low, high = bounds_of(space)
        beyond = np.flatnonzero(((numbers < low - 1e-4) | (numbers > high + 1e-4)).any(0))
        still = np.flatnonzero(np.ptp(vector, 0) == 0)
        for what, found in ("warning: out of bounds", beyond), ("never varied", still):
            if len(found):
                names = ", ".join(np.array(names_of(space))[found[:5]])
                yield what, f"{len(found)} of {vector.shape[1]}: {names}"
    if env.layout.images:
        moving = f"{np.ptp(pixels, 0).astype(bool).mean():.1%} of them ever vary"
        yield "pixels", f"{pixels.min():.0f} to {pixels.max():.0f} of 255, {moving}"
    moves = numbers[:, np.ptp(numbers, 0) > 0]
    if moves.size:
        share = (np.abs(np.diff(moves, axis=0)).mean(0) / moves.std(0)).mean()
        advice = ": little; try a larger action_repeat" if share < SMALL_STEP else ""
        yield "one action moves", f"{share:.1%} of what random actions reach{advice}"
    return obs, seconds


def check_cost(env: AgentEnv, c: Config, obs: np.ndarray, seconds: float) -> Lines:
    """What a run takes, where a step of the environment takes so many seconds."""
    agent, rng = DreamerAgent(env.layout, c), np.random.default_rng(0)
    replay = ReplayBuffer(c.seq_len + 1, env.layout, agent.rssm.sizes)
    for t in range(c.seq_len):
        row = obs[[t % len(obs)]], env.random_action(rng)[None], np.zeros(1), np.array([t == 0])
        replay.add(*row)
    times = []
    for _ in range(UPDATES):
        began = time.perf_counter()
        agent.update(replay.sample(c.batch_size, c.seq_len, rng))
        times.append(time.perf_counter() - began)
    update = float(np.median(times))
    rows, size = min(c.capacity, c.steps // c.action_repeat), replay.row_bytes
    yield "replay", f"about {rows:,} rows, {rows * size / 1e6:,.1f} MB"
    updates = c.updates_after(c.steps)
    yield "learning", f"{updates:,} updates in {c.steps:,} steps, {1000 * update:.0f} ms each here"
    steps = c.evals * c.eval_episodes * env.time_limit
    cost = f"at most {steps:,} steps, {steps * seconds / 60:,.1f} minutes of simulation"
    yield "evaluations", f"{c.evals} of {c.eval_episodes} episodes: {cost}"
    minutes = (updates * update + c.steps * seconds) / 60
    yield "time", f"about {minutes:,.1f} minutes here, without evaluations"
    yield "set first", "steps and train_ratio"
