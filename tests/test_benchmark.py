"""The benchmark: what it counts, how it times, and the file that it writes."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
import torch
from conftest import tiny_config
from torch.utils.flop_counter import FlopCounterMode

from dreamer.networks import FeatLinear, OneHotFeat, sum_rows
from dreamer.rssm import State
from lab import benchmark, results


def test_dense_rows_equal_the_sum():
    rows, index = torch.randn(12, 5), torch.randint(0, 4, (2, 7, 3))
    slow = torch.zeros(2, 7, 5)
    for i in np.ndindex(2, 7):
        for group in range(3):
            slow[i] += rows[4 * group + index[i][group]]
    torch.testing.assert_close(benchmark.dense_sum_rows(rows, index), slow)
    torch.testing.assert_close(sum_rows(rows, index), slow)


def test_operations_of_one_layer_and_its_gradient():
    layer = FeatLinear(12 + 6 * 4, 5)
    feat = OneHotFeat(torch.randn(9, 12), torch.randint(0, 4, (9, 6)))
    with benchmark.dense_latents(), FlopCounterMode(display=False) as counter:
        layer(feat).sum().backward()
    forward = 2 * 9 * (12 + 6 * 4) * 5
    assert counter.get_total_flops() == 2 * forward  # and the weight's gradient; no input's


def test_operations_of_the_rollout():
    c = tiny_config(layers=2)
    agent, _ = benchmark.make_update(c)
    latent, states = c.categoricals * c.classes, 5
    deter, stoch = torch.zeros(states, c.deter), torch.zeros(states, c.categoricals, c.classes)
    start = State(deter, stoch, torch.zeros(states, 2))

    def policy(feat, t):
        return agent.actor(feat).mode()

    with torch.no_grad(), benchmark.dense_latents(), FlopCounterMode(display=False) as counter:
        agent.rssm.imagine(start, policy, c.imag_horizon, agent.rng)
    actor = (c.deter + latent) * c.hidden + c.hidden * c.hidden + c.hidden * 2
    gru = (latent + 2) * c.hidden + (c.hidden + c.deter) * 3 * c.deter
    prior = c.deter * c.hidden + c.hidden * latent
    assert counter.get_total_flops() == 2 * states * c.imag_horizon * (actor + gru + prior)


def test_recorded_products_are_all_that_is_counted():
    flops, products = benchmark.count_update(tiny_config())
    assert flops == sum(p.flops * n for p, n in products.items()) > 0
    main = benchmark.main_products(products)
    assert sum(p.flops * n for p, n in main.items()) >= benchmark.COVER * flops
    assert len(main) < len(products)


def test_the_rate_is_of_big_products():
    _, products = benchmark.count_update(benchmark.SHAPES["matched"])
    for product in benchmark.main_products(products):
        assert max(product.shape_a) >= 1000, product


def test_product_is_timed_on_operands_of_the_same_layout():
    product = benchmark.Product((1024, 8), (1, 1024), (8, 300), (512, 1))
    repeats, job = benchmark.make_product(product)
    with benchmark.ProductRecorder() as recorder, FlopCounterMode(display=False) as counter:
        job()
    assert recorder.products == {product: repeats}
    assert counter.get_total_flops() == repeats * product.flops == repeats * 2 * 1024 * 8 * 300


def test_times_are_medians_of_wall_and_cpu():
    naps = iter([0.2, 0.01, 0.03, 0.2])  # the first is the warm-up
    order = []

    def nap():
        order.append("nap")
        time.sleep(next(naps))

    times = benchmark.time_in_turns({"nap": nap, "other": lambda: order.append("other")}, 3)
    assert order == ["nap", "other"] * 4
    assert 30 <= times["nap"].wall < 150
    assert times["nap"].cpu < 15


def test_stages_add_up_and_leave_the_agent_as_it_was():
    config = tiny_config()
    agent, _ = benchmark.make_update(config)
    before = [getattr(owner, name) for _, owner, name in benchmark.stage_calls(agent)]
    stages = benchmark.measure_stages(config, rounds=1)
    assert set(stages) == {
        "world model", "rollout", "heads", "actor", "critic", "backward", "optimiser", "other"
    }  # fmt: skip
    assert all(ms > 0 for ms in stages.values())
    assert stages["other"] < 0.5 * sum(stages.values())
    assert before == [getattr(owner, name) for _, owner, name in benchmark.stage_calls(agent)]


def test_inner_calls_belong_to_the_outer_stage():
    stages = benchmark.Stages()
    inner = stages.timed("inner", lambda: time.sleep(0.02))
    stages.timed("outer", inner)()
    assert set(stages.seconds) == {"outer"} and stages.seconds["outer"] >= 0.02
    inner()
    assert stages.seconds["inner"] >= 0.02


def test_synthetic_replay_has_realistic_flags():
    replay = benchmark.synthetic_replay(1000)
    rows = replay.rows
    assert rows["is_first"].sum() == rows["is_last"].sum() == 5
    assert rows["is_first"][0] and rows["is_first"][200] and rows["is_last"][199]
    assert rows["is_terminal"].sum() == 3 and not (rows["is_terminal"] & ~rows["is_last"]).any()
    assert (rows["reward"][rows["is_first"]] == 0).all()
    assert (rows["action"].sum(1) == ~rows["is_last"]).all()


@pytest.fixture(scope="module")
def quick_run(tmp_path_factory):
    """`--quick` on tiny shapes: (folder, what was printed, numbers of threads asked for).

    All of it runs on one thread: two, on tensors this small and beside other processes, would
    spend minutes in waiting for each other.
    """
    folder = tmp_path_factory.mktemp("benchmark")
    shapes = {"default": tiny_config(), "matched": tiny_config(hidden=20, imag_starts=18)}
    words = ["--quick", "--json", str(folder / "benchmark.json"), "--figures", str(folder)]
    printed, threads = [], []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark, "SHAPES", shapes)
        patch.setattr(benchmark, "REPLAY_ROWS", (100, 1000))
        patch.setattr(benchmark, "tune_cpu", lambda number=1: threads.append(number))
        patch.setattr("builtins.print", lambda *text, **_: printed.append(" ".join(text)))
        benchmark.main(words)
    return folder, "\n".join(printed), threads


def test_json_of_a_quick_run(quick_run):
    folder, _, threads_used = quick_run
    assert threads_used == [1, 1, 2, 1]
    data = json.loads((folder / "benchmark.json").read_text())
    assert set(data["gflops"]) == {"1", "2"} and set(data["shapes"]) == {"default", "matched"}
    for shape in data["shapes"].values():
        for threads in ("1", "2"):
            floor = 1e3 * shape["gflop"] / data["gflops"][threads]
            assert shape["floor_ms"][threads] == pytest.approx(floor, rel=0.01)
            assert shape["update_ms"][threads]["eager"] > shape["floor_ms"][threads]
            assert shape["update_ms"][threads]["compiled"] is None
            assert shape["cpu_ms"][threads]["eager"] > 0
    flops, _ = benchmark.count_update(tiny_config())
    assert data["shapes"]["default"]["gflop"] == pytest.approx(flops / 1e9, rel=0.001)
    assert data["growth"]["batch"]["base"] in data["growth"]["batch"]["values"]
    assert set(data["replay_sample_us"]) == {"100", "1000"}
    assert data["acting_steps_per_s"] > 1


def test_figures_and_table_of_a_quick_run(quick_run):
    folder, printed, _ = quick_run
    for name in ("benchmark_breakdown.png", "benchmark_growth.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    table = results.benchmark_table(folder)
    assert table in printed
    data = json.loads((folder / "benchmark.json").read_text())
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows[2:]] == ["| default"] * 2 + ["| matched"] * 2
    eager = data["shapes"]["matched"]["update_ms"]["2"]["eager"]
    assert f"{eager:.1f}" in rows[-1]


def test_table_before_the_first_measurement(tmp_path):
    assert results.benchmark_table(tmp_path).startswith("Not measured yet")
