"""The benchmark: what it times, how, and the file that it writes."""

import json
import math
import time
from dataclasses import replace

import pytest
from conftest import tiny_config

from lab import benchmark

NUMBERS = benchmark.NUMBERS


def test_the_replay_is_full_of_whole_episodes():
    layout = replace(NUMBERS, images=((8, 8, 1),))
    replay = benchmark.filled_replay(1000, layout, (4, 2, 3))
    assert len(replay) == 1000
    assert replay.rows["is_first"].nonzero()[0].tolist() == [0, 200, 400, 600, 800]
    for name in ("is_last", "is_terminal"):
        assert replay.rows[name].nonzero()[0].tolist() == [199, 399, 599, 799, 999]
    actions = replay.rows["action"]
    assert actions.shape == (1000, 2) and (actions.sum(1) == 1).all() and actions.any(0).all()
    assert replay.rows["obs"].std() > 0.9 and replay.rows["pixels"].std() > 70
    assert replay.can_sample(1000)


def test_times_are_medians_of_wall_and_cpu_in_turns():
    naps = iter([0.2, 0.01, 0.03, 0.2])  # the first is the warm-up
    order = []

    def nap():
        order.append("nap")
        time.sleep(next(naps))

    times = benchmark.time_in_turns({"nap": nap, "other": lambda: order.append("other")}, 3)
    assert order == ["nap", "other"] * 4
    wall, cpu = times["nap"]
    assert 30 <= wall < 150 and cpu < 15


def test_growth_varies_one_size_at_a_time(monkeypatch):
    made = []
    monkeypatch.setattr(benchmark, "make_update", lambda _, config: made.append(config) or int)
    config = tiny_config()
    growth = benchmark.measure_growth(NUMBERS, config, rounds=1)
    sizes = {"batch_size": 3, "seq_len": 6, "imag_starts": 7, "imag_horizon": 4}
    assert {name: list(line) for name, line in growth.items()} == {
        name: [size // 2, size, 2 * size]
        for name, size in {**sizes, "hidden and deter": 16}.items()
    }
    changed = [{k for k, v in vars(c).items() if v != vars(config)[k]} for c in made]
    assert changed[0] == changed[2] == {"batch_size"} and changed[1] == set()
    assert changed[-1] == {"hidden", "deter"}


def test_slow_simulators_are_stepped_at_the_same_time():
    """One gives at most 50 steps a second, however fast the machine; eight in turn no more."""
    config = tiny_config(envs=8)
    in_turn = benchmark.measure_acting(benchmark.Simulator, config, 3)
    together = replace(config, vectorization_mode="async")
    at_once = benchmark.measure_acting(benchmark.Simulator, together, 30)
    assert 25 < in_turn <= 50 and at_once > 3 * in_turn


def test_a_quick_run(tmp_path, monkeypatch, capsys):
    """`quick`, on tiny shapes: the file's content, and the tables."""
    path, threads_used, acting = tmp_path / "benchmark.json", [], benchmark.measure_acting
    shapes = {"default": tiny_config(), "matched": tiny_config(hidden=20, imag_starts=18)}
    monkeypatch.setattr(benchmark, "SHAPES", {k: (NUMBERS, c) for k, c in shapes.items()})
    monkeypatch.setattr(benchmark, "measure_acting", lambda env, config, _: acting(env, config, 3))
    monkeypatch.setattr(benchmark, "SIMULATORS", ((1, "sync"), (2, "sync")))
    monkeypatch.setattr(benchmark, "tune_cpu", threads_used.append)
    benchmark.main(quick=True, json=path)
    data = json.loads(path.read_text())
    assert threads_used == [1] and set(data["gflops"]) == {"1"}
    numbers = [data["gflops"]["1"], data["acting_steps_per_s"]]
    assert set(data["shapes"]) == {"default", "matched"}
    for shape in data["shapes"].values():
        assert {k: set(times) for k, times in shape.items()} == dict.fromkeys(
            ("update_ms", "cpu_ms"), {"1"}
        )
        numbers += [times["1"] for times in shape.values()]
    numbers += [ms for line in data["growth_ms"].values() for ms in line.values()]
    slow = data["simulator_steps_per_s"]
    numbers += slow.values()
    assert all(isinstance(n, float) and math.isfinite(n) and n > 0 for n in numbers)
    assert data["cpu"] and "torch" in data["versions"]

    printed = capsys.readouterr().out
    rows = [line.strip("| ").split(" | ") for line in printed.splitlines() if line[:1] == "|"]
    update = next(row for row in rows if row[:2] == ["matched", "1"])
    ms, cpu = (data["shapes"]["matched"][key]["1"] for key in ("update_ms", "cpu_ms"))
    assert update[2:] == [f"{ms:.1f}", f"{cpu:.1f}", f"{data['gflops']['1']:.1f}"]
    width = next(row for row in rows if row[0] == "hidden and deter")
    assert width[1:] == [f"{ms:.1f} ({n})" for n, ms in data["growth_ms"][width[0]].items()]
    gain = f"{slow['2 sync'] / slow['1 sync']:.1f} x"
    assert ["2 sync", f"{slow['2 sync']:.0f}", gain] in rows
    assert f"{data['acting_steps_per_s']:.0f} environment steps per second" in printed


def test_a_whole_run_measures_two_threads_and_ends_on_one(monkeypatch):
    threads_used = []
    monkeypatch.setattr(benchmark, "tune_cpu", threads_used.append)
    monkeypatch.setattr(benchmark, "time_in_turns", lambda jobs, _: dict.fromkeys(jobs, [2.0, 3.0]))
    monkeypatch.setattr(benchmark, "measure_acting", lambda *_: 100.0)
    monkeypatch.setattr(benchmark, "SHAPES", {"default": (NUMBERS, tiny_config())})
    data = benchmark.benchmark(quick=False)
    assert threads_used == [2, 1]
    assert data["shapes"]["default"] == {"update_ms": {2: 2.0, 1: 2.0}, "cpu_ms": {2: 3.0, 1: 3.0}}
    flop = 2 * 16_384 * 512 * 256
    assert data["gflops"] == {2: pytest.approx(flop / 2e-3 / 1e9), 1: pytest.approx(flop / 2e6)}
