"""`train`: act, step, add, update, report, until all steps are done.

    run = train("CartPole-v1", Config(steps=6_000, train_ratio=96), "runs/mine")
    evaluate(run.agent, episodes=100, seed=1)

A run writes into its folder: `config.json`, `log.jsonl` (one row per episode, report and
evaluation), every minute `checkpoint.pt`, and at its end `agent.pt`, the trained agent.
"""

from pathlib import Path
from typing import Any

from dreamer.config import Config
from dreamer.envs import MakeEnv
from dreamer.run import Run


def train(
    env: MakeEnv,
    config: Config | None = None,
    run_dir: Path | str | None = None,
    resume: bool = False,
    device: str = "auto",
    **options: Any,
) -> Run:
    """Train an agent in a Gymnasium environment.

    env: an id, or a function that makes an environment (see `AgentEnv`). run_dir: where log,
    checkpoint and agent go (nowhere if None). resume: go on from run_dir's checkpoint if there is
    one (without it, the checkpoint and log of an earlier run are kept as `previous-...`); only
    `steps` may differ from its config (rows of the log are then spaced as the new number asks).
    device: auto, cpu or cuda. options: progress=False shows no bar; tensorboard=True writes
    TensorBoard's curves too; callback=f calls f with each row of the log: a dict with `kind`
    (episode, report or eval), `step` and that kind's metrics (docs/glossary.md), whose OSErrors are
    ignored; threads=N of PyTorch while it trains on the CPU, 1 if not given.

    Ctrl-C saves a checkpoint; without run_dir it ends the training, and the run so far is returned.
    Raises ValueError for what is not supported, CheckpointError for a checkpoint that cannot be
    used, EnvFault when the environment fails (the last good state is saved first),
    FloatingPointError when a loss is not finite, and OSError when the files of the start or the
    last checkpoint cannot be written; a checkpoint in between that cannot be is a warning.
    """
    c = config or Config()
    with Run(env, c, run_dir, resume, device, **options) as run:
        agent, envs, replay = run.agent, run.envs, run.replay
        while True:
            while run.updates < run.updates_due():  # learn: replayed rows for each real step
                batch = replay.sample(c.batch_size, c.seq_len, run.replay_rng, c.recency)
                metrics, states = agent.update(batch)
                replay.refresh(batch["index"], states)
                run.record(metrics)
            run.report()
            if run.step >= c.steps:
                break
            action, state = agent.act(run.obs, run.is_first, run.state)
            action = run.explore(action)
            step = envs.step(action)
            replay.add(run.obs, action, run.reward, run.is_first, state=state)
            run.advance(action, state, *step)
    return run
