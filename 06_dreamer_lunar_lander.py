"""LunarLander: the hardest of the four.

Eight numbers to observe, four actions, shaped rewards, +100 for landing and -100 for crashing:
returns run over hundreds, which is what the percentile scale of returns and the two-hot critic are
made for. Hovering is safe and burns fuel; the agent has to find out that landing pays.

The lander is simulated 50 times a second, and one step changes less than the latents can resolve:
a model of single steps dreams no better than "nothing changes". So each action is held for four
steps, as the authors do on Atari; a dream of 15 choices then reaches over more than a second.

You will see a figure of the return against environment steps, with the losses and how good the
dreams are. What was measured (return, seeds, steps, minutes, CPU) is in docs/results.md and
assets/results/lunar_lander.json.

    python 06_dreamer_lunar_lander.py
"""

from dreamer import Config, evaluate, train
from lab import cli, results

ENV, THRESHOLD = "LunarLander-v3", 200  # the environment's own reward_threshold
# Each row is replayed 32 x 4 = 128 times.
CONFIG = Config(steps=60_000, train_ratio=32, action_repeat=4, evals=20, eval_episodes=20)


def main(args: cli.Args) -> None:
    # Learn: a little from the real environment, most of it in dreams.
    run = train(
        ENV, args.config, args.run_dir, args.resume, args.device, tensorboard=args.tensorboard
    )

    # Judge it on fresh episodes, without exploration: training episodes are no evidence.
    returns = evaluate(run.agent, ENV, args.final_episodes, seed=args.config.seed)

    # Keep the numbers, draw them over those of the committed seeds, say what came of it.
    after = "07_sample_efficiency.py --plot-only"
    results.finish(args, "lunar_lander", ENV, THRESHOLD, run, returns, after)


if __name__ == "__main__":
    cli.run(main, cli.parse(__file__, __doc__, CONFIG))
