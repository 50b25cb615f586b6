"""A world model alone: what can be learned of CartPole from random actions, and dreamed of it.

No actor, no critic: encoder, RSSM, decoder, reward and continue head are fitted to episodes of
random actions. Then they are tested on episodes that they never saw. After 5 observed steps the
model dreams on with the prior alone, told only which actions are taken, and is compared with what
really happened, and with the naive guess that nothing changes.

You will see assets/01_world_model.png (losses, error against the length of the dream, rewards
and continues before the end of an episode) and assets/01_open_loop.png (one episode,
dimension by dimension). The numbers go to assets/results/world_model_demo.json.

    python 01_world_model_demo.py
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from dreamer.agent import Config, DreamerAgent
from dreamer.checkpoint import Log, load_checkpoint, read_log, save_checkpoint, write_json
from dreamer.envs import AgentEnv
from dreamer.evaluation import Episode, chance_chooses, filter_episode, open_loop, play
from dreamer.replay_buffer import ReplayBuffer
from dreamer.training import agent_part, interrupts
from dreamer.utils import derive_seed, pick_device, tune_cpu
from lab import cli, figures

ENV = "CartPole-v1"
CONFIG = Config(
    steps=5_000,  # of random actions: all that the model ever sees
    train_ratio=160,
    explore_hold=1,  # plain random actions: episodes last longest
)
CONTEXT = 5  # observed steps before a dream
HORIZON = 25  # steps of a dream
TRAINING, TESTING = 30, 31  # streams of random numbers


def random_episodes(seed: int, stream: int, hold: int) -> Iterator[Episode]:
    """Endless CartPole with random actions."""
    env, number = AgentEnv(ENV), 0
    choose = chance_chooses(env, hold, derive_seed(seed, stream))
    while True:
        yield play(env, choose, derive_seed(seed, stream, number))
        number += 1


def fill_replay(config: Config, agent: DreamerAgent) -> ReplayBuffer:
    """At least `config.steps` environment steps, as replay rows."""
    replay = ReplayBuffer(config.capacity, agent.obs_size, agent.action_size)
    steps = 0
    for episode in random_episodes(config.seed, TRAINING, config.explore_hold):
        last = len(episode["obs"]) - 1
        for t in range(last + 1):
            row = (episode[name][t] for name in ("obs", "action", "reward"))
            replay.add(*row, t == 0, t == last, episode["cont"][t] == 0)
        steps += last
        if steps >= config.steps:
            return replay


def fit(agent: DreamerAgent, replay: ReplayBuffer, run_dir: Path, resume: bool) -> float:
    """The world model's half of `DreamerAgent.update`, again and again. Returns the minutes.

    The log gets 200 rows, the checkpoint is written at the end and on Ctrl-C.
    """
    c = agent.config
    updates = max(1, c.updates_after(c.steps))
    optimizer, schedule = agent.optimizer, agent.schedule
    params = optimizer.param_groups[0]["params"]  # of the world model
    path = run_dir / "checkpoint.pt"
    done, minutes, log_size = 0, 0.0, 0
    if resume and path.exists():
        saved = load_checkpoint(path)
        if saved["config"] != dataclasses.asdict(c):
            cli.fail(
                f"{path} was made with another config: use its flags, or no --resume", status=1
            )
        agent.load_state_dict(saved["agent"])
        optimizer.load_state_dict(saved["optimizer"])
        schedule.load_state_dict(saved["schedule"])
        agent.rng.set_state(saved["agent_rng"])
        done, minutes, log_size = saved["progress"]
    log = Log(run_dir / "log.jsonl", log_size)
    write_json(run_dir / "config.json", {"env": ENV, **dataclasses.asdict(c)})

    bar = tqdm(total=updates, initial=done, unit="update")
    started = time.monotonic()
    with interrupts() as interrupted:
        while done < updates and not interrupted():
            rng = np.random.default_rng(derive_seed(c.seed, TRAINING, done))
            batch = replay.sample(c.batch_size, c.seq_len, rng)
            batch = {k: torch.from_numpy(v).to(agent.device) for k, v in batch.items()}
            _, _, loss, metrics = agent.learn_world(batch)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            if not torch.isfinite(loss):
                raise FloatingPointError(f"{ENV}: update {done + 1} gave a non-finite loss")
            nn.utils.clip_grad_norm_(params, c.grad_clip, foreach=True)
            optimizer.step()
            schedule.step()

            done += 1
            bar.update(1)
            if done % max(1, updates // 200) == 0 or done == updates:
                values = {name: value.item() for name, value in metrics.items()}
                log.write("report", done, **values)
                bar.set_postfix_str(f"loss {values['model_loss']:.2f}")
        stopped = interrupted()
    bar.close()
    minutes += (time.monotonic() - started) / 60
    value = {
        **agent_part(agent),
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
        "agent_rng": agent.rng.get_state(),
        "progress": [done, minutes, log.flush()],
    }
    save_checkpoint(path, value)
    log.close()
    if stopped:
        raise KeyboardInterrupt
    return minutes


def stack(episodes: list[Episode], rows: slice, length: int, pad: str) -> Episode:
    """The same rows of many episodes as (N, length, ...), NaN where an episode has none.

    pad: on which side rows are missing, "after" or "before".
    """
    stacked = {}
    for name in episodes[0]:
        parts = [episode[name][rows] for episode in episodes]
        out = np.full((len(parts), length, *parts[0].shape[1:]), np.nan, np.float32)
        for row, part in zip(out, parts, strict=True):
            row[slice(0, len(part)) if pad == "after" else slice(length - len(part), None)] = part
        stacked[name] = out
    return stacked


def test_dreams(agent: DreamerAgent, episodes: list[Episode]) -> dict[str, np.ndarray]:
    """Absolute errors (N, H) of dreams and of the naive guess at each length of the dream.

    Each dimension in units of its standard deviation in these episodes, then averaged over
    dimensions; NaN after the end of an episode.
    """
    spread = np.concatenate([episode["obs"] for episode in episodes]).std(0)
    real = stack(episodes, slice(0, CONTEXT + HORIZON), CONTEXT + HORIZON, "after")
    dream = open_loop(agent, real["obs"], np.nan_to_num(real["action"]), CONTEXT, seed=1)
    truth, last = real["obs"][:, CONTEXT:], real["obs"][:, CONTEXT - 1 : CONTEXT]
    return {
        "dream": (np.abs(dream["obs"] - truth) / spread).mean(-1),
        "naive": (np.abs(last - truth) / spread).mean(-1),
    }


def test_ends(agent: DreamerAgent, episodes: list[Episode], last: int = 8):
    """Reward and continue over the last rows of episodes (N, last): real, predicted from the
    filtered state, and dreamed from a context that ends before those rows."""
    found = {name: {"real": [], "filtered": [], "dreamed": []} for name in ("reward", "cont")}
    for i, episode in enumerate(episodes):
        feat = filter_episode(agent, episode, seed=i)
        context = len(episode["obs"]) - last
        window = (episode[name][None] for name in ("obs", "action"))
        dream = open_loop(agent, *window, context, seed=i)
        for name, head in (("reward", agent.reward), ("cont", agent.cont)):
            found[name]["real"].append(episode[name][-last:])
            with torch.inference_mode():
                found[name]["filtered"].append(head.predict(feat)[-last:].cpu().numpy())
            found[name]["dreamed"].append(dream[name][0])
    return {name: {k: np.array(v) for k, v in kinds.items()} for name, kinds in found.items()}


def main(args: cli.Args) -> None:
    config, device = args.config, pick_device(args.device)
    if device.type == "cpu":
        tune_cpu()
    env = AgentEnv(ENV)
    agent = DreamerAgent(env.obs_size, env.action_size, env.discrete, config, device)
    replay = fill_replay(config, agent)
    print(f"{len(replay)} rows of random {ENV}; the world model learns from them alone")
    minutes = fit(agent, replay, args.run_dir, args.resume)

    # Episodes that the model has not seen, long enough for the context and the last rows.
    source = random_episodes(config.seed, TESTING, config.explore_hold)
    fresh = [next(source) for _ in range(30 if args.smoke else 600)]
    tested = [episode for episode in fresh if len(episode["obs"]) > CONTEXT + 8]
    error = test_dreams(agent, tested)
    ends = test_ends(agent, tested[:200])

    reports = read_log(args.run_dir / "log.jsonl", "report")
    title = f"World model of {ENV}, learned from {config.steps:,} random steps"
    figures.world_model_figure(title, reports, error, ends, args.assets / "01_world_model.png")

    # One of them that ends just where the dream does.
    shown = min(tested, key=lambda episode: abs(len(episode["obs"]) - CONTEXT - HORIZON))
    real = {name: rows[: CONTEXT + HORIZON] for name, rows in shown.items()}
    window = (np.repeat(real[name][None], 32, 0) for name in ("obs", "action"))
    dreams = open_loop(agent, *window, CONTEXT, seed=2)
    figures.dream_figure(
        f"Open loop: {CONTEXT} observed steps, then the prior alone (random {ENV}, unseen episode)",
        figures.OBS_NAMES[ENV],
        CONTEXT,
        real,
        dreams,
        args.assets / "01_open_loop.png",
    )

    lengths = [
        length for length in (1, 5, 10, 15, 25) if np.isfinite(error["dream"][:, length - 1]).any()
    ]
    mean_error = {
        name: {length: float(np.nanmean(error[name][:, length - 1])) for length in lengths}
        for name in error
    }
    wrong = {
        kind: float(((ends["cont"][kind] > 0.5) != (ends["cont"]["real"] > 0.5)).mean())
        for kind in ("filtered", "dreamed")
    }
    write_json(
        args.results / "world_model_demo.json",
        {
            "env_id": ENV,
            "seed": config.seed,
            "random_steps": config.steps,
            "test_episodes": len(tested),
            "minutes": round(minutes, 2),
            "context": CONTEXT,
            "error_by_dream_length": mean_error,
            "reward_error": {
                kind: float(np.abs(ends["reward"][kind] - ends["reward"]["real"]).mean())
                for kind in ("filtered", "dreamed")
            },
            "cont_wrong": wrong,
        },
    )
    result = {"minutes": minutes, "config": dataclasses.asdict(config)}
    write_json(args.run_dir / "result.json", result)
    far = lengths[-1]
    print(
        f"World model of {ENV}: {far} dreamed steps ahead the error is "
        f"{mean_error['dream'][far]:.2f} of the data's spread (nothing changes: "
        f"{mean_error['naive'][far]:.2f}); {minutes:.1f} minutes; figures in {args.assets}"
    )


if __name__ == "__main__":
    cli.run(main, cli.parse(__file__, __doc__, CONFIG))
