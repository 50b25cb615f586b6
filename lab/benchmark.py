"""How fast one gradient update is, and how fast this machine is.

    python -m lab.benchmark                       on one thread and on two, some minutes
    python -m lab.benchmark --quick --json FILE   one thread, fewer rounds; the numbers go to FILE

Three shapes: `default`, our `Config`, on CartPole's four numbers; `image`, the same on pictures of
64 x 64 pixels; and `matched`, at which others are usually timed. In turns with the updates runs the
matched one's largest matrix product: compare machines by ms times its GFLOP/s.
"""

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from lab.cli import full_path
from lab.results import cpu_name, markdown, versions
import numpy as np
import torch

from dreamer import AgentEnv, Config, DreamerAgent
from dreamer.checkpoint import write_json
from dreamer.replay_buffer import ReplayBuffer
from dreamer.run import tune_cpu

MATCHED = dict(batch_size=16, seq_len=64, deter=256, hidden=256, layers=2)
MATCHED |= dict(categoricals=16, classes=16, imag_starts=1024, imag_horizon=15)
SHAPES = {"default": Config(), "image": Config(), "matched": Config(**MATCHED)}
IMAGES = {"image": (64, 64, 3)}  # shape -> (H, W, C) of what it observes in place of the numbers
GROWTH = (("batch_size",), ("seq_len",), ("imag_starts",), ("imag_horizon",), ("hidden", "deter"))
OBS_SIZE, ACTION_SIZE, EPISODE = 4, 2, 200  # CartPole's sizes; rows of each made-up episode


def filled_replay(rows: int, state: tuple[int, int, int], pixels: int = 0) -> ReplayBuffer:
    """A full buffer of random observations and actions; every episode terminates. pixels: of an
    image in place of the numbers."""
    rng = np.random.default_rng(0)
    obs_size = pixels or OBS_SIZE
    replay = ReplayBuffer(rows, obs_size, ACTION_SIZE, (ACTION_SIZE,), state, pixels)
    replay.rows["obs"][:] = rng.standard_normal((rows, obs_size - pixels))
    if pixels:
        replay.rows["pixels"][:] = rng.integers(0, 256, (rows, pixels), np.uint8)
    replay.rows["action"][:, 0] = rng.integers(0, ACTION_SIZE, rows)
    replay.rows["reward"][:] = 1
    for name, row in (("is_first", 0), ("is_last", -1), ("is_terminal", -1)):
        replay.rows[name][row % EPISODE :: EPISODE] = True
    replay.size = rows
    return replay


def make_update(config: Config, image: tuple[int, ...] = ()) -> Callable[[], Any]:
    """A function that makes one update of a fresh agent. image: the shape of what it observes,
    numbers if empty."""
    pixels, images = (math.prod(image), [image]) if image else (0, [])
    agent = DreamerAgent(pixels or OBS_SIZE, ACTION_SIZE, True, config, images=images)
    sizes = config.batch_size, config.seq_len
    replay = filled_replay(10 * EPISODE, agent.rssm.sizes, pixels)
    batch = replay.sample(*sizes, np.random.default_rng(1))
    return lambda: agent.update(batch)


def time_in_turns(jobs: dict[Any, Callable[[], Any]], rounds: int) -> dict[Any, list[float]]:
    """Median milliseconds of each job, [by the clock on the wall, of the processor], after a
    warm-up; in turns, so that a busy moment slows all alike."""
    times = {name: [] for name in jobs}
    for _ in range(1 + rounds):
        for name, job in jobs.items():
            wall, cpu = time.perf_counter(), time.process_time()
            job()
            times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {name: (1e3 * np.median(pairs[1:], axis=0)).tolist() for name, pairs in times.items()}


def measure_growth(config: Config, rounds: int) -> dict[str, dict[int, float]]:
    """Milliseconds of an update when one size is halved, left and doubled: name -> size -> ms."""
    growth = {}
    for fields in GROWTH:
        sizes = [int(factor * getattr(config, fields[0])) for factor in (0.5, 1, 2)]
        jobs = {n: make_update(replace(config, **dict.fromkeys(fields, n))) for n in sizes}
        times = time_in_turns(jobs, rounds)
        growth[" and ".join(fields)] = {size: wall for size, (wall, _) in times.items()}
    return growth


def measure_acting(config: Config, steps: int) -> float:
    """Environment steps a second in CartPole, the agent choosing every action."""
    env = AgentEnv("CartPole-v1")
    agent = DreamerAgent(env.obs_size, env.action_size, env.segments, config)
    obs, done, state, started = env.reset(0), True, None, time.perf_counter()
    for step in range(steps):
        action, state = agent.act(obs[None], np.array([done]), state)
        obs, _, terminated, truncated = env.step(action[0])
        if done := terminated or truncated:
            obs = env.reset(step)
    return steps / (time.perf_counter() - started)


def benchmark(quick: bool) -> dict[str, Any]:
    """Everything measured, as the JSON file holds it: updates by number of threads, the default
    shape's growth and acting on one."""
    gflops, shapes = {}, {shape: {"update_ms": {}, "cpu_ms": {}} for shape in SHAPES}
    x, weight = torch.randn(16_384, 512), torch.randn(512, 256)  # all dreamed states; a layer
    for threads in (1,) if quick else (2, 1):
        tune_cpu(threads)
        jobs = {name: make_update(c, IMAGES.get(name, ())) for name, c in SHAPES.items()}
        jobs["product"] = lambda: x @ weight
        times = time_in_turns(jobs, 3 if quick else 15)
        gflops[threads] = 2e-6 * x.numel() * weight.shape[1] / times["product"][0]
        for shape, values in shapes.items():
            values["update_ms"][threads], values["cpu_ms"][threads] = times[shape]
    config = SHAPES["default"]
    return {
        "gflops": gflops,
        "shapes": shapes,
        "growth_ms": measure_growth(config, 3 if quick else 7),
        "acting_steps_per_s": measure_acting(config, 500 if quick else 3_000),
        "cpu": cpu_name(),
        "versions": versions(),
    }


def tables(result: dict[str, Any]) -> str:
    """The numbers of `benchmark`, to be read."""
    updates = [["Shape", "Threads", "ms per update", "CPU ms", "GFLOP/s"]]
    for shape, values in result["shapes"].items():
        for threads, ms in values["update_ms"].items():
            numbers = ms, values["cpu_ms"][threads], result["gflops"][threads]
            updates.append([shape, str(threads), *(f"{number:.1f}" for number in numbers)])
    growth = [["ms per update with", "half", "default", "double"]]
    for name, line in result["growth_ms"].items():
        growth.append([name, *(f"{ms:.1f} ({size})" for size, ms in line.items())])
    acting = f"Acting in CartPole: {result['acting_steps_per_s']:.0f} environment steps per second"
    return "\n\n".join([*map(markdown, (updates, growth)), acting, result["cpu"]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one thread, about a minute")
    parser.add_argument("--json", type=full_path, help="write the numbers to this file")
    flags = parser.parse_args()
    result = benchmark(flags.quick)
    if flags.json:
        write_json(flags.json, result)
    print(tables(result))


if __name__ == "__main__":
    main()
