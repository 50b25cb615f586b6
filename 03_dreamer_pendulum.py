"""Pendulum: the same agent, with a continuous action.

A torque too weak to lift the pendulum in one go, so it must be swung up. The policy is now a
normal distribution instead of a categorical one; the rest of the algorithm, and every number of
`Config` but the first three, is as it was for CartPole. The reward is negative, a cost of angle,
speed and torque, and the environment names no threshold: -200 is ours.

You will see assets/03_pendulum_training.png: the greedy return against environment steps, the
losses, and how good the dreams are. What was measured (return, seeds, environment steps, minutes,
CPU) is in the README's results table, made from assets/results/pendulum.json.

    python 03_dreamer_pendulum.py
"""

from dreamer.agent import Config
from dreamer.training import evaluate, save_agent, train
from lab import cli, figures, results

ENV, THRESHOLD = "Pendulum-v1", -200  # ours: the environment has none
CONFIG = Config(steps=10_000, train_ratio=80)


def main(args: cli.Args) -> None:
    # Learn: a little from the real environment, most of it in dreams.
    run = train(
        ENV, args.config, args.run_dir, args.resume, args.device, tensorboard=args.tensorboard
    )
    save_agent(run.agent, args.run_dir / "agent.pt")

    # Judge it on fresh episodes, without exploration: training episodes are no evidence.
    returns = evaluate(run.agent, ENV, args.final_episodes, seed=args.seed)

    # Keep the numbers, and draw them beside those of the other seeds.
    figure = args.assets / "03_pendulum_training.png"
    with results.record(args.results / "pendulum.json", ENV, THRESHOLD, run, returns) as data:
        figures.training_figure("Pendulum", data["runs"], THRESHOLD, data["random_return"], figure)
    print(f"Figure: {figure}")
    print(results.finish(args.run_dir, ENV, THRESHOLD, run, returns))


if __name__ == "__main__":
    cli.run(main, cli.parse(__file__, __doc__, CONFIG))
