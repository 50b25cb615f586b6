"""The tasks of DM Control: as Gymnasium wants them, trained and drawn with tiny networks."""

import json

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from lab import transfer

pytest.importorskip("dm_control", reason="NO DM CONTROL: lab.transfer is not tested (Python 3.13)")


@pytest.mark.filterwarnings("ignore")  # Gymnasium's advice on unbounded observations
def test_the_suite_is_an_environment_that_repeats_itself():
    env = transfer.ControlSuite("ball_in_cup_catch")
    check_env(env, skip_render_check=True)
    first, again, other = (env.reset(seed=seed)[0]["position"] for seed in (1, 1, 2))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    ends = [env.step(env.action_space.sample())[2:4] for _ in range(1000)]
    assert ends == [(False, False)] * 999 + [(False, True)]


def test_the_authors_numbers_are_read_at_their_steps():
    data = transfer.AUTHORS["walker_walk"]
    assert data["env_steps"][4] == 50_000
    assert transfer.theirs("walker_walk", 50_000) == np.mean([x[4] for x in data["returns"]])


@pytest.mark.scripts
def test_a_tiny_run_is_trained_judged_and_drawn(tmp_path, capsys):
    assert transfer.main(transfer.Flags(smoke=True, out=tmp_path)) == 0
    data = json.loads((tmp_path / "transfer" / "default_acrobot_swingup.json").read_text())
    assert data["threshold"] == transfer.theirs("acrobot_swingup", 50_000)
    assert (tmp_path / "transfer" / "transfer.png").exists()
    head, _, row, *_ = capsys.readouterr().out.partition("| Task")[2].splitlines()
    assert "theirs at 200k" in head and row.startswith("| acrobot_swingup | default |")
