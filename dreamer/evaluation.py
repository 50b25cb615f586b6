"""What an agent is worth: greedy returns on fresh episodes, and how good its dreams are."""

import contextlib
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from gymnasium.envs.registration import EnvSpec
from torch import Tensor

from dreamer.agent import DreamerAgent
from dreamer.envs import AgentEnv, MakeEnv, VectorEnv, make_envs
from dreamer.replay_buffer import Layout, ReplayBuffer
from dreamer.rssm import State
from dreamer.utils import derive_seed, make_rng

# Streams of random numbers that `derive_seed` tells apart; others are in run.py.
EXPLORATION, EVALUATION, PROBE = 11, 12, 13
FRAMES = 400  # pictures of a film, at most


# ---------------------------------------------------------------- returns


def evaluate(
    agent: DreamerAgent,
    env: MakeEnv | None = None,
    episodes: int = 100,
    seed: int = 0,
    greedy: bool = True,
    envs: int = 20,
    details: bool = False,
    **env_options: Any,
) -> Any:
    """Undiscounted returns (episodes,) of whole episodes.

    env: None is the one that the agent learned in. Episode i is reset with a seed derived from
    (seed, i), on a stream that training never uses. envs: how many environments play at once,
    through one batched policy that holds its actions as in training; with 1 the episodes come one
    after the other in one environment. `details` makes it a tuple (returns, dict): see
    `evaluate_in`. env_options go to `gymnasium.make`, or to your own function: with
    `render_mode="human"` you can watch (one environment, unless you want several windows).

    Raises ValueError for an environment that does not fit the agent and for numbers out of range.
    """
    for name, value, least in ("episodes", episodes, 1), ("seed", seed, 0), ("envs", envs, 1):
        if not isinstance(value, int | np.integer) or value < least:
            raise ValueError(f"{name} must be a whole number from {least} on, got {value!r}")
    env = env_of(agent) if env is None else env
    made = make_envs(env, min(episodes, envs), agent.config, **env_options)
    with contextlib.closing(made):
        returns, stats = evaluate_in(agent, made, episodes, seed, greedy)
    return (returns, stats) if details else returns


def env_of(agent: DreamerAgent) -> EnvSpec:
    """How Gymnasium makes the environment that the agent learned in, arguments and wrappers
    included. Raises ValueError where a function made it that no file can hold."""
    if agent.env_spec is None:
        raise ValueError(
            "the agent does not say how to make its environment, as a function made it: name the "
            "function (or on the command line an id, with --env)"
        )
    return EnvSpec.from_json(agent.env_spec)


def check_fit(agent: DreamerAgent, layout: Layout) -> None:
    """Raises ValueError for an environment whose observations or actions are not the agent's."""
    if layout != agent.layout:
        raise ValueError(f"the environment has {layout}, but the agent was made for {agent.layout}")


def evaluate_in(
    agent: DreamerAgent,
    envs: VectorEnv,
    episodes: int,
    seed: int,
    greedy: bool = True,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[np.ndarray, dict[str, float]]:
    """`evaluate` in existing environments, made by `make_envs`, which stay open.

    progress: called with the number of finished episodes. Returns the returns (episodes,) and
    `length`, their mean length in steps of the environment, `success`, the share of them with a
    true `info["is_success"]` at their end (where all say so), and the critic's `calibration`.
    """
    check_fit(agent, envs.get_attr("layout")[0])
    rng, state = make_rng(agent.device, seed, EVALUATION), None
    rewards: list[list[float]] = [[] for _ in range(episodes)]
    values: list[list[float]] = [[] for _ in range(episodes)]
    ends: list[dict[str, float]] = [{} for _ in range(episodes)]
    episode = np.arange(envs.num_envs)  # that each one plays; from `episodes` on it idles

    def begin(which: np.ndarray) -> np.ndarray:
        """Start the episodes of these environments; those that have none left idle."""
        seeds: list[Any] = [derive_seed(seed, EVALUATION, int(i)) for i in episode]
        idle = [seeds[k] for k in (episode >= episodes).nonzero()[0]]
        return envs.reset(seed=seeds, options={"reset_mask": which, "idle": idle})[0]

    is_first = np.ones(envs.num_envs, bool)
    obs = begin(is_first)
    while (playing := (episode < episodes).nonzero()[0]).size:
        action, state = agent.act(obs, is_first, state, greedy, rng)
        with torch.inference_mode():
            value = agent.critic.predict(agent.rssm.get_feat(state)).tolist()
        obs, reward, terminated, truncated, info = envs.step(action)
        is_first = terminated | truncated
        for k in playing:
            i = episode[k]
            rewards[i].append(float(reward[k]))
            values[i].append(value[k])
            if is_first[k]:  # the value counts on after a time limit
                named = ("return", "length", "success")
                ends[i] = {n: float(info[n][k]) for n in named if n in info and info[f"_{n}"][k]}
                ends[i]["after"] = 0.0 if terminated[k] else value[k]
                episode[k] = 1 + episode.max()  # the next one
                progress(sum(map(bool, ends)))
        if is_first.any():
            obs = begin(is_first)
    stats = {"episodes": float(episodes), "length": float(np.mean([e["length"] for e in ends]))}
    if all("success" in end for end in ends):
        stats["success"] = float(np.mean([end["success"] for end in ends]))
    bootstrap = np.array([end["after"] for end in ends])
    stats |= calibration(rewards, values, bootstrap, agent.config.gamma)
    return np.array([end["return"] for end in ends]), stats


def calibration(
    rewards: list[list[float]], values: list[list[float]], bootstrap: np.ndarray, gamma: float
) -> dict[str, float]:
    """How well the critic foresaw the discounted returns of whole episodes.

    rewards and values: of every step of each episode; bootstrap (episodes,): what is still to come
    after its end, the critic's last value after a time limit, else 0. Returns the means over all
    states, `value_pred` and `value_real`, and their correlation `value_corr` (0 where either is
    the same everywhere).
    """
    achieved: list[float] = []
    for episode, after in zip(rewards, bootstrap, strict=True):
        back = itertools.accumulate(episode[::-1], lambda ret, r: r + gamma * ret, initial=after)
        achieved += [*back][:0:-1]
    predicted, real = np.concatenate(values), np.array(achieved)
    varies = predicted.std() * real.std() > 1e-9
    return {
        "value_pred": float(predicted.mean()),
        "value_real": float(real.mean()),
        "value_corr": float(np.corrcoef(predicted, real)[0, 1]) if varies else 0.0,
    }


def random_returns(env: MakeEnv, episodes: int = 100, seed: int = 0) -> np.ndarray:
    """Returns (episodes,) of uniformly random actions, one a step: what learning must beat."""
    with contextlib.closing(AgentEnv(env)) as world:
        policy = random_policy(world, 1, derive_seed(seed, EXPLORATION))
        seeds = [derive_seed(seed, EVALUATION, i) for i in range(episodes)]
        return np.array([play(world, policy, s)["reward"].sum(dtype=float) for s in seeds])


# ---------------------------------------------------------------- real episodes

Episode = dict[str, np.ndarray]  # rows as in the replay: obs (T, O), action (T, A), reward (T,),
#                                  cont (T,): 0 on the row where the task ended, else 1
RowPolicy = Callable[[np.ndarray, bool], np.ndarray]  # (obs (O,), is_first) -> action (A,)


def play(env: AgentEnv, policy: RowPolicy, seed: int) -> Episode:
    """Play one whole episode."""
    (obs, _), reward = env.reset(seed=seed), 0.0
    rows: list[tuple] = []
    terminated = done = False
    while not done:
        action = policy(obs, not rows)
        rows.append((obs, action, reward, 1.0))
        obs, reward, terminated, truncated, _ = env.step(action)
        done = terminated or truncated
    rows.append((obs, np.zeros_like(action), reward, 0.0 if terminated else 1.0))
    columns = (np.array(column, np.float32) for column in zip(*rows, strict=True))
    return dict(zip(("obs", "action", "reward", "cont"), columns, strict=True))


def greedy_policy(agent: DreamerAgent, seed: int) -> RowPolicy:
    """For `play`: the greedy agent, filtering what it sees."""
    rng, state = torch.Generator(agent.device).manual_seed(seed), None

    def policy(obs: np.ndarray, is_first: bool) -> np.ndarray:
        nonlocal state
        action, state = agent.act(obs[None], np.array([is_first]), state, True, rng)
        return action[0] if agent.layout.discrete else np.clip(action[0], -1, 1)

    return policy


def random_policy(env: AgentEnv, hold: int, seed: int) -> RowPolicy:
    """For `play`: random actions, each taken for 1 to `hold` rows in turn."""
    rng, left, action = np.random.default_rng(seed), 0, np.zeros(0)

    def policy(obs: np.ndarray, is_first: bool) -> np.ndarray:
        nonlocal action, left
        if left == 0:
            action, left = env.random_action(rng), int(rng.integers(1, hold + 1))
        left -= 1
        return action

    return policy


def film(agent: DreamerAgent, env: MakeEnv, seed: int) -> tuple[float, list[np.ndarray]]:
    """(return, pictures) of one episode of the greedy agent, uint8 (H, W, 3), as the environment
    draws them, one for each action. Of a long episode only every second, fourth, ... is kept.
    Raises ValueError where it draws none."""
    greedy = greedy_policy(agent, derive_seed(seed, EVALUATION))  # as in `evaluate`
    frames: list[np.ndarray] = []
    rows, every = 0, 1

    def policy(obs: np.ndarray, is_first: bool) -> np.ndarray:
        nonlocal rows, every
        if rows % every == 0:
            frames.append(as_picture(world.render(), world.name))
        if len(frames) > FRAMES:
            del frames[1::2]
            every *= 2
        rows += 1
        return greedy(obs, is_first)

    repeat, longest = agent.config.action_repeat, agent.config.max_episode_steps
    with contextlib.closing(AgentEnv(env, repeat, longest, render_mode="rgb_array")) as world:
        check_fit(agent, world.layout)
        episode = play(world, policy, derive_seed(seed, EVALUATION, 0))
    return float(episode["reward"].sum()), frames


def as_picture(drawn: Any, name: str) -> np.ndarray:
    """What `render` gave, as uint8 (H, W, 3): floats from 0 to 1, whole numbers and one channel
    are converted."""
    picture = np.asarray(drawn)
    if picture.ndim == 2:
        picture = picture[..., None]
    if picture.ndim != 3 or picture.shape[-1] not in (1, 3):
        raise ValueError(
            f"{name} draws no picture: its constructor must take render_mode='rgb_array', and "
            f"`render` return (height, width, 3); it gave {drawn!r:.60}"
        )
    if picture.dtype.kind == "f" and picture.max() <= 1:
        picture = picture * 255
    return np.broadcast_to(picture.clip(0, 255), (*picture.shape[:2], 3)).astype(np.uint8)


# ---------------------------------------------------------------- dreams of them


@torch.inference_mode()
def filter_episode(agent: DreamerAgent, episode: Episode, seed: int) -> State:
    """The agent's state in each row of a whole episode that it watches, (T, ...)."""
    obs, action = (torch.from_numpy(episode[k])[None].to(agent.device) for k in ("obs", "action"))
    is_first = torch.zeros(obs.shape[:2], dtype=torch.bool, device=agent.device)
    is_first[:, 0] = True
    rng = torch.Generator(agent.device).manual_seed(seed)
    post, _ = agent.rssm.observe(agent.encoder(obs), action, is_first, rng)
    return State(post.deter[0], post.stoch[0], action[0])


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
    heads: dict[str, Any] = {"obs": agent.decoder, "reward": agent.reward, "cont": agent.cont}
    return {name: head.predict(feat).cpu().numpy() for name, head in heads.items()}


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
    steps = min(context + agent.config.imag_horizon, int(replay.size.min()))
    if steps <= context:
        return {}
    rows = replay.sample(64, steps, np.random.default_rng(derive_seed(seed, PROBE)))
    batch = {k: torch.from_numpy(v).to(agent.device) for k, v in rows.items()}
    rng = make_rng(agent.device, seed, PROBE)
    before = State(*(batch[f"prev_{name}"] for name in State._fields))
    feat = dream_on(agent, batch["obs"], batch["action"], batch["is_first"], context, rng, before)
    recon = agent.decoder.mean(agent.decoder(feat))
    alive = (~batch["is_last"][:, context - 1 : -1]).cumprod(1).float()
    errors = {
        "dream_reward_error": (agent.reward.predict(feat) - batch["reward"][:, context:]).abs()
    }
    if agent.layout.vector_size:
        real = agent.encoder.normalise(agent.decoder.split(batch["obs"])[0])
        vector, last = agent.decoder.split(recon)[0], real[:, context - 1 : context]
        errors["dream_obs_error"] = (vector - real[:, context:]).abs().mean(-1)
        errors["naive_obs_error"] = (last - real[:, context:]).abs().mean(-1)
    if agent.layout.images:
        later, last = batch["obs"][:, context:], batch["obs"][:, context - 1 : context]
        errors["dream_image_error"] = agent.decoder.image_loss(recon, later)
        errors["naive_image_error"] = agent.decoder.image_loss(last.expand_as(later) / 255, later)
    total = alive.sum().clamp(min=1)
    return {name: float((error * alive).sum() / total) for name, error in errors.items()}
