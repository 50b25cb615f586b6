"""What the ablations' runs say, against numbers worked by hand."""

import math

import pytest

from lab import effects


def run(task, variant, seed, returns, dream_error=None):
    curve = {"env_steps": list(range(len(returns))), "return": returns}
    head = {"task": task, "variant": variant, "seed": seed}
    return {**head, "curve": curve, "dream_error": dream_error}


def make_data(seeds=5):
    """Two tasks: random policy at 0 and -10, threshold at 100 and 0. Without memory the score of
    'a' falls by 0.5 to 0.54, without symlog nothing changes but by luck, of either sign. Dreams of
    15 steps are wrong by 0.1, without memory by 0.3 to 0.34."""
    runs, zero = [], [0.0] * 14
    for seed in range(seeds):
        luck = (-1) ** seed * 10
        runs += [
            run("a", "full", seed, [50, 100], [*zero, 0.1, 9.0]),
            run("a", "memory", seed, [0, 50 - 2 * seed], [*zero, 0.3 + 0.01 * seed, 0.0]),
            run("a", "symlog", seed, [50 + luck, 100 + luck], [*zero, 0.1, 0.0]),
            run("b", "full", seed, [-10, 0]),
            run("b", "memory", seed, [0, 10 + seed]),
        ]
    ways = {"methods": [], "scale": 1.0}
    a = ways | {"title": "Task A", "ideas": ["symlog", "memory"]}
    b = ways | {"title": "Task B", "ideas": ["memory"], "threshold": 0, "random_return": -10.0}
    return {
        "ideas": {"symlog": "no symlog", "memory": "no memory"},
        "tasks": {"a": a | {"threshold": 100, "random_return": 0.0}, "b": b},
        "dreams": {"task": "a"},
        "scales": ["a", "b"],
        "runs": runs,
    }


def test_intervals_by_hand():
    """Differences 1 and 3: mean 2, standard deviation sqrt(2), standard error 1."""
    effect = effects.compare({0: 1.0, 1: 4.0}, {0: 0.0, 1: 1.0})
    assert (effect.mean, effect.seeds, effect.sign) == (2.0, 2, 0)
    assert (effect.low, effect.high) == pytest.approx((2 - 12.7062, 2 + 12.7062))
    one = effects.compare({0: 3.0, 5: 9.0}, {0: 1.0})
    assert (one.mean, one.low, one.high, one.seeds, one.sign) == (2, 2, 2, 1, 0)
    nothing = effects.compare({0: 3.0}, {1: 3.0})
    assert nothing.seeds == nothing.sign == 0 and math.isnan(nothing.mean)


@pytest.mark.parametrize(("returns", "score"), [([50, 100], 0.75), ([50], 0.25), ([], 0.0)])
def test_scores_by_hand(returns, score):
    """Where a run broke down, the rest counts as random."""
    data = make_data(1)
    data["runs"][0]["curve"]["return"] = returns
    assert effects.measures(data, "full") == {"a": {0: score}, "b": {0: 0.5}, "dreams": {0: 0.1}}
    assert effects.measures(data, "symlog") == {"a": {0: 0.85}, "dreams": {0: 0.1}}


def test_table_by_hand():
    head, full, symlog, memory = effects.effects_table(make_data())
    assert head == ["Idea removed", "Task A", "Task B", "Dream error, 15 steps"]
    assert full[1:] == ["0.75", "0.50", "0.10"]
    assert symlog == ["symlog", "+0.02", "", "+0.00"]
    assert memory == ["memory", "**-0.52**", "**+1.10**", "**+0.22**"]
    for row in effects.effects_table(make_data(0))[1:]:
        assert set(row[1:]) <= {"?", ""}


def test_table_of_scales_by_hand():
    data = make_data(2)
    data["tasks"]["b"] |= {"scale": 10_000.0, "methods": ["ppo"]}
    data["runs"] += [run("b", "ppo", 0, [-4.0]), run("b", "ppo", 1, [-6.0])]
    data["runs"][0]["curve"]["return"] = [50]  # broke down
    plain = {"ppo": [80.0, 70.0, 80.0, 80.0, 80.0], "sac": []}
    assert effects.scales_table(data, plain) == [
        ["Rewards", "x 1", "x 10,000"],
        ["Dreamer", "50 (0, 2 of 5 seeds)", "0 (0, 2 of 5 seeds)"],
        ["Dreamer without memory", "49 (48, 2 of 5 seeds)", "10 (10, 2 of 5 seeds)"],
        ["PPO", "78 (70)", "-5 (-6, 2 of 5 seeds)"],
        ["SAC", "?", "?"],
    ]
