"""What TensorBoard is told of a run."""

import sys
from collections import defaultdict
from types import SimpleNamespace

import pytest
from conftest import quiet_train, tiny_config, walk

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
    Writer.made = []
    module = SimpleNamespace(SummaryWriter=Writer)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    return Writer.made


def test_without_tensorboard_nothing_is_touched(tmp_path, monkeypatch):
    quiet_train(walk(), run_dir=tmp_path)
    before = sorted(path.name for path in tmp_path.iterdir())
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError):
        quiet_train(walk(), run_dir=tmp_path, resume=True, tensorboard=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert quiet_train(walk(), run_dir=tmp_path, resume=True).step == 60  # nobody holds the folder


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
    known = {"config", "dream", "behaviour/loss"}
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
    config = tiny_config(evals=2, steps=120, train_ratio=1)
    drawn = quiet_train(walk(), config, tmp_path / "drawn", tensorboard=True)
    plain = quiet_train(walk(), config, tmp_path / "plain")
    assert [e["return"] for e in drawn.evals] == [e["return"] for e in plain.evals]
    assert [r["loss"] for r in drawn.reports] == [r["loss"] for r in plain.reports]
    figures = writers[0].told["dream"]
    assert list(figures) == [row["step"] for row in drawn.evals]
    steps = CONTEXT + config.imag_horizon
    for figure in figures.values():
        assert len(figure.axes) == drawn.layout.obs_size
        for axes in figure.axes:
            real, dreamed = axes.lines
            assert len(real.get_xdata()) == steps
            assert list(dreamed.get_xdata()) == list(range(CONTEXT, steps))
