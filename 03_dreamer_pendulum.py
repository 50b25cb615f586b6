"""Pendulum: the same agent, with a continuous action.

The torque is too weak to lift the pendulum in one go, so it must be swung up. The policy is now a
normal distribution instead of a categorical one; the rest of the algorithm, and every number of
`Config` but the first three, is as it was for CartPole. The reward is negative, a cost of angle,
speed and torque, and the environment names no threshold: -200 is ours.

You will see a figure of the return against environment steps, with the losses and how good the
dreams are. What was measured (return, seeds, steps, minutes, CPU) is in docs/results.md and
assets/results/pendulum.json.

    python 03_dreamer_pendulum.py
"""

from dreamer import Config, evaluate, train
from lab import cli, results

ENV, THRESHOLD = "Pendulum-v1", -200  # ours: the environment has none
CONFIG = Config(steps=10_000, train_ratio=80, evals=20, eval_episodes=20)


def main(args: cli.Args) -> None:
    # Learn: a little from the real environment, most of it in dreams.
    run = train(
        ENV, args.config, args.run_dir, args.resume, args.device, tensorboard=args.tensorboard
    )

    # Judge it on fresh episodes, without exploration: training episodes are no evidence.
    returns = evaluate(run.agent, ENV, args.final_episodes, seed=args.config.seed)

    # Keep the numbers, draw them over those of the committed seeds, say what came of it.
    results.finish(args, "pendulum", ENV, THRESHOLD, run, returns, after="05_dreamer_acrobot.py")


if __name__ == "__main__":
    cli.run(main, cli.parse(__file__, __doc__, CONFIG))
