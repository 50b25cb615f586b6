"""What TensorBoard is told of a run."""

import sys
from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import quiet_train, tiny_config, walk
from faults import log_rows, timeless

from dreamer.tensorboard import CONTEXT


class Writer:
    """In the place of TensorBoard's own: keeps what it is told."""

    def __init__(self, folder, purge_step):
        self.folder, self.purge_step, self.closed = folder, purge_step, False
        self.told = defaultdict(dict)
        Writer.made.append(self)

    def add_scalar(self, tag, value, step):
        self.told[tag][step] = value

    add_text = add_figure = add_scalar

    def close(self):
        self.closed = True


@pytest.fixture
def writers(monkeypatch):
    monkeypatch.setattr(Writer, "made", [], raising=False)
    module = SimpleNamespace(SummaryWriter=Writer)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    return Writer.made


def test_it_is_told_what_the_log_says_and_draws_dreams(finished, tmp_path, writers):
    """And changes nothing: the rows are those of a run without it."""
    run = quiet_train(walk(), tiny_config(evals=2), tmp_path, tensorboard=True)
    (writer,) = writers
    told = writer.told
    assert (writer.folder, writer.purge_step, writer.closed) == (tmp_path / "tensorboard", 1, True)
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


def test_a_resumed_run_goes_on_where_it_was(tmp_path, writers):
    for resume in (False, True):
        quiet_train(walk(), tiny_config(), tmp_path, resume=resume, tensorboard=True)
    assert [writer.purge_step for writer in writers] == [1, 61]
