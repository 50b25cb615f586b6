"""How fast one gradient update is, on one thread and on two, and how fast this machine is.

    python -m lab.benchmark                       all of it, some minutes
    python -m lab.benchmark --quick --json FILE   fewer repetitions; the numbers go to FILE

Two shapes: `default`, our `Config`, and `matched`, the size that other implementations are usually
timed at. Beside the updates, in turns, runs the *matrix rate*: the largest matrix products of the
matched update alone. It says what the machine gives at that moment, so that times of two machines,
or of a busy and an idle one, can be compared: milliseconds times GFLOP/s.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Hashable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from dreamer.agent import DreamerAgent
from dreamer.checkpoint import write_json
from dreamer.config import Config
from dreamer.envs import AgentEnv
from dreamer.replay_buffer import ReplayBuffer
from dreamer.run import tune_cpu
from lab.results import cpu_name, markdown, significant, versions

MATCHED = dict(batch_size=16, seq_len=64, deter=256, hidden=256, layers=2)
MATCHED |= dict(categoricals=16, classes=16, imag_starts=1024, imag_horizon=15)
SHAPES = {"default": Config(), "matched": Config(**MATCHED)}
GROWTH = {  # what is halved and doubled -> the fields of `Config`
    "batch": ("batch_size",),
    "window": ("seq_len",),
    "starts": ("imag_starts",),
    "horizon": ("imag_horizon",),
    "width": ("hidden", "deter"),
}
OBS_SIZE, ACTION_SIZE = 4, 2  # CartPole's
EPISODE = 200  # rows of each made-up episode; every other one ends by a time limit
REPLAY_ROWS = (1_000, 10_000, 100_000, 1_000_000)


# ---------------------------------------------------------------- what is timed


def filled_replay(rows: int) -> ReplayBuffer:
    """A full buffer of random observations and actions in episodes of `EPISODE` rows."""
    rng = np.random.default_rng(0)
    step, episode = np.arange(rows) % EPISODE, np.arange(rows) // EPISODE
    action = np.eye(ACTION_SIZE, dtype=np.float32)[rng.integers(0, ACTION_SIZE, rows)]
    is_last = step == EPISODE - 1
    columns = {
        "obs": rng.standard_normal((rows, OBS_SIZE), np.float32),
        "action": action * ~is_last[:, None],
        "reward": (step > 0).astype(np.float32),
        "is_first": step == 0,
        "is_last": is_last,
        "is_terminal": is_last & (episode % 2 == 0),
    }
    replay = ReplayBuffer(rows, OBS_SIZE, ACTION_SIZE)
    state = {name: torch.from_numpy(column) for name, column in columns.items()}
    replay.load_state_dict({**state, "capacity": rows, "head": 0})
    return replay


def make_update(config: Config) -> Callable[[], Any]:
    """A function that makes one update of a fresh agent."""
    agent = DreamerAgent(OBS_SIZE, ACTION_SIZE, True, config)
    replay = filled_replay(max(10 * EPISODE, config.seq_len))
    batch = replay.sample(config.batch_size, config.seq_len, np.random.default_rng(1))
    return lambda: agent.update(batch)


def main_products(c: Config) -> dict[tuple[int, int, int], int]:
    """The largest matrix products of an update, forwards: (rows, inner, columns) -> how often.

    Four heads (reward, continue, critic and slow critic) read all dreamed states, three of them
    end in bins; the dreams are made step by step, by GRU, prior and actor. At the matched shape
    that is more than half of an update's operations. GRU and latent are as large as a layer there.
    """
    starts, steps, states = c.num_starts, c.imag_horizon, c.num_starts * (c.imag_horizon + 1)
    feat, width, bins = c.deter + c.categoricals * c.classes, c.hidden, 255
    return {
        (states, feat, width): 4,
        (states, width, width): 4 * (c.layers - 1),
        (states, width, bins): 3,
        (starts, feat, width): steps,  # the actor's first layer
        (starts, width + c.deter, 3 * c.deter): steps,  # the GRU
        (starts, width, width): (c.layers + 2) * steps,  # rest of the actor, GRU's input, prior
    }


def make_products(config: Config) -> tuple[float, Callable[[], None]]:
    """Floating-point operations of `main_products`, in billions, and a function that makes them."""
    operations, calls = 0, []
    for (rows, inner, columns), count in main_products(config).items():
        operations += 2 * rows * inner * columns * count
        calls.append((count, torch.randn(rows, inner), torch.randn(columns, inner)))

    def multiply() -> None:
        for count, x, weight in calls:
            for _ in range(count):
                F.linear(x, weight)

    return operations / 1e9, multiply


# ---------------------------------------------------------------- timing


def time_in_turns(
    jobs: dict[Hashable, Callable[[], Any]], rounds: int
) -> dict[Hashable, tuple[float, float]]:
    """Median milliseconds of each job, by the clock on the wall and of the processor, all threads
    together. Each runs once as a warm-up and then once in every round, so that a busy moment slows
    all alike."""
    times: dict[Hashable, list[tuple[float, float]]] = {name: [] for name in jobs}
    for job in jobs.values():
        job()
    for _ in range(rounds):
        for name, job in jobs.items():
            wall, cpu = time.perf_counter(), time.process_time()
            job()
            times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {
        name: (1e3 * median(wall for wall, _ in pairs), 1e3 * median(cpu for _, cpu in pairs))
        for name, pairs in times.items()
    }


def measure_growth(config: Config, rounds: int) -> dict[str, dict[int, float]]:
    """Milliseconds of an update when one size is halved, left and doubled: name -> size -> ms."""
    jobs = {}
    for name, fields in GROWTH.items():
        for factor in (0.5, 1, 2):
            size = int(factor * getattr(config, fields[0]))
            jobs[name, size] = make_update(replace(config, **dict.fromkeys(fields, size)))
    growth: dict[str, dict[int, float]] = {name: {} for name in GROWTH}
    for (name, size), (wall, _) in time_in_turns(jobs, rounds).items():
        growth[name][size] = wall
    return growth


def measure_acting(config: Config, steps: int) -> float:
    """Environment steps a second in CartPole, the agent choosing every action."""
    env = AgentEnv("CartPole-v1")
    agent = DreamerAgent(env.obs_size, env.action_size, env.discrete, config)
    obs, done, state = env.reset(0), True, None
    started = time.perf_counter()
    for step in range(steps):
        action, state = agent.act(obs[None], np.array([done]), state)
        obs, _, terminated, truncated = env.step(action[0])
        if done := terminated or truncated:
            obs = env.reset(step)
    seconds = time.perf_counter() - started
    env.close()
    return steps / seconds


def measure_replay(config: Config, rounds: int) -> dict[int, float]:
    """Microseconds to sample one batch: rows held -> time."""
    rng, replays = np.random.default_rng(0), {rows: filled_replay(rows) for rows in REPLAY_ROWS}

    def sampler(rows: int) -> Callable[[], Any]:
        return lambda: replays[rows].sample(config.batch_size, config.seq_len, rng)

    times = time_in_turns({rows: sampler(rows) for rows in REPLAY_ROWS}, rounds)
    return {rows: 1e3 * wall for rows, (wall, _) in times.items()}


# ---------------------------------------------------------------- all of it


def benchmark(quick: bool) -> dict[str, Any]:
    """Everything measured, as the JSON file holds it."""
    rounds, default = 3 if quick else 15, SHAPES["default"]
    result: dict[str, Any] = {
        "gflops": {},
        "shapes": {shape: {"update_ms": {}, "cpu_ms": {}} for shape in SHAPES},
    }
    for threads in (1, 2):
        tune_cpu(threads)
        gflop, multiply = make_products(SHAPES["matched"])
        jobs = {shape: make_update(config) for shape, config in SHAPES.items()}
        times = time_in_turns({**jobs, "products": multiply}, rounds)
        result["gflops"][str(threads)] = significant(1e3 * gflop / times["products"][0])
        for shape, values in result["shapes"].items():
            for clock, ms in zip(("update_ms", "cpu_ms"), times[shape], strict=True):
                values[clock][str(threads)] = significant(ms)
    tune_cpu()
    growth = measure_growth(default, 3 if quick else 7)
    replay = measure_replay(default, 20 if quick else 200)
    return {
        **result,
        "acting_steps_per_s": significant(measure_acting(default, 500 if quick else 3_000)),
        "growth_ms": {
            name: {str(size): significant(ms) for size, ms in line.items()}
            for name, line in growth.items()
        },
        "replay_sample_us": {str(rows): significant(us) for rows, us in replay.items()},
        "quick": quick,
        "cpu": cpu_name(),
        "versions": versions(),
    }


def report(result: dict[str, Any]) -> str:
    """The numbers of `benchmark` as tables."""
    updates = [["Shape", "Threads", "ms per update", "CPU ms", "Updates per s", "Matrix GFLOP/s"]]
    for shape, values in result["shapes"].items():
        for threads, ms in values["update_ms"].items():
            cpu, rate = values["cpu_ms"][threads], result["gflops"][threads]
            updates.append(
                [shape, threads, f"{ms:.1f}", f"{cpu:.1f}", f"{1e3 / ms:.2f}", f"{rate:.1f}"]
            )
    growth = [["ms per update with", "half", "default", "double"]]
    for name, line in result["growth_ms"].items():
        growth.append([name, *(f"{ms:.1f} ({size})" for size, ms in line.items())])
    replay = [["Rows held", "μs to sample a batch"]]
    replay += [[f"{int(rows):,}", f"{us:.0f}"] for rows, us in result["replay_sample_us"].items()]
    acting = f"Acting in CartPole: {result['acting_steps_per_s']:.0f} environment steps per second."
    measured = f"Measured on: {result['cpu']}{' (quick)' if result['quick'] else ''}."
    return "\n\n".join([*map(markdown, (updates, growth, replay)), acting, measured])


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer repetitions: about a minute")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    args = parser.parse_args(argv)
    started = time.perf_counter()
    result = benchmark(args.quick)
    if args.json:
        write_json(args.json, result)
    print(f"{report(result)}\nTook {time.perf_counter() - started:.0f} seconds.")


if __name__ == "__main__":
    main()
