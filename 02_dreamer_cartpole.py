"""CartPole: balance a pole by dreaming.

The smallest task on which every part of DreamerV3 can be seen at work: four numbers to observe,
two actions, a reward of 1 for every step that the pole stays up, 500 at most. The agent learns a
world model from what it lives through and improves its policy in dreams alone.

The pole is pushed 50 times a second. Each push is held for two of these steps, so that a dream of
15 choices and the discount reach twice as far. With single steps the threshold was held later,
and lost again by one run, whose cart drifted off (CD to CF in assets/results/tuning.md).

You will see assets/02_cartpole_training.png: the greedy return against environment steps, between
the random policy's and the threshold, and below it the losses and how good the dreams are. What
was measured (return, seeds, environment steps, minutes, CPU) is in the README's results table,
made from assets/results/cartpole.json.

    python 02_dreamer_cartpole.py
"""

from dreamer.agent import Config
from dreamer.training import evaluate, save_agent, train
from lab import cli, figures, results

ENV, THRESHOLD = "CartPole-v1", 475  # the environment's own reward_threshold
CONFIG = Config(steps=6_000, train_ratio=96, action_repeat=2)


def main(args: cli.Args) -> None:
    # Learn: a little from the real environment, most of it in dreams.
    run = train(
        ENV, args.config, args.run_dir, args.resume, args.device, tensorboard=args.tensorboard
    )
    save_agent(run.agent, args.run_dir / "agent.pt")

    # Judge it on fresh episodes, without exploration: training episodes are no evidence.
    returns = evaluate(run.agent, ENV, args.final_episodes, seed=args.seed)

    # Keep the numbers, and draw them beside those of the other seeds.
    figure = args.assets / "02_cartpole_training.png"
    with results.record(args.results / "cartpole.json", ENV, THRESHOLD, run, returns) as data:
        figures.training_figure("CartPole", data["runs"], THRESHOLD, data["random_return"], figure)
    print(f"Figure: {figure}")
    print(results.finish(args.run_dir, ENV, THRESHOLD, run, returns))


if __name__ == "__main__":
    cli.run(main, cli.parse(__file__, __doc__, CONFIG))
