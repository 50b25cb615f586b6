"""What the figures show, looked up in them before they are written to a file."""

import math

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.text import Text

from lab import figures, style
from lab.effects import Effect

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture
def drawn(monkeypatch):
    """The figures that would have been saved. All are as wide as the page, 830 pixels, and no text
    on them may be smaller than 11 pixels."""
    found = []
    monkeypatch.setattr(style, "save", lambda fig, path: found.append(fig))
    yield found
    assert found
    for fig in found:
        fig.draw_without_rendering()
        pixels = 830 / fig.get_figwidth() / 72  # of a point
        texts = [text for text in fig.findobj(Text) if text.get_text() and text.get_visible()]
        assert len(texts) >= 4
        assert min(text.get_fontsize() for text in texts) * pixels >= 11


def panel(fig, title):
    """The panel with this title."""
    (ax,) = (ax for ax in fig.axes if title in ax.get_title())
    return ax


def line(ax, label):
    """The (x, y) of the line with this label, and its colour."""
    (found,) = (line for line in ax.lines if line.get_label() == label)
    return found.get_xydata(), to_hex(found.get_color()).upper()


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def make_run(seed, trained=()):
    """A run whose logged numbers follow from the seed: those of row i are i + seed."""
    losses = ["obs_loss", "reward_loss", "cont_loss", "dyn_loss", "rep_loss", "entropy"]
    errors = ["value_real", "naive_obs_error", "dream_obs_error", "dream_reward_error"]
    steps, rows = [1000, 2000, 3000], []
    for i, step in enumerate(steps):
        report = dict.fromkeys([*losses, "ret_scale"], 1 + i + seed)
        rows.append({"kind": "report", "step": step, **report})
        found = dict.fromkeys(errors, i + seed) | {"value_pred": 10 * i}
        rows.append({"kind": "eval", "step": step, **found})
    curve = {"env_steps": steps, "return": [100 * seed + i for i in range(3)]}
    ends = {"env_steps": 3000, "final_returns": [400 + seed, 402 + seed], "train_returns": trained}
    return {"seed": seed, "curve": curve, **ends, "diagnostics": rows}


def test_a_run_is_drawn_over_those_of_before(drawn):
    """The critic has a dot for each evaluation, later ones darker. Training episodes that are too
    low to be drawn are counted."""
    trained = [[10, 0], [20, -431], [30, -430.9], [40, -9000]]  # 22 - (475 - 22) = -431
    before, run = [make_run(0), make_run(4)], make_run(1, trained)
    figures.training_figure("CartPole", [run], 475, 22.0, "", before, math.log(2))
    (fig,) = drawn
    returns = panel(fig, "CartPole: greedy return")
    points, color = line(returns, "seed 1")
    np.testing.assert_array_equal(points, [[1000, 100], [2000, 101], [3000, 102]])
    assert color == style.DREAM
    mean, color = line(returns, "assets/results: mean of 2 seeds")
    assert mean[:, 1].tolist() == [200, 201, 202] and color == style.BEFORE
    band = returns.collections[1].get_paths()[0].vertices  # from the lowest to the highest seed
    assert {tuple(x) for x in band} == {(1e3 * i, k + i - 1) for i in (1, 2, 3) for k in (0, 400)}
    np.testing.assert_array_equal(returns.collections[0].get_offsets(), [[10, 0], [30, -430.9]])
    assert set(legend(returns)) > {
        *("training episodes (2 are lower)", "2 fresh episodes: 402.0"),
        *("threshold 475", "random policy 22"),
    }
    assert "grey: the 2 seeds" in fig._supxlabel.get_text()
    uniform = line(panel(fig, "entropy"), "uniform policy")[0]
    assert uniform[:, 1] == pytest.approx(math.log(2))

    losses = panel(fig, "losses")  # of 1 to 7, smoothed: no room is left for a legend
    assert 0.8 < losses.get_ylim()[0] and losses.get_ylim()[1] < 8 and losses.get_legend()

    old, ours = panel(fig, "critic").collections
    np.testing.assert_array_equal(ours.get_offsets(), [[1, 0], [2, 10], [3, 20]])
    np.testing.assert_array_equal(old.get_offsets()[3:], [[4, 0], [5, 10], [6, 20]])
    ours.update_scalarmappable()
    assert (np.diff(ours.get_facecolors()[:, :3].sum(1)) < 0).all()


def method(values, steps):
    runs = [{"curve": {"env_steps": steps, "return": row}} for row in values]
    return {"env_id": "LunarLander-v3", "threshold": 200, "random_return": -200, "runs": runs}


def test_methods_are_drawn_on_a_logarithmic_axis_and_notes_say_what_is_not_seen(drawn):
    ours = method([[0, 100], [2, 300]], [500, 5000])
    low = method([[-900, -50, -300], [-441, -439, 0], *[[0, 0, 0]] * 3], [1, 10, 100])
    other = {"dreamer": {**ours, "env_id": "CartPole-v1"}, "dqn": {**low, "env_id": "CartPole-v1"}}
    tasks = {"a": {"dreamer": ours, "ppo": None, "sac": low}, "b": other}
    figures.sample_efficiency_figure(tasks, "")
    names = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert names == ["Dreamer", "DQN", "SAC", "threshold", "random policy"]
    ax = panel(drawn[0], "LunarLander")
    thin = [line.get_ydata().tolist() for line in ax.lines if line.get_linewidth() < 1]
    assert thin == [run["curve"]["return"] for run in ours["runs"] + low["runs"]]
    assert ax.get_xscale() == "log" and ax.get_ylim()[0] == -440  # -200 - 0.6 * 400
    np.testing.assert_array_equal(line(ax, "Dreamer")[0], [[500, 1], [5000, 200]])
    notes = "Dreamer: 2 of 5 seeds", "PPO: not measured yet", "seeds of SAC go down to -900"
    assert ax.texts[0].get_text() == "\n".join(notes)
    (arrows,) = (found for found in ax.lines if found.get_marker() == "v")
    np.testing.assert_array_equal(arrows.get_xydata(), [[1, -440]])


def test_tasks_learned_before_the_first_evaluation_are_not_drawn(drawn):
    tasks = {"lake": method([[0, 1, 1], [1, 1]], [1, 2, 3]), "car": method([[0, 1]], [1, 2])}
    tasks["lake"]["runs"][1]["curve"]["env_steps"] = [2, 3]
    tasks["car"]["env_id"] = "Car"
    figures.spaces_figure(tasks, "")
    assert [ax.get_title() for ax in drawn[0].axes if ax.axison] == ["Car"]


def test_a_dream_has_a_panel_for_each_number_and_is_left_out_once_it_has_ended(drawn):
    """Reward and the end have panels where they change."""
    rng, names = np.random.default_rng(0), style.OBS_NAMES["Pendulum-v1"]
    real = {"obs": rng.normal(size=(12, 3)), "reward": np.ones(12), "cont": np.ones(12)}
    dreams = {"obs": rng.normal(size=(2, 8, 3)), "reward": np.ones((2, 8)), "cont": np.ones((2, 8))}
    figures.dream_figure("Title", names, 4, real, dreams, "", trained=5)
    dreams["reward"] = np.linspace(0, 1, 8) + np.zeros((2, 8))
    dreams["cont"][0, 2:] = [0.4, 1, 1, 1, 1, 1]  # ends with its third row
    dreams["cont"][1, 5:] = [0.1, 0.1, 0.1]
    figures.dream_figure("Title", names, 4, real, dreams, "")
    plain, more = ([ax.get_title() for ax in fig.axes if ax.axison] for fig in drawn)
    assert plain == names and more == [*plain, "reward", figures.GOES_ON]
    ax, label = drawn[0].axes[0], "2 dreams: mean, middle 80%"
    np.testing.assert_array_equal(line(ax, "real")[0][:, 1], real["obs"][:, 0])
    assert line(ax, "length of dreams in training")[0][:, 0].tolist() == [8, 8]  # the fifth row
    first, second = dreams["obs"][..., 0]
    mean = np.array([np.arange(4, 12), (first + second) / 2]).T
    np.testing.assert_allclose(line(ax, label)[0], mean)
    mean[3:, 1] = second[3:]
    np.testing.assert_allclose(line(drawn[1].axes[0], label)[0], mean[:6])
    assert len(line(panel(drawn[1], "goes on"), label)[0]) == 8


def test_maps_leave_out_what_is_the_same_everywhere(drawn):
    points = np.random.default_rng(0).normal(size=(300, 2))
    whose = np.repeat(["own", "random"], 150)
    maps = [("whose", whose, ""), ("reward", np.ones(300), "viridis")]
    figures.latents_figure("Title", points, [*maps, ("angle", points[:, 0], "coolwarm")], "")
    (fig,) = drawn
    assert [ax.get_title() for ax in fig.axes if ax.get_title()] == ["whose", "angle"]
    assert legend(panel(fig, "whose")) == ["own", "random"]
    np.testing.assert_array_equal(panel(fig, "angle").collections[0].get_offsets(), points)


def test_effects_stand_in_order_and_those_that_are_sure_in_colour(drawn):
    """Of three ideas one is not measured at all."""
    found = {
        "symlog": {"Plain": Effect(-0.1, -0.3, 0.1, 3), "Blind": Effect()},
        "memory": {"Plain": Effect(0.2, 0.1, 0.3, 5), "Blind": Effect(-0.5, -0.9, -0.1, 5)},
        "unimix": {"Plain": Effect()},
    }
    figures.ablation_figure(found, "")
    ax = drawn[0].axes[0]
    assert [text.get_text() for text in ax.texts] == ["memory", "symlog"]  # the worst one first
    labels = [text.get_text() for text in ax.get_yticklabels()]
    assert labels == ["Blind", "Plain", "Plain (3 seeds)"]
    intervals = [found for found in ax.lines if found.get_marker() == "None"][:3]
    ends = [list(found.get_xdata()) for found in intervals]
    assert ends == [[-0.9, -0.1], [0.1, 0.3], [-0.3, 0.1]]
    colors = [to_hex(found.get_color()).upper() for found in intervals]
    assert colors == [style.HARM, style.DREAM, style.RANDOM]
