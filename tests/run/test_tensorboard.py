"""What TensorBoard is told of a run."""

import importlib.util
import sys
from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import quiet_train, tiny_config, walk

from dreamer.tensorboard import CONTEXT, PANEL, dream_picture


class Writer:
    """In the place of TensorBoard's own: keeps what it is told."""

    def __init__(self, folder, purge_step):
        self.folder, self.purge_step, self.closed = folder, purge_step, False
        self.told = defaultdict(dict)
        Writer.made.append(self)

    def add_scalar(self, tag, value, step):
        self.told[tag][step] = value

    add_text = add_image = add_scalar

    def close(self):
        self.closed = True


@pytest.fixture
def writers(monkeypatch):
    Writer.made = []
    module = SimpleNamespace(SummaryWriter=Writer)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    return Writer.made


def test_without_tensorboard_nothing_is_touched(tmp_path, monkeypatch):
    quiet_train(walk(), run_dir=tmp_path)
    before = sorted(path.name for path in tmp_path.iterdir())
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install tensorboard"):
        quiet_train(walk(), run_dir=tmp_path, tensorboard=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_every_row_of_the_log_is_there_in_groups(tmp_path, writers):
    config = tiny_config(evals=2, steps=120)
    run = quiet_train(walk(), config, tmp_path, tensorboard=True)
    (writer,) = writers
    assert (writer.folder, writer.purge_step, writer.closed) == (tmp_path / "tensorboard", 1, True)
    groups = {"episode": run.episodes, "evaluation": run.evals}
    for group, rows in groups.items():
        assert len(rows) >= 2
        returns = {row["step"]: row["return"] for row in rows}
        assert writer.told[f"{group}/return"] == returns
    assert len(run.reports) > 20
    for tag, name in [
        ("world_model/obs_loss", "obs_loss"),
        ("world_model/model_grad_norm", "model_grad_norm"),
        ("behaviour/entropy", "entropy"),
        ("behaviour/imag_return", "imag_return"),
    ]:
        assert writer.told[tag] == {row["step"]: row[name] for row in run.reports}
    known = {"config", "dream", "all/loss"}
    for name in run.reports[0].keys() - {"kind", "step", "update", "loss"}:
        known |= {f"world_model/{name}", f"behaviour/{name}"}
    for name in {*run.evals[0], *run.episodes[0]} - {"kind", "step", "returns"}:
        known |= {f"evaluation/{name}", f"episode/{name}"}
    assert set(writer.told) <= known
    assert "| train_ratio | 4.0 |" in writer.told["config"][0]


def test_a_resumed_run_goes_on_where_it_was(tmp_path, writers):
    quiet_train(walk(), tiny_config(), tmp_path, tensorboard=True)
    quiet_train(walk(), tiny_config(), tmp_path, resume=True, tensorboard=True)
    assert writers[1].purge_step == 61


def test_a_dream_is_drawn_at_each_evaluation_and_changes_nothing(tmp_path, writers):
    config = tiny_config(evals=3, steps=240)
    drawn = quiet_train(walk(), config, tmp_path / "drawn", tensorboard=True)
    plain = quiet_train(walk(), config, tmp_path / "plain")
    assert [e["return"] for e in drawn.evals] == [e["return"] for e in plain.evals]
    assert [r["loss"] for r in drawn.reports] == [r["loss"] for r in plain.reports]
    pictures = writers[0].told["dream"]
    assert list(pictures) == [row["step"] for row in drawn.evals]
    for picture in pictures.values():
        assert picture.dtype == np.uint8
        assert picture.shape == (3, drawn.env.obs_size * PANEL[1], PANEL[0])


def test_the_dream_begins_where_the_model_no_longer_sees():
    """Here every episode has ten rows; the model sees the first five of them."""
    config = tiny_config(steps=240, evals=0)
    run = quiet_train(walk(drift=0), config)
    assert run.replay.rows["is_last"][:30].nonzero()[0].tolist() == [9, 19, 29]
    assert CONTEXT + config.imag_horizon > 10
    red, green, blue = dream_picture(run).astype(int)
    columns = ((red > 150) & (green < 60) & (blue < 60)).any(0).nonzero()[0]
    assert columns.min() == pytest.approx(10 + 5 * (PANEL[0] - 20) / 9, abs=3)
    assert columns.max() == pytest.approx(PANEL[0] - 10, abs=3)


def test_a_full_disk_costs_tensorboard_alone(tmp_path, writers, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Writer, "add_scalar", full)
    with pytest.warns(UserWarning, match="TensorBoard's log is not written: .*No space left"):
        run = quiet_train(walk(), tiny_config(), tmp_path, tensorboard=True)
    assert run.step == 60 and (tmp_path / "agent.pt").exists()
