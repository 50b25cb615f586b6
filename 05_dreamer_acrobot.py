"""Acrobot: rewards that say nothing until it has worked once.

Two links, a motor at the joint between them: swing the tip above a line. Every step costs 1, so
until the first success all returns are -500 and equal. What helps is in `Config` for every task:
random actions, each held for a while, before learning begins and now and then later on, so that a
policy that has settled on nothing still gets to see a success.

You will see a figure of the return against environment steps, with the losses and how good the
dreams are. What was measured (return, seeds, steps, minutes, CPU) is in docs/results.md and
assets/results/acrobot.json.

    python 05_dreamer_acrobot.py
"""

from dreamer import Config, evaluate, train
from lab import cli, results

ENV, THRESHOLD = "Acrobot-v1", -100  # the environment's own reward_threshold
CONFIG = Config(steps=15_000, train_ratio=64, evals=20, eval_episodes=20)


def main(args: cli.Args) -> None:
    # Learn: a little from the real environment, most of it in dreams.
    run = train(
        ENV, args.config, args.run_dir, args.resume, args.device, tensorboard=args.tensorboard
    )

    # Judge it on fresh episodes, without exploration: training episodes are no evidence.
    returns = evaluate(run.agent, ENV, args.final_episodes, seed=args.config.seed)

    # Keep the numbers, draw them over those of the committed seeds, say what came of it.
    results.finish(
        args, "acrobot", ENV, THRESHOLD, run, returns, after="06_dreamer_lunar_lander.py"
    )


if __name__ == "__main__":
    cli.run(main, cli.parse(__file__, __doc__, CONFIG))
