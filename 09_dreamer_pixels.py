"""Pixels: the same agent, which sees nothing but an image.

Pendulum or CartPole, as they draw themselves, cut to where anything happens, 64 x 64 pixels in
three colours (lab/pixels.py). An observation was three or four numbers before and is 12,288 now,
and none of them is a velocity: in one frame nothing moves. The memory of the world model has to
supply it. Encoder and decoder are convolutions, chosen by the observation space, and a pixel's
error has weight 1. All else is as it was, and so is every number of `Config` but those below, of
which the last two say only how often the agent is judged.

You will see the return against environment steps; then a filmstrip: real frames, their
reconstructions, and a dream that has seen five frames and goes on for fifty with the actions alone;
and the same as a GIF. Finally a linear probe reads the true state, velocities too, from the
model's. A run takes 30 to 40 minutes on one core, 8 on a large GPU. What was measured is in
docs/results.md, assets/results/pixel_pendulum.json and pixel_cartpole.json.

    python 09_dreamer_pixels.py            Pendulum
    python 09_dreamer_pixels.py --task cartpole
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dreamer import Config, evaluate, train
from lab import cli, pixels, results

TASKS = {  # id and threshold of the environment (-200 is ours)
    "pendulum": ("lab.pixels:PixelPendulum-v0", -200),
    "cartpole": ("lab.pixels:PixelCartPole-v0", 475),
}
CONFIG = Config(steps=20_000, train_ratio=64, action_repeat=2, evals=20, eval_episodes=5)


@dataclass(frozen=True)
class Args(cli.Args):
    task: Literal["pendulum", "cartpole"] = "pendulum"

    @property
    def run_dir(self) -> Path:
        return self.out / f"{self.script.stem}_{self.task}" / f"seed{self.run.seed}"


def main(args: Args) -> None:
    env, threshold = TASKS[args.task]

    # Learn: a little from the real environment, most of it in dreams.
    run = train(
        env, args.config, args.run_dir, args.resume, args.device, tensorboard=args.tensorboard
    )

    # Judge it on fresh episodes, without exploration: training episodes are no evidence.
    returns = evaluate(run.agent, env, args.final_episodes, seed=args.config.seed)

    # What it sees and dreams, and how much of the true state can be read from its own.
    task = f"pixel_{args.task}"
    for path in pixels.draw_all(run.agent, env, args.config.seed, args.run_dir, f"09_{task}"):
        print(f"Picture:   {cli.short(path)}")
    probe = pixels.linear_probe(run.agent, env)
    print(f"Probe:     R² of a linear map to the true state {probe['r2']}")

    # Keep the numbers, draw them over those of the committed seeds, say what came of it.
    results.finish(args, task, env, threshold, run, returns, after="", probe=probe)


if __name__ == "__main__":
    cli.run(main, cli.parse(__file__, __doc__, CONFIG, kind=Args))
