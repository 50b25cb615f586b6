"""A run in TensorBoard: the rows of its log in groups, its config, and a dream at each evaluation.

    tensorboard --logdir runs

It needs `pip install tensorboard`, and is used with `train(..., tensorboard=True)` alone.
"""

import dataclasses
import warnings
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch

from dreamer.evaluation import PROBE, open_loop
from dreamer.rssm import State
from dreamer.utils import derive_seed

if TYPE_CHECKING:
    from dreamer.run import Run

BEHAVIOUR = """actor_loss critic_loss replay_value_loss entropy adv_mag imag_reward imag_cont
imag_return ret_scale value actor_grad_norm critic_grad_norm""".split()
CONTEXT = 8  # rows that a dream has seen
PANEL = (460, 90)  # pixels of the picture of one number


class Board:
    """TensorBoard's log of a run, in `run_dir/tensorboard`."""

    def __init__(self, run: "Run"):
        from torch.utils.tensorboard import SummaryWriter

        self.run = run
        folder = run.run_dir / "tensorboard"
        self.writer = SummaryWriter(folder, purge_step=run.step + 1)
        fields = dataclasses.asdict(run.config).items()
        table = "\n".join(f"| {name} | {value} |" for name, value in fields)
        title = f"| {run.name} | |\n|---|---|\n"
        self.writer.add_text("config", title + table, run.step)

    def __enter__(self) -> Self:
        return self

    def row(self, row: dict[str, Any]) -> None:
        """Write a row of the run's log. A full disk is a warning."""
        try:
            for name, value in row.items():
                if name not in ("kind", "step", "update") and not isinstance(value, list):
                    tag = f"{group(row['kind'], name)}/{name}"
                    self.writer.add_scalar(tag, value, self.run.step)
            if row["kind"] == "eval" and (pictures := dream_picture(self.run)) is not None:
                self.writer.add_image("dream", pictures, self.run.step)
        except OSError as error:
            warnings.warn(f"TensorBoard's log is not written: {error}", stacklevel=2)

    def __exit__(self, *_: Any) -> None:
        self.writer.close()


def group(kind: str, name: str) -> str:
    """The first half of a number's tag."""
    if name == "loss":  # of both
        return "all"
    if kind == "report":
        return "behaviour" if name in BEHAVIOUR else "world_model"
    return {"eval": "evaluation"}.get(kind, kind)


def dream_picture(run: "Run", numbers: int = 8) -> np.ndarray | None:
    """Pixels (3, height, width): the first numbers of the observation, one below the other, as
    they were (grey) and as dreamed (red), after CONTEXT rows or half of a shorter episode were
    seen; None while the replay is too small."""
    from PIL import Image, ImageDraw  # TensorBoard brings it

    steps = CONTEXT + run.config.imag_horizon
    if not run.replay.can_sample(steps):
        return None
    rng = np.random.default_rng(derive_seed(run.config.seed, PROBE, run.step))
    rows = run.replay.sample(64, steps, rng)
    alive = (~rows["is_last"][:, :-1]).cumprod(1).sum(1) + 1  # rows of the window's first episode
    best = int(alive.argmax())
    obs, action = (rows[name][best : best + 1, : alive[best]] for name in ("obs", "action"))
    context = min(CONTEXT, int(alive[best]) // 2)
    kept = (torch.from_numpy(rows[f"prev_{name}"][best : best + 1]) for name in State._fields)
    before = State(*(x.to(run.agent.device) for x in kept))
    dream = open_loop(run.agent, obs, action, context, run.config.seed, before)["obs"][0]
    width, height = PANEL
    panels = []
    for real, dreamed in zip(obs[0].T[:numbers], dream.T, strict=False):
        low, high = min(real.min(), dreamed.min()), max(real.max(), dreamed.max())
        image = Image.new("RGB", PANEL, "white")
        draw = ImageDraw.Draw(image)
        for values, start, colour in ((real, 0, "grey"), (dreamed, context, "firebrick")):
            x = (start + np.arange(len(values))) * (width - 20) / (len(obs[0]) - 1) + 10
            y = height - 10 - (values - low) / max(high - low, 1e-6) * (height - 20)
            draw.line(list(zip(x.tolist(), y.tolist(), strict=True)), colour, 3)
        panels.append(np.asarray(image))
    return np.concatenate(panels).transpose(2, 0, 1)
