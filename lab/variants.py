"""The agent without one idea: what 08_ablations.py compares with the agent as it is.

Each `Variant` changes fields of the `Config`, or puts something simpler in the place of names of
the package, within `without(idea)` alone. The algorithm itself knows nothing of this.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from dreamer.networks import MLP, TwoHotHead
from dreamer.replay_buffer import ReplayBuffer
from dreamer.rssm import RSSM, Dream, Posterior, State
from dreamer.utils import PercentileScale, mode_onehot, sample_onehot
from lab.effects import FULL


class SquaredErrorHead(TwoHotHead):
    """One number, zero at first, in the place of a distribution over bins."""

    def __init__(self, *sizes: int):
        super().__init__(*sizes)
        self.mlp = MLP(*sizes, 1, out_scale=0.0)

    def mean(self, logits: Tensor) -> Tensor:
        """(..., 1) -> (...)."""
        return logits[..., 0]

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """logits (..., 1); target (...), or (..., M) for M losses of each prediction."""
        return ((logits if target.ndim == logits.ndim else logits[..., 0]) - target).square()


class ForgetfulReplay(ReplayBuffer):
    """Keeps no states: every window begins from zeros."""

    def refresh(self, index: np.ndarray, states: State | Posterior) -> None:
        pass


class NoScale(PercentileScale):
    """Advantages stay in units of the return."""

    def update(self, returns: Tensor) -> Tensor:
        return returns.new_ones(())


def sample_without_gradient(log_probs: Tensor, uniform: Tensor) -> Tensor:
    """The same samples, constant for gradients."""
    return sample_onehot(log_probs.detach(), uniform)


def likeliest_onehot(log_probs: Tensor, uniform: Tensor) -> Tensor:
    """No draw: always the likeliest class, with straight-through gradients."""
    probs = log_probs.exp()
    return mode_onehot(log_probs) + (probs - probs.detach())


class MemorylessRSSM(RSSM):
    """A posterior of the present observation alone, q(z | x), and heads that read zeros for the
    GRU's state. The GRU still runs, from the last latent and action, but only for the prior."""

    def sequence_step(self, deter: Tensor, stoch: Tensor, action_part: Tensor) -> Tensor:
        return super().sequence_step(torch.zeros_like(deter), stoch, action_part)

    def posterior(self, deter: Tensor, embed_part: Tensor) -> Tensor:
        return super().posterior(torch.zeros_like(deter), embed_part)

    def get_feat(self, state: State | Posterior | Dream) -> Tensor:
        return super().get_feat(state._replace(deter=torch.zeros_like(state.deter)))


@dataclass(frozen=True)
class Variant:
    """The agent without one idea."""

    removed: str  # what is different, as half a sentence
    fields: dict[str, float] = field(default_factory=dict)  # of `Config`
    names: dict[str, Any] = field(default_factory=dict)  # of the package -> what stands there


VARIANTS = {
    FULL: Variant("nothing: the agent as it is"),
    "symlog": Variant(
        "observations are standardised without symlog",
        names=dict.fromkeys(["dreamer.networks.symlog", "dreamer.networks.symexp"], lambda x: x),
    ),
    "two-hot": Variant(
        "rewards and values are single numbers in raw units, fitted by squared error",
        names=dict.fromkeys(["dreamer.agent.RewardHead", "dreamer.agent.Critic"], SquaredErrorHead),
    ),
    "free bits": Variant("the KL is pressed down to 0 instead of to 1 nat", {"free_nats": 0.0}),
    "return scale": Variant(
        "advantages are not divided by the range of the returns",
        names={"dreamer.agent.PercentileScale": NoScale},
    ),
    "unimix": Variant("no uniform share in latents and discrete policy", {"unimix": 0.0}),
    "straight-through": Variant(
        "no gradient through the sampled latents",
        names={"dreamer.rssm.sample_onehot": sample_without_gradient},
    ),
    "stochastic latent": Variant(
        "the latent is its likeliest class, never drawn",
        names={"dreamer.rssm.sample_onehot": likeliest_onehot},
    ),
    "memory": Variant(
        "the state is made from the present observation alone",
        names={"dreamer.agent.RSSM": MemorylessRSSM},
    ),
    "stored states": Variant(
        "replayed windows begin from nothing, not from the state that was there",
        names={"dreamer.run.ReplayBuffer": ForgetfulReplay},
    ),
    "KL balance": Variant(
        "β_dyn and β_rep are equal, their sum as before", {"beta_dyn": 0.55, "beta_rep": 0.55}
    ),
    "replay value": Variant("the critic learns from dreams alone", {"replay_value_weight": 0.0}),
    "slow critic": Variant("nothing holds the critic near its slow copy", {"slow_weight": 0.0}),
}
IDEAS = tuple(VARIANTS)[1:]


@contextlib.contextmanager
def without(idea: str) -> Iterator[None]:
    """Within this block the package works without an idea, as far as names are replaced."""
    with contextlib.ExitStack() as stack:
        for name, replacement in VARIANTS[idea].names.items():
            stack.enter_context(mock.patch(name, replacement))
        yield
