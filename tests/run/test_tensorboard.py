"""What TensorBoard is told of a run."""

import sys
from collections import defaultdict
from unittest.mock import MagicMock, call

import gymnasium as gym
import numpy as np
import pytest
from conftest import quiet_train, tiny_config, walk
from faults import log_rows, timeless

from dreamer.tensorboard import CONTEXT


@pytest.fixture
def writer(monkeypatch):
    """In the place of TensorBoard's own: keeps what it is told."""
    module = MagicMock()
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    return module.SummaryWriter


def test_it_is_told_what_the_log_says_and_draws_dreams(finished, tmp_path, writer):
    """And changes nothing: the rows are those of a run without it."""
    run = quiet_train(walk(), tiny_config(evals=2), tmp_path, tensorboard=True)
    first, *calls, last = writer.mock_calls
    assert (first, last) == (call(tmp_path / "tensorboard", purge_step=1), call().close())
    told = defaultdict(dict)
    for _, (tag, value, step), _ in calls:
        told[tag][step] = value
    assert timeless(log_rows(tmp_path)) == timeless(log_rows(finished))
    assert "| train_ratio | 4.0 |" in told["config"][0]
    groups = {
        "episode": (run.episodes, "return length"),
        "evaluation": (run.evals, "return length value_corr dream_obs_error"),
        "world_model": (run.reports, "obs_loss reward_loss dyn_loss model_loss model_grad_norm"),
        "behaviour": (run.reports, "entropy imag_return actor_loss value loss"),
    }
    for group, (rows, names) in groups.items():
        assert len(rows) > 1
        for name in names.split():
            assert told[f"{group}/{name}"] == {row["step"]: row[name] for row in rows}
    assert list(told["dream"]) == [row["step"] for row in run.evals] == [30, 60]
    for figure in told["dream"].values():
        for i, ax in enumerate(figure.axes):
            real, dream = (line.get_xydata() for line in ax.lines)
            assert len(real) == CONTEXT + 4 and list(dream[:, 0]) == [8, 9, 10, 11]
            windows = np.lib.stride_tricks.sliding_window_view(run.replay.rows["obs"][:, i], 12)
            assert (windows == real[:, 1]).all(1).any()
        assert len(figure.axes) == 2


class Frames(gym.Env):
    """A picture of even brightness, which grows by 10 in each step."""

    observation_space = gym.spaces.Box(0, 255, (8, 8, 3), np.uint8)
    action_space = gym.spaces.Discrete(2)

    def reset(self, **_):
        self.picture = np.zeros((8, 8, 3), np.uint8)
        return self.picture, {}

    def step(self, action):
        self.picture = self.picture + np.uint8(10)
        return self.picture, 0.0, False, False, {}


def test_of_pictures_it_shows_real_frames_above_dreamed_ones(writer):
    quiet_train(Frames, tiny_config(evals=1, max_episode_steps=20), tensorboard=True)
    _, frames, step = writer.return_value.add_image.call_args.args
    assert (frames.shape, frames.dtype, step) == ((16, 12 * 8, 3), np.uint8, 60)
    assert (np.diff(frames[0, ::8, 0].astype(int)) == 10).all()
    assert not frames[8:, : CONTEXT * 8].any() and frames[8:, CONTEXT * 8 :].any()
    assert not writer.return_value.add_figure.called


def test_a_resumed_run_goes_on_where_it_was(tmp_path, writer):
    for resume in (False, True):
        quiet_train(walk(), tiny_config(), tmp_path, resume=resume, tensorboard=True)
    assert [made.kwargs["purge_step"] for made in writer.call_args_list] == [1, 61]
