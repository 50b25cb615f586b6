"""A world model alone: what it learns of CartPole from random actions, and how well it dreams.

No actor, no critic: encoder, RSSM, decoder, reward and continue head are fitted to episodes of
random actions, in about a minute. Then, in episodes that they never saw, the model observes 5 steps
and dreams on with the prior alone, told only which actions are taken. It is compared with what
really happened, and with the naive guess that nothing changes.

You will see 01_world_model.png (losses, error against the length of the dream, the end of an
episode) and 01_open_loop.png (one episode) in runs/01_world_model_demo, with result.json.

    python 01_world_model_demo.py
"""

import dataclasses
import itertools
import time
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from dreamer import AgentEnv, Config, DreamerAgent
from dreamer.checkpoint import write_json
from dreamer.evaluation import Episode, filter_episode, open_loop, play, random_policy
from dreamer.machine import pick_device, tune_cpu
from dreamer.replay_buffer import ReplayBuffer
from dreamer.utils import derive_seed
from lab import cli, figures, style
from lab.visualize import dream_errors, first

ENV, NAMES = "CartPole-v1", style.OBS_NAMES["CartPole-v1"]
CONFIG = Config(
    steps=5_000,  # of random actions: all that the model ever sees
    prefill=0,  # all of them are learned from
    train_ratio=64,
    explore_hold=1,  # plain random actions: episodes last longest
)
CONTEXT = 5  # observed steps before a dream
HORIZON = 25  # steps of a dream
LAST = 8  # rows before an episode's end, in which the model should see it coming
TRAINING, TESTING = 30, 31  # streams of random numbers


def random_episodes(env: AgentEnv, seed: int, stream: int, hold: int) -> Iterator[Episode]:
    """Endless episodes of random actions."""
    policy = random_policy(env, hold, derive_seed(seed, stream))
    for number in itertools.count():
        yield play(env, policy, derive_seed(seed, stream, number))


def fill_replay(agent: DreamerAgent, episodes: Iterator[Episode]) -> ReplayBuffer:
    """At least `steps` environment steps, as replay rows."""
    replay, steps = ReplayBuffer(agent.config.capacity, agent.layout, agent.rssm.sizes), 0
    while steps < agent.config.steps:
        episode = next(episodes)
        last = len(episode["obs"]) - 1
        for t in range(last + 1):
            row = {name: episode[name][t : t + 1] for name in ("obs", "action", "reward")}
            end = episode["cont"][t] == 0
            replay.add(**row, is_first=t == 0, is_last=t == last, is_terminal=end)
        steps += last
    return replay


def learn(agent: DreamerAgent, replay: ReplayBuffer) -> list[dict[str, float]]:
    """The world model's half of `DreamerAgent.update`, again and again. Returns rows of metrics,
    about 200, as a run's log would hold them."""
    c, reports = agent.config, []
    updates = max(1, c.updates_after(c.steps))
    params = agent.optimizer.param_groups[0]["params"]  # of the world model
    rng = np.random.default_rng(derive_seed(c.seed, TRAINING))
    for done in (bar := tqdm(range(1, updates + 1), unit="update")):
        windows = replay.sample(c.batch_size, c.seq_len, rng)
        batch = {name: torch.from_numpy(rows).to(agent.device) for name, rows in windows.items()}
        loss, metrics, post, _ = agent.world_model_loss(batch)
        agent.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(params, c.grad_clip, foreach=True)
        agent.optimizer.step()
        agent.schedule.step()
        replay.refresh(windows["index"], post)

        if done % max(1, updates // 200) == 0:
            values = {name: value.item() for name, value in metrics.items()}
            reports.append({"kind": "report", "step": done, **values})
            bar.set_postfix_str(f"loss {loss.item():.2f}", refresh=False)
    return reports


def end_predictions(agent: DreamerAgent, episodes: list[Episode]) -> dict[str, np.ndarray]:
    """Whether an episode goes on, over its last rows (N, LAST): `real`, the probability `filtered`
    while watching, and `dreamed` from a context that ends before those rows."""
    rows = []
    for i, episode in enumerate(episodes):
        feat = agent.rssm.get_feat(filter_episode(agent, episode, seed=i))[-LAST:]
        window = (episode[name][None] for name in ("obs", "action"))
        dream = open_loop(agent, *window, len(episode["obs"]) - LAST, seed=i)
        with torch.inference_mode():
            filtered = agent.cont.predict(feat).cpu().numpy()
        rows.append((episode["cont"][-LAST:], filtered, dream["cont"][0]))
    return dict(zip(("real", "filtered", "dreamed"), np.stack(rows, 1), strict=True))


def numbers(error: dict[str, np.ndarray], cont: dict[str, np.ndarray]) -> dict:
    """The error of dreams by their length, and the share of rows in which an end was foreseen where
    there was none, or the other way round."""
    alive = np.isfinite(error["dream"]).any((0, 2))
    lengths = [n for n in (1, 5, 10, 15, 25) if alive[n - 1]]
    means = {k: {n: float(np.nanmean(x[:, n - 1])) for n in lengths} for k, x in error.items()}
    wrong = {k: (cont[k] > 0.5) != (cont["real"] > 0.5) for k in ("filtered", "dreamed")}
    cont_wrong = {kind: float(rows.mean()) for kind, rows in wrong.items()}
    return {"error_by_dream_length": means, "cont_wrong": cont_wrong}


def main(args: cli.Args) -> None:
    config, device, folder = args.config, pick_device(args.device), args.run_dir
    (folder / "result.json").unlink(missing_ok=True)  # the mark of a complete run
    if device.type == "cpu":
        tune_cpu()
    env, started, seed = AgentEnv(ENV), time.monotonic(), config.seed
    agent = DreamerAgent(env.layout, config, device)
    replay = fill_replay(agent, random_episodes(env, seed, TRAINING, config.explore_hold))
    reports = learn(agent, replay)
    minutes = (time.monotonic() - started) / 60

    # Episodes that the model has not seen, long enough for the context and the last rows.
    source = random_episodes(env, seed, TESTING, config.explore_hold)
    fresh = [next(source) for _ in range(30 if args.smoke else 600)]
    tested = [episode for episode in fresh if len(episode["obs"]) > CONTEXT + LAST]
    parts = [first(episode, CONTEXT + HORIZON) for episode in tested]
    error, ends = dream_errors(agent, parts, CONTEXT, HORIZON), end_predictions(agent, tested[:200])
    title = f"World model of {ENV}, learned from {config.steps:,} random steps"
    figures.world_model_figure(title, NAMES, reports, error, ends, folder / "01_world_model.png")

    # One of them that ends just where the dream does.
    fits = min(tested, key=lambda episode: abs(len(episode["obs"]) - CONTEXT - HORIZON))
    real = first(fits, CONTEXT + HORIZON)
    window = (np.repeat(real[name][None], 32, 0) for name in ("obs", "action"))
    dreams = open_loop(agent, *window, CONTEXT, seed=2)
    title = f"An episode that it never saw: {CONTEXT} steps observed, then dreamed"
    figures.dream_figure(title, NAMES, CONTEXT, real, dreams, folder / "01_open_loop.png")

    found = numbers(error, ends)
    about = {"env_id": ENV, "seed": seed, "random_steps": config.steps, "context": CONTEXT}
    about |= {"test_episodes": len(tested), "minutes": round(minutes, 2)}
    about |= found | {"config": dataclasses.asdict(config)}
    write_json(folder / "result.json", about)
    dreamed, naive = (list(by.items())[-1] for by in found["error_by_dream_length"].values())
    print(
        f"In {minutes:.1f} minutes it learned to dream {ENV}: {dreamed[0]} steps ahead the error "
        f"is {dreamed[1]:.2f} of the data's spread (that nothing changes: {naive[1]:.2f}); figures "
        f"in {cli.short(folder)}"
    )


if __name__ == "__main__":
    cli.run(main, cli.parse(__file__, __doc__, CONFIG))
