"""What an agent is worth: greedy returns on fresh episodes, and how good its dreams are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from dreamer.agent import DreamerAgent
from dreamer.envs import AgentEnv, EnvSpec, make_envs
from dreamer.replay_buffer import ReplayBuffer
from dreamer.rssm import State, get_feat
from dreamer.utils import derive_seed, make_rng

# Streams of random numbers that `derive_seed` tells apart; others are in training.py.
EXPLORATION, EVALUATION, PROBE = 11, 12, 13


def evaluate(
    agent: DreamerAgent,
    env: EnvSpec,
    episodes: int = 100,
    seed: int = 0,
    greedy: bool = True,
    details: bool = False,
    **env_options: Any,
) -> np.ndarray | tuple[np.ndarray, dict[str, float]]:
    """Undiscounted returns (episodes,) of whole episodes on fresh environments.

    Episode i is reset with a seed derived from (seed, i), on a stream that training never uses;
    all episodes run side by side through one batched policy, which holds its actions as in training
    (`Config.action_repeat`). Training is not touched: the random numbers are the evaluation's own.
    `details` adds how well the critic's values were calibrated: `value_pred` and `value_real`, the
    mean predicted and achieved discounted return (after a time limit: the critic's last value), and
    `value_corr`, their correlation over states. env_options go to `gymnasium.make`, or to your own
    function: with `render_mode="human"` you can watch (one episode, unless you want a window for
    each). Raises ValueError for an environment that does not fit the agent, for a function that
    does not make a new one each time, and without episodes.
    """
    if episodes < 1:
        raise ValueError(f"evaluate needs at least 1 episode, got {episodes}")
    envs = make_envs(env, episodes, agent.config.action_repeat, **env_options)
    theirs = envs[0].obs_size, envs[0].action_size, envs[0].discrete
    ours = agent.obs_size, agent.action_size, agent.discrete
    if theirs != ours:
        raise ValueError(
            f"{envs[0].name} has (observation size, action size, discrete) {theirs}, but the agent "
            f"was made for {ours}"
        )
    rng = make_rng(agent.device, seed, EVALUATION)
    obs = np.stack([e.reset(derive_seed(seed, EVALUATION, i)) for i, e in enumerate(envs)])
    is_first, state = np.ones(episodes, bool), None
    running = np.arange(episodes)  # episode of each row of obs and state
    rewards: list[list[float]] = [[] for _ in range(episodes)]
    values: list[list[float]] = [[] for _ in range(episodes)]
    bootstrap = np.zeros(episodes)  # value after a time limit
    while len(running):
        action, state = agent.act(obs, is_first, state, greedy, rng)
        if details:
            with torch.inference_mode():
                value = agent.critic.predict(get_feat(state)).tolist()
            for i, v in zip(running, value, strict=True):
                values[i].append(v)
        keep = []
        for row, i in enumerate(running):
            obs[row], reward, terminated, truncated = envs[i].step(action[row])
            rewards[i].append(reward)
            if terminated or truncated:
                if truncated and not terminated and details:
                    bootstrap[i] = values[i][-1]
            else:
                keep.append(row)
        if len(keep) < len(running):
            running, obs = running[keep], obs[keep]
            state = State(*(x[keep] for x in state))
        is_first = np.zeros(len(running), bool)
    for e in envs:
        e.close()
    returns = np.array([sum(r) for r in rewards])
    if not details:
        return returns

    achieved = []
    for i in range(episodes):
        ret, gamma = bootstrap[i], agent.config.gamma
        back = []
        for reward in reversed(rewards[i]):
            ret = reward + gamma * ret
            back.append(ret)
        achieved += back[::-1]
    predicted = np.concatenate(values)
    achieved = np.array(achieved)
    spread = predicted.std() * achieved.std()
    corr = float(np.corrcoef(predicted, achieved)[0, 1]) if spread > 1e-9 else 0.0
    return returns, {
        "value_pred": float(predicted.mean()),
        "value_real": float(achieved.mean()),
        "value_corr": corr,
    }


def random_returns(env: EnvSpec, episodes: int = 100, seed: int = 0) -> np.ndarray:
    """Returns (episodes,) of uniformly random actions, one a step: what learning must beat."""
    world, rng = AgentEnv(env), np.random.default_rng(derive_seed(seed, EXPLORATION))
    returns = np.zeros(episodes)
    for i in range(episodes):
        world.reset(derive_seed(seed, EVALUATION, i))
        done = False
        while not done:
            _, reward, terminated, truncated = world.step(world.random_action(rng))
            returns[i] += reward
            done = terminated or truncated
    world.close()
    return returns


@torch.inference_mode()
def open_loop_error(
    agent: DreamerAgent, replay: ReplayBuffer, seed: int, context: int = 8
) -> dict[str, float]:
    """How wrong the dream is about replayed windows: `context` observed rows, then the prior alone.

    The model has learned from these windows: what it knows by heart is no error here. Mean absolute
    errors in normalised units (obs) and raw units (reward), and obs error of the
    naive guess that the last observed row repeats. Rows after an episode's end do not count.
    """
    steps = min(context + agent.config.imag_horizon, len(replay))
    if steps <= context:
        return {}
    batch = replay.sample(64, steps, np.random.default_rng(derive_seed(seed, PROBE)))
    rng = make_rng(agent.device, seed, PROBE)
    batch = {k: torch.from_numpy(v).to(agent.device) for k, v in batch.items()}
    embed = agent.encoder(batch["obs"][:, :context])
    _, state = agent.rssm.observe(
        embed, batch["action"][:, :context], batch["is_first"][:, :context], rng
    )
    actions = batch["action"][:, context - 1 : -1]
    dream = agent.rssm.imagine(state, lambda _, t: actions[:, t], steps - context, rng)
    feat = get_feat(dream)[:, 1:]
    real = agent.encoder.norm(batch["obs"])
    alive = (~batch["is_last"][:, context - 1 : -1]).cumprod(1).float()
    total = alive.sum().clamp(min=1)
    obs_error = (agent.decoder(feat) - real[:, context:]).abs().mean(-1)
    naive_error = (real[:, context - 1 : context] - real[:, context:]).abs().mean(-1)
    reward_error = (agent.reward.predict(feat) - batch["reward"][:, context:]).abs()
    return {
        "dream_obs_error": float((obs_error * alive).sum() / total),
        "naive_obs_error": float((naive_error * alive).sum() / total),
        "dream_reward_error": float((reward_error * alive).sum() / total),
    }


# ---------------------------------------------------------------- real episodes, and dreams of them

Episode = dict[str, np.ndarray]  # rows as in the replay: obs (T, O), action (T, A), reward (T,),
#                                  cont (T,): 0 on the row where the task ended, else 1


def play(env: AgentEnv, choose: Callable[[np.ndarray, bool], np.ndarray], seed: int) -> Episode:
    """One whole episode. choose: (obs (O,), is_first) -> action (A,)."""
    obs, reward, action = env.reset(seed), 0.0, None
    rows, terminated, done = [], False, False
    while not done:
        action = choose(obs, not rows)
        rows.append((obs, action, reward, 1.0))
        obs, reward, terminated, truncated = env.step(action)
        done = terminated or truncated
    rows.append((obs, np.zeros_like(action), reward, 0.0 if terminated else 1.0))
    columns = (np.array(column, np.float32) for column in zip(*rows, strict=True))
    return dict(zip(("obs", "action", "reward", "cont"), columns, strict=True))


def agent_chooses(agent: DreamerAgent, seed: int) -> Callable[[np.ndarray, bool], np.ndarray]:
    """For `play`: the greedy agent, filtering what it sees."""
    rng, state = torch.Generator(agent.device).manual_seed(seed), None

    def choose(obs: np.ndarray, is_first: bool) -> np.ndarray:
        nonlocal state
        action, state = agent.act(obs[None], np.array([is_first]), state, greedy=True, rng=rng)
        return action[0] if agent.discrete else np.clip(action[0], -1, 1)

    return choose


def chance_chooses(env: AgentEnv, hold: int, seed: int) -> Callable[[np.ndarray, bool], np.ndarray]:
    """For `play`: random actions, each chosen for 1 to `hold` rows in turn."""
    rng, action, left = np.random.default_rng(seed), None, 0

    def choose(obs: np.ndarray, is_first: bool) -> np.ndarray:
        nonlocal action, left
        if left == 0:
            action, left = env.random_action(rng), int(rng.integers(1, hold + 1))
        left -= 1
        return action

    return choose


@torch.inference_mode()
def filter_episode(agent: DreamerAgent, episode: Episode, seed: int) -> torch.Tensor:
    """The agent's states feat (T, F) while it watches a whole episode."""
    obs, action = (torch.from_numpy(episode[k])[None].to(agent.device) for k in ("obs", "action"))
    is_first = torch.zeros(obs.shape[:2], dtype=torch.bool, device=agent.device)
    is_first[:, 0] = True
    rng = torch.Generator(agent.device).manual_seed(seed)
    post, _ = agent.rssm.observe(agent.encoder(obs), action, is_first, rng)
    return get_feat(post)[0]


@torch.inference_mode()
def open_loop(
    agent: DreamerAgent, obs: np.ndarray, action: np.ndarray, context: int, seed: int
) -> Episode:
    """Watch `context` rows of N windows, then dream on with the prior alone, taking the real
    actions.

    obs (N, T, O); action (N, T, A). Returns the dream of rows context..T-1: obs, reward and cont
    with leading shape (N, T - context). Only the first `context` observations are ever read, and
    the dream is made from the one state that they leave.
    """
    seen = torch.from_numpy(obs[:, :context]).to(agent.device)
    action = torch.from_numpy(action).to(agent.device)
    is_first = torch.zeros(seen.shape[:2], dtype=torch.bool, device=agent.device)
    rng = torch.Generator(agent.device).manual_seed(seed)
    _, state = agent.rssm.observe(agent.encoder(seen), action[:, :context], is_first, rng)

    horizon = obs.shape[1] - context
    dream = agent.rssm.imagine(state, lambda _, t: action[:, context - 1 + t], horizon, rng)
    feat = get_feat(dream)[:, 1:]
    heads = {"obs": agent.decoder, "reward": agent.reward, "cont": agent.cont}
    return {name: head.predict(feat).cpu().numpy() for name, head in heads.items()}
