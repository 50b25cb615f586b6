"""A run in TensorBoard: the rows of its log in groups, its config, and a dream at each evaluation.

    tensorboard --logdir runs

It needs `pip install tensorboard matplotlib`; `train(..., tensorboard=True)` uses it.
"""

import dataclasses
import math
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch

from dreamer.evaluation import PROBE, open_loop
from dreamer.rssm import State
from dreamer.utils import derive_seed

if TYPE_CHECKING:
    from dreamer.run import Run

WORLD_MODEL = "obs_loss image_loss reward_loss cont_loss dyn_loss rep_loss model_loss".split()
CONTEXT, NUMBERS = 8, 8  # rows that a dream has seen; entries of the observation that are drawn


class Board:
    """TensorBoard's log of a run, in `run_dir/tensorboard`."""

    def __init__(self, run: "Run"):
        from torch.utils.tensorboard import SummaryWriter

        self.run = run
        self.writer = SummaryWriter(run.run_dir / "tensorboard", purge_step=run.step + 1)
        fields = dataclasses.asdict(run.config).items()
        table = "\n".join(f"| {name} | {value} |" for name, value in fields)
        self.writer.add_text("config", f"| {run.name} | |\n|---|---|\n{table}", run.step)

    def row(self, row: dict[str, Any]) -> None:
        """Write a row of the run's log, and a dream beside an evaluation."""
        for name, value in row.items():
            if name not in ("kind", "step", "update") and not isinstance(value, list):
                group = {"eval": "evaluation", "episode": "episode"}.get(row["kind"], "behaviour")
                group = "world_model" if name in (*WORLD_MODEL, "model_grad_norm") else group
                self.writer.add_scalar(f"{group}/{name}", value, self.run.step)
        steps = CONTEXT + self.run.config.imag_horizon
        if row["kind"] == "eval" and self.run.replay.can_sample(steps):
            self.draw_dream(steps)

    def draw_dream(self, steps: int) -> None:
        """Draw a replayed window's numbers (black) and the dream of them (blue), and its frames."""
        from matplotlib.figure import Figure

        run = self.run
        rng = np.random.default_rng(derive_seed(run.config.seed, PROBE, run.step))
        rows = run.replay.sample(64, steps, rng)
        best = np.argmax((~rows["is_last"]).cumprod(1).sum(1))  # the longest of one episode
        window = {name: values[[best]] for name, values in rows.items()}
        kept = (torch.from_numpy(window[f"prev_{name}"]) for name in State._fields)
        before = State(*(x.to(run.agent.device) for x in kept))
        rest = window["obs"], window["action"], CONTEXT, run.config.seed, before
        dream = open_loop(run.agent, *rest)["obs"][0]
        vector = run.layout.vector_size
        for shape in run.layout.images[:1]:  # real frames, and below them what was dreamed
            films = np.zeros((2, steps, *shape))
            pixels = slice(vector, vector + math.prod(shape))
            films[0] = window["obs"][0, :, pixels].reshape(-1, *shape)
            films[1, CONTEXT:] = dream[:, pixels].reshape(-1, *shape)
            frames = np.vstack([np.hstack(film[..., :3]) for film in films]).astype(np.uint8)
            self.writer.add_image("frames", frames, run.step, dataformats="HWC")
        if not (count := min(NUMBERS, vector)):
            return
        figure = Figure(figsize=(6, 1.2 * count), layout="constrained")
        for i, ax in enumerate(figure.subplots(count, squeeze=False)[:, 0]):
            ax.plot(window["obs"][0, :, i], color="black")
            ax.plot(range(CONTEXT, steps), dream[:, i], color="#0072B2")
        self.writer.add_figure("dream", figure, run.step)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.writer.close()
