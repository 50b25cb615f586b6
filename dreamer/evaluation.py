"""What an agent is worth: greedy returns on fresh episodes, and how good its dreams are."""

import contextlib
import math
import warnings
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from dreamer.agent import DreamerAgent
from dreamer.envs import AgentEnv, EnvSpec, make, make_envs
from dreamer.replay_buffer import ReplayBuffer
from dreamer.rssm import State
from dreamer.utils import derive_seed, make_rng

# Streams of random numbers that `derive_seed` tells apart; others are in run.py.
EXPLORATION, EVALUATION, PROBE = 11, 12, 13


# ---------------------------------------------------------------- returns


SIDE_BY_SIDE = 20  # environments that an evaluation has open at once, at most


def evaluate(
    agent: DreamerAgent,
    env: EnvSpec,
    episodes: int = 100,
    seed: int = 0,
    greedy: bool = True,
    details: bool = False,
    **env_options: Any,
) -> Any:
    """Undiscounted returns (episodes,) of whole episodes.

    Episode i is reset with a seed derived from (seed, i), on a stream that training never uses.
    Up to SIDE_BY_SIDE episodes run at once, each in an environment of its own, through one batched
    policy, which holds its actions as in training (`Config.action_repeat`). Training is not
    touched: the random numbers are the evaluation's own. `details` makes it a tuple (returns,
    dict): see `evaluate_in`. env_options go to `gymnasium.make`, or to your own function: with
    `render_mode="human"` you can watch (one episode, unless you want a window for each).

    Raises ValueError for an environment that does not fit the agent, for a function that does not
    make a new one each time, and without episodes.
    """
    if episodes < 1:
        raise ValueError(f"evaluate needs at least 1 episode, got {episodes}")
    envs = make_envs(env, min(episodes, SIDE_BY_SIDE), agent.config, **env_options)
    try:
        returns, stats = evaluate_in(agent, envs, episodes, seed, greedy)
    finally:
        for e in envs:
            e.close()
    return (returns, stats) if details else returns


def check_fit(agent: DreamerAgent, env: AgentEnv) -> None:
    """Raises ValueError for an agent that was made for other observations or actions."""
    theirs: tuple = env.obs_size, env.action_size, env.segments
    ours: tuple = agent.obs_size, agent.action_size, agent.segments
    if env.images:
        theirs, ours = (*theirs, env.images), (*ours, agent.images)
    if theirs != ours:
        raise ValueError(
            f"{env.name} has (observation size, action size, classes of actions) {theirs}, but "
            f"the agent was made for {ours}"
        )


def evaluate_in(
    agent: DreamerAgent,
    envs: list[AgentEnv],
    episodes: int,
    seed: int,
    greedy: bool = True,
    progress: Callable[[int], None] | None = None,
    max_steps: float = math.inf,
) -> tuple[np.ndarray, dict[str, float]]:
    """`evaluate` in existing environments, which stay open.

    progress: called with the number of finished episodes. max_steps: of the environments in all; an
    evaluation that would take more is broken off and returns nothing, as the episodes that have
    ended by then are the short ones. Returns the returns (episodes,) and `episodes`, their number,
    `length`, their mean length in steps of the environment, `success`, the share of them with a
    true `info["is_success"]` at their end (where all say so), and the critic's `calibration`.
    """
    check_fit(agent, envs[0])
    rng = make_rng(agent.device, seed, EVALUATION)
    running = list(range(min(len(envs), episodes)))  # episode of each row of obs and state
    worlds = envs[: len(running)]  # environment of each row
    obs = np.stack([worlds[i].reset(derive_seed(seed, EVALUATION, i)) for i in running])
    is_first, state, started = np.ones(len(running), bool), None, len(running)
    rewards: list[list[float]] = [[] for _ in range(episodes)]
    values: list[list[float]] = [[] for _ in range(episodes)]
    bootstrap = np.zeros(episodes)  # value after a time limit
    lengths = np.zeros(episodes)
    successes: list[bool | None] = [None] * episodes
    before = sum(w.steps for w in envs)
    while running:
        taken = sum(w.steps for w in envs) - before
        if taken + len(running) * agent.config.action_repeat > max_steps:
            return np.zeros(0), {}
        action, state = agent.act(obs, is_first, state, greedy, rng)
        with torch.inference_mode():
            value = agent.critic.predict(agent.rssm.get_feat(state)).tolist()
        is_first = np.zeros(len(running), bool)
        keep = []
        for row, (i, world) in enumerate(zip(running, worlds, strict=True)):
            obs[row], reward, terminated, truncated = world.step(action[row])
            values[i].append(value[row])
            rewards[i].append(reward)
            if not (terminated or truncated):
                keep.append(row)
                continue
            bootstrap[i] = 0 if terminated else value[row]
            lengths[i], successes[i] = world.episode_steps, world.success
            if progress:
                progress(int((lengths > 0).sum()))
            if started < episodes:  # the same environment goes on with the next episode
                running[row], is_first[row] = started, True
                obs[row] = world.reset(derive_seed(seed, EVALUATION, started))
                started += 1
                keep.append(row)
        if len(keep) < len(running):
            running, worlds = [running[k] for k in keep], [worlds[k] for k in keep]
            obs, is_first = obs[keep], is_first[keep]
            state = State(*(x[keep] for x in state))
    stats = {"episodes": float(episodes), "length": float(lengths.mean())}
    if all(success is not None for success in successes):
        stats["success"] = float(np.mean([bool(success) for success in successes]))
    stats |= calibration(rewards, values, bootstrap, agent.config.gamma)
    return np.array([sum(r) for r in rewards]), stats


def calibration(
    rewards: list[list[float]], values: list[list[float]], bootstrap: np.ndarray, gamma: float
) -> dict[str, float]:
    """How well the critic foresaw the discounted returns of whole episodes.

    rewards and values: of every step of each episode; bootstrap (episodes,): what is still to come
    after its end, the critic's last value after a time limit, else 0. Returns the means over all
    states, `value_pred` and `value_real`, and their correlation `value_corr` (0 where either is
    the same everywhere).
    """
    achieved = []
    for episode, after in zip(rewards, bootstrap, strict=True):
        ret, back = after, []
        for reward in reversed(episode):
            ret = reward + gamma * ret
            back.append(ret)
        achieved += back[::-1]
    predicted, real = np.concatenate(values), np.array(achieved)
    varies = predicted.std() * real.std() > 1e-9
    return {
        "value_pred": float(predicted.mean()),
        "value_real": float(real.mean()),
        "value_corr": float(np.corrcoef(predicted, real)[0, 1]) if varies else 0.0,
    }


def random_returns(env: EnvSpec, episodes: int = 100, seed: int = 0) -> np.ndarray:
    """Returns (episodes,) of uniformly random actions, one a step: what learning must beat."""
    with contextlib.closing(AgentEnv(env)) as world:
        choose = random_policy(world, 1, derive_seed(seed, EXPLORATION))
        seeds = [derive_seed(seed, EVALUATION, i) for i in range(episodes)]
        return np.array([play(world, choose, s)["reward"].sum(dtype=float) for s in seeds])


# ---------------------------------------------------------------- real episodes

Episode = dict[str, np.ndarray]  # rows as in the replay: obs (T, O), action (T, A), reward (T,),
#                                  cont (T,): 0 on the row where the task ended, else 1
Chooser = Callable[[np.ndarray, bool], np.ndarray]  # (obs (O,), is_first) -> action (A,)


def play(env: AgentEnv, choose: Chooser, seed: int) -> Episode:
    """One whole episode."""
    obs, reward = env.reset(seed), 0.0
    rows: list[tuple] = []
    terminated = done = False
    while not done:
        action = choose(obs, not rows)
        rows.append((obs, action, reward, 1.0))
        obs, reward, terminated, truncated = env.step(action)
        done = terminated or truncated
    rows.append((obs, np.zeros_like(action), reward, 0.0 if terminated else 1.0))
    columns = (np.array(column, np.float32) for column in zip(*rows, strict=True))
    return dict(zip(("obs", "action", "reward", "cont"), columns, strict=True))


def greedy_policy(agent: DreamerAgent, seed: int) -> Chooser:
    """For `play`: the greedy agent, filtering what it sees."""
    rng, state = torch.Generator(agent.device).manual_seed(seed), None

    def choose(obs: np.ndarray, is_first: bool) -> np.ndarray:
        nonlocal state
        action, state = agent.act(obs[None], np.array([is_first]), state, True, rng)
        return action[0] if agent.discrete else np.clip(action[0], -1, 1)

    return choose


def random_policy(env: AgentEnv, hold: int, seed: int) -> Chooser:
    """For `play`: random actions, each chosen for 1 to `hold` rows in turn."""
    rng, left = np.random.default_rng(seed), 0
    action = np.zeros(env.action_size, np.float32)

    def choose(obs: np.ndarray, is_first: bool) -> np.ndarray:
        nonlocal action, left
        if left == 0 or not env.allows(action):
            action, left = env.random_action(rng), int(rng.integers(1, hold + 1))
        left -= 1
        return action

    return choose


def film(agent: DreamerAgent, env: EnvSpec, seed: int) -> tuple[float, list[np.ndarray]]:
    """(return, pictures) of one episode of the greedy agent, the pictures as the environment draws
    them, one for each action."""
    config, options = agent.config, {"render_mode": "rgb_array"}
    greedy = greedy_policy(agent, derive_seed(seed, EVALUATION))  # as in `evaluate`
    frames: list[np.ndarray] = []

    def choose(obs: np.ndarray, is_first: bool) -> np.ndarray:
        frames.append(world._call("render", world.env.render))
        return greedy(obs, is_first)

    repeat, longest = config.action_repeat, config.max_episode_steps
    with contextlib.closing(AgentEnv(env, repeat, longest, **options)) as world:
        check_fit(agent, world)
        episode = play(world, choose, derive_seed(seed, EVALUATION, 0))
    return float(episode["reward"].sum()), frames


def need_pictures(env: EnvSpec, mode: str) -> bool:
    """Whether the environment draws itself in this mode. Raises ValueError for one that cannot draw
    itself at all."""
    with contextlib.closing(AgentEnv(env)) as plain:  # what fails here has nothing to do with it
        name, modes = plain.name, plain.env.metadata.get("render_modes") or ()
    try:
        if not {"human", "rgb_array"} & set(modes):
            raise NotImplementedError(f"render_modes: {list(modes)}")
        with warnings.catch_warnings(action="ignore"):
            with contextlib.closing(make(env, {"render_mode": mode})) as made:
                if mode == "rgb_array":  # no window opens for it
                    made.reset(seed=0)
                    if np.ndim(made.render()) != 3:
                        raise ValueError("no picture")
                return made.render_mode in (mode, None)  # None: it does not say
    except gym.error.Error:
        raise
    except Exception as error:
        raise ValueError(
            f"{name} cannot draw itself: its constructor must take render_mode, and "
            "metadata['render_modes'] must list 'rgb_array' (or 'human', for a window)"
        ) from error


# ---------------------------------------------------------------- dreams of them


@torch.inference_mode()
def filter_episode(agent: DreamerAgent, episode: Episode, seed: int) -> Tensor:
    """The agent's states feat (T, F) while it watches a whole episode."""
    obs, action = (torch.from_numpy(episode[k])[None].to(agent.device) for k in ("obs", "action"))
    is_first = torch.zeros(obs.shape[:2], dtype=torch.bool, device=agent.device)
    is_first[:, 0] = True
    rng = torch.Generator(agent.device).manual_seed(seed)
    post, _ = agent.rssm.observe(agent.encoder(obs), action, is_first, rng)
    return agent.rssm.get_feat(post)[0]


@torch.inference_mode()
def states_before(agent: DreamerAgent, episode: Episode, seed: int) -> State:
    """The state in the row before each row of a whole episode, (T, ...): zeros at its start."""
    c = agent.config
    feat = filter_episode(agent, episode, seed)[:-1]
    deter, stoch = feat.split([c.deter, c.categoricals * c.classes], -1)
    action = torch.from_numpy(episode["action"][:-1]).to(agent.device)
    states = deter, stoch.unflatten(-1, (c.categoricals, c.classes)), action
    return State(*(torch.cat([torch.zeros_like(x[:1]), x]) for x in states))


@torch.inference_mode()
def dream_on(
    agent: DreamerAgent,
    obs: Tensor,
    action: Tensor,
    is_first: Tensor,
    context: int,
    rng: torch.Generator,
    before: State | None = None,
) -> Tensor:
    """Watch `context` rows of N windows, then dream on with the prior alone, taking the real
    actions.

    obs (N, T, O), action (N, T, A), is_first (N, T) bool; before: the states in the rows before
    the windows, None where episodes start with them. Returns the states feat (N, T - context, F) of
    the dreamed rows. Only the first `context` observations are ever read, and the dream is made
    from the one state that they leave.
    """
    seen = slice(0, context)
    embed = agent.encoder(obs[:, seen])
    _, state = agent.rssm.observe(embed, action[:, seen], is_first[:, seen], rng, before)
    horizon = action.shape[1] - context
    dream = agent.rssm.imagine(state, lambda _, t: action[:, context - 1 + t], horizon, rng)
    return agent.rssm.get_feat(dream)[:, 1:]


@torch.inference_mode()
def open_loop(
    agent: DreamerAgent,
    obs: np.ndarray,
    action: np.ndarray,
    context: int,
    seed: int,
    before: State | None = None,
) -> Episode:
    """What `dream_on` says of windows that lie within episodes, in the environment's units.

    obs (N, T, O), action (N, T, A); before: see `dream_on`. Returns obs, reward and cont of the
    dreamed rows, with leading shape (N, T - context).
    """
    seen, actions = (torch.from_numpy(x).to(agent.device) for x in (obs[:, :context], action))
    is_first = torch.zeros(seen.shape[:2], dtype=torch.bool, device=agent.device)
    rng = torch.Generator(agent.device).manual_seed(seed)
    feat = dream_on(agent, seen, actions, is_first, context, rng, before)
    predicted = {
        "obs": agent.decoder.predict(feat),
        "reward": agent.reward.predict(feat),
        "cont": agent.cont.predict(feat),
    }
    return {name: value.cpu().numpy() for name, value in predicted.items()}


@torch.inference_mode()
def open_loop_error(
    agent: DreamerAgent, replay: ReplayBuffer, seed: int, context: int = 8
) -> dict[str, float]:
    """How wrong the dream is about replayed windows: `context` observed rows, then the prior alone.

    The model has learned from these windows: what it knows by heart is no error here. Mean absolute
    errors in normalised units (obs) and raw units (reward), of images the squared error summed over
    pixels as in the loss, and the errors of the naive guess that the last observed row repeats.
    Rows after an episode's end do not count.
    """
    steps = min(context + agent.config.imag_horizon, len(replay))
    if steps <= context:
        return {}
    rows = replay.sample(64, steps, np.random.default_rng(derive_seed(seed, PROBE)))
    batch = {k: torch.from_numpy(v).to(agent.device) for k, v in rows.items()}
    rng = make_rng(agent.device, seed, PROBE)
    before = State(*(batch[f"prev_{name}"] for name in State._fields))
    feat = dream_on(agent, batch["obs"], batch["action"], batch["is_first"], context, rng, before)
    real, recon = agent.encoder.norm(batch["obs"]), agent.decoder.mean(agent.decoder(feat))
    alive = (~batch["is_last"][:, context - 1 : -1]).cumprod(1).float()
    errors = {
        "dream_reward_error": (agent.reward.predict(feat) - batch["reward"][:, context:]).abs(),
    }
    if agent.obs_parts:
        numbers, last = agent.decoder.split(recon)[0], real[:, context - 1 : context]
        errors["dream_obs_error"] = (numbers - real[:, context:]).abs().mean(-1)
        errors["naive_obs_error"] = (last - real[:, context:]).abs().mean(-1)
    if agent.images:
        later, last = batch["obs"][:, context:], batch["obs"][:, context - 1 : context]
        errors["dream_image_error"] = agent.decoder.image_loss(recon, later)
        errors["naive_image_error"] = agent.decoder.image_loss(last / 255, later)
    total = alive.sum().clamp(min=1)
    return {name: float((error * alive).sum() / total) for name, error in errors.items()}
