"""LunarLander: the hardest of the four.

Eight numbers to observe, four actions, shaped rewards, +100 for landing and -100 for crashing:
returns run over hundreds, which is what the percentile scale of returns and the two-hot critic are
made for. Hovering is safe and burns fuel; the agent has to find out that landing pays.

The lander is simulated 50 times a second, and one step changes less than the latents can resolve:
a model of single steps dreams no better than "nothing changes". So each action is held for four
steps, as the authors do on Atari; a dream of 15 choices then reaches over more than a second.

You will see assets/06_lunar_lander_training.png: the greedy return against environment steps, the
losses, and how good the dreams are. What was measured (return, seeds, environment steps, minutes,
CPU) is in the README's results table, made from assets/results/lunar_lander.json.

    python 06_dreamer_lunar_lander.py
"""

from dreamer.agent import Config
from dreamer.training import evaluate, save_agent, train
from lab import cli, figures, results

ENV, THRESHOLD = "LunarLander-v3", 200  # the environment's own reward_threshold
CONFIG = Config(steps=60_000, train_ratio=32, action_repeat=4)  # each row is replayed 128 times


def main(args: cli.Args) -> None:
    # Learn: a little from the real environment, most of it in dreams.
    run = train(
        ENV, args.config, args.run_dir, args.resume, args.device, tensorboard=args.tensorboard
    )
    save_agent(run.agent, args.run_dir / "agent.pt")

    # Judge it on fresh episodes, without exploration: training episodes are no evidence.
    returns = evaluate(run.agent, ENV, args.final_episodes, seed=args.seed)

    # Keep the numbers, and draw them beside those of the other seeds.
    figure = args.assets / "06_lunar_lander_training.png"
    with results.record(args.results / "lunar_lander.json", ENV, THRESHOLD, run, returns) as data:
        figures.training_figure(
            "LunarLander", data["runs"], THRESHOLD, data["random_return"], figure
        )
    print(f"Figure: {figure}")
    print(results.finish(args.run_dir, ENV, THRESHOLD, run, returns))


if __name__ == "__main__":
    cli.run(main, cli.parse(__file__, __doc__, CONFIG))
