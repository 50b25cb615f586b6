"""CartPole: balance a pole by dreaming, with the loop spelled out.

The smallest task on which every part of DreamerV3 can be seen at work: four numbers to observe,
two actions, a reward of 1 for every step that the pole stays up, 500 at most. The agent learns a
world model from what it lives through and improves its policy in dreams alone.

The pole is pushed 50 times a second. Each push is held for two of these steps, so that a dream of
15 choices and the discount reach twice as far. In the first version, single steps reached the
threshold later, and one run lost it again (docs/paper_and_code.md).

The loop below is the one that `train` runs in the scripts that follow (dreamer/training.py); what
acts and counts in it is dreamer/run.py. You will see a figure of the return against environment
steps, between the random policy's and the threshold, with the losses and how good the dreams are
below it. What was measured (return, seeds, steps, minutes, CPU) is in docs/results.md and
assets/results/cartpole.json.

    python 02_dreamer_cartpole.py
"""

from lab import cli, results

from dreamer import Config, evaluate
from dreamer.resume import start
from dreamer.training import Session

ENV, THRESHOLD = "CartPole-v1", 475  # the environment's own reward_threshold
# eval_cost: steps are cheap here, so the curve may cost 50 of them for each one of training.
CONFIG = Config(steps=6_000, train_ratio=96, action_repeat=2, eval_cost=50)


def main(args: cli.Args) -> None:
    # A run is an agent, an environment, a replay and a log; with --resume, those of before.
    run = start(ENV, args.config, args.run_dir, args.resume, args.device)
    agent = run.agent

    with Session(run, tensorboard=args.tensorboard) as session:  # progress bar, Ctrl-C
        while True:
            # Learn: `train_ratio` replayed rows for every step of the environment, but for the
            # first, random ones.
            while run.updates < run.updates_due():
                batch = run.sample()  # windows of replayed rows, (B, T) of each field
                # The world model, then dreams, then actor and critic. `states`: the model's new
                # states of these rows. They replace the stored ones, from which windows begin.
                metrics, states = agent.update(batch)
                run.learned(batch["index"], metrics, states)
                session.pause()  # here the run may be saved, or stopped by Ctrl-C

            # Report: a row of the log, and an evaluation without exploration, when they are due.
            session.report()
            if run.step >= args.config.steps:
                break

            # Act: filter the real observation, sample the actor, or act at random (always in the
            # first 1,000 steps, later now and then), and store what comes of it.
            action, state = run.choose()
            run.take(action, state)  # one row for the replay
            session.pause()

    # Judge it on fresh episodes, without exploration: training episodes are no evidence.
    returns = evaluate(agent, ENV, args.final_episodes, seed=args.seed)

    # Keep the numbers, draw them over those of the committed seeds, say what came of it.
    results.finish(args, "cartpole", ENV, THRESHOLD, run, returns, after="03_dreamer_pendulum.py")


if __name__ == "__main__":
    cli.run(main, cli.parse(__file__, __doc__, CONFIG))
