"""CartPole: balance a pole by dreaming, with the loop spelled out.

The smallest task on which every part of DreamerV3 can be seen at work: four numbers to observe,
two actions, a reward of 1 for every step that the pole stays up, 500 at most. The agent learns a
world model from what it lives through and improves its policy in dreams alone.

The pole is pushed 50 times a second. Each push is held for two of these steps, so that a dream of
15 choices and the discount reach twice as far.

The loop below is the one that `train` runs in the scripts that follow (dreamer/training.py). You
will see a figure of the return against environment steps, between the random policy's and the
threshold, with the losses and how good the dreams are below it. What was measured (return, seeds,
steps, minutes, CPU) is in docs/results.md and assets/results/cartpole.json.

    python 02_dreamer_cartpole.py
"""

from dreamer import Config, evaluate
from dreamer.run import Run
from lab import cli, results

ENV, THRESHOLD = "CartPole-v1", 475  # the environment's own reward_threshold
CONFIG = Config(steps=6_000, train_ratio=96, action_repeat=2, evals=20, eval_episodes=20)


def main(args: cli.Args) -> None:
    c = args.config

    # A run is an agent, its environments, a replay and a log; with --resume, those of before.
    with Run(ENV, c, args.run_dir, args.resume, args.device, tensorboard=args.tensorboard) as run:
        agent, envs, replay = run.agent, run.envs, run.replay
        while True:
            # Learn: `train_ratio` replayed rows for every step of the environment, except the
            # first, random ones. World model, then dreams, then actor and critic.
            while run.updates < run.updates_due():
                batch = replay.sample(c.batch_size, c.seq_len, run.replay_rng, c.recency)
                metrics, states = agent.update(batch)
                replay.refresh(batch["index"], states)  # windows begin from the newest states
                run.record(metrics)

            # Report: a row of the log, and an evaluation without exploration, when they are due.
            run.report()
            if run.step >= c.steps:
                break

            # Act: filter the real observation, sample the actor, or act at random (always in the
            # first 1,000 steps, later now and then), and store what comes of it.
            action, state = agent.act(run.obs, run.is_first, run.state)
            action = run.explore(action)
            step = envs.step(action)  # obs, reward, terminated, truncated, info
            replay.add(run.obs, action, run.reward, run.is_first, state=state)
            run.advance(action, state, *step)

    # Judge it on fresh episodes, without exploration: training episodes are no evidence.
    returns = evaluate(agent, episodes=args.final_episodes, seed=c.seed)

    # Keep the numbers, draw them over those of the committed seeds, say what came of it.
    results.finish(args, "cartpole", ENV, THRESHOLD, run, returns, after="03_dreamer_pendulum.py")


if __name__ == "__main__":
    cli.run(main, cli.parse(__file__, __doc__, CONFIG))
