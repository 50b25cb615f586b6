"""The recurrent state-space model: a GRU carries the past, categoricals what it cannot predict.

State of one time step: `deter` h (..., D), the GRU's memory, and `stoch` z (..., S, K), one-hot
samples. Two distributions over z: the *posterior* q(z | h, x), which sees the observation, and
the *prior* p(z | h), which does not. Training pulls them together; dreaming uses the prior alone.

    h_t = GRU(h_{t-1}, z_{t-1}, a_{t-1})     z_t ~ q(z | h_t, x_t)     ẑ_t ~ p(z | h_t)

(v2, eq. 1.) Actions are given as they stand in the replay rows, a_t beside x_t; the one place
where they are shifted to a_{t-1} is `RSSM.observe`. See the time diagram in `replay_buffer.py`.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dreamer.networks import MLP, init_layer, make_norm
from dreamer.utils import sample_onehot, unimix


class State(NamedTuple):
    """What the next step needs: deter (..., D), stoch (..., S, K) and the action (..., A) chosen
    in this state, which the next step consumes."""

    deter: Tensor
    stoch: Tensor
    action: Tensor


class Posterior(NamedTuple):
    """A filtered window: deter (B, T, D); stoch, and the log-probabilities post_logits and
    prior_logits (B, T, S, K)."""

    deter: Tensor
    stoch: Tensor
    post_logits: Tensor
    prior_logits: Tensor


class Dream(NamedTuple):
    """Imagined trajectories: deter (N, H+1, D) and stoch (N, H+1, S, K) of the states 0..H, where
    0 is the start; action (N, H, A), action t chosen in state t."""

    deter: Tensor
    stoch: Tensor
    action: Tensor


class RSSM(nn.Module):
    """GRU + S categoricals of K classes."""

    def __init__(
        self,
        embed_size: int,
        action_size: int,
        deter: int = 128,
        hidden: int = 128,
        categoricals: int = 16,
        classes: int = 16,
        mix: float = 0.01,
    ):
        super().__init__()
        self.deter, self.categoricals, self.classes, self.mix = deter, categoricals, classes, mix
        self.action_size, self.sizes = action_size, (deter, categoricals, classes)
        latent = categoricals * classes

        # The GRU reads what three layers make of memory, latent and action (the authors' code).
        self.in_deter = MLP(deter, hidden, 1)
        self.in_stoch = MLP(latent, hidden, 1)
        self.in_action = MLP(action_size, hidden, 1)
        self.gru = init_layer(nn.Linear(3 * hidden, 3 * deter))
        # A layer on a concatenation, as a sum: the observation's part is computed outside the loop.
        self.post_deter = init_layer(nn.Linear(deter, hidden, bias=False))
        self.post_embed = init_layer(nn.Linear(embed_size, hidden))
        self.post_norm = make_norm(hidden)
        self.post_out = init_layer(nn.Linear(hidden, latent))
        self.prior_mlp = MLP(deter, hidden, 1, latent)
        self.act = nn.SiLU()

    # ------------------------------------------------------------ one step

    def initial(self, batch: int) -> State:
        """The state before an episode: all zero."""
        weight = self.gru.weight
        return State(
            weight.new_zeros(batch, self.deter),
            weight.new_zeros(batch, self.categoricals, self.classes),
            weight.new_zeros(batch, self.action_size),
        )

    def get_feat(self, state: State | Posterior | Dream) -> Tensor:
        """feat = {deter, stoch}, what all heads read: (..., D + S*K)."""
        return torch.cat([state.deter, state.stoch.flatten(-2)], -1)

    def embed_action(self, action: Tensor) -> Tensor:
        """The action's part of the GRU input, (..., A) -> (..., hidden).

        An action outside [-1, 1] acts as the clipped one that the environment gets: it is divided
        by max(1, |a|), a constant, so that a gradient still reaches it.
        """
        action = action / action.detach().abs().clamp(min=1.0)
        return self.in_action(action)

    def sequence_step(self, deter: Tensor, stoch: Tensor, action_part: Tensor) -> Tensor:
        """h_t from h_{t-1}, z_{t-1} and the embedded a_{t-1}: a GRU (..., D)."""
        x = torch.cat([self.in_deter(deter), self.in_stoch(stoch.flatten(-2)), action_part], -1)
        reset, cand, update = self.gru(x).chunk(3, -1)  # (..., D) each
        cand = torch.tanh(reset.sigmoid() * cand)
        update = (update - 1).sigmoid()  # the shift makes a fresh GRU remember
        return torch.lerp(deter, cand, update)  # (1 - update) * deter + update * cand

    def posterior(self, deter: Tensor, embed_part: Tensor) -> Tensor:
        """Log-probabilities of q(z | h, x), (..., S, K)."""
        x = self.act(self.post_norm(self.post_deter(deter) + embed_part))
        return self._logits(self.post_out(x))

    def prior(self, deter: Tensor) -> Tensor:
        """Log-probabilities of p(z | h), (..., S, K)."""
        return self._logits(self.prior_mlp(deter))

    def _logits(self, out: Tensor) -> Tensor:
        return unimix(out.unflatten(-1, (self.categoricals, self.classes)), self.mix)

    def observe_step(
        self,
        deter: Tensor,
        stoch: Tensor,
        action_part: Tensor,
        embed_part: Tensor,
        keep: Tensor,
        uniform: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One filtering step: (deter, stoch, post_logits). `keep` (B, 1) is 0 on a first row and
        erases the state that it is multiplied with."""
        deter = self.sequence_step(deter * keep, stoch * keep[..., None], action_part)
        logits = self.posterior(deter, embed_part)
        return deter, sample_onehot(logits, uniform), logits

    def imagine_step(
        self, deter: Tensor, stoch: Tensor, action: Tensor, uniform: Tensor
    ) -> tuple[Tensor, Tensor]:
        """One dreamed step, from the prior: (deter, stoch)."""
        deter = self.sequence_step(deter, stoch, self.embed_action(action))
        return deter, sample_onehot(self.prior(deter), uniform)

    # ------------------------------------------------------------ sequences

    def observe(
        self,
        embed: Tensor,
        action: Tensor,
        is_first: Tensor,
        rng: torch.Generator,
        state: State | None = None,
    ) -> tuple[Posterior, State]:
        """Filter a window of real experience.

        embed (B, T, E); action (B, T, A), row-aligned: a_t was chosen on seeing x_t; is_first
        (B, T) bool; state: what came before the window, zeros if None. Returns the posterior of
        every row and the state to go on from (its action is the window's last).
        """
        batch, steps = is_first.shape
        start = self.initial(batch) if state is None else state

        # All that does not feed the recurrence is computed at once, time first for fast slices.
        keep = (~is_first).to(embed.dtype).T[..., None]  # (T, B, 1)
        prev_action = torch.cat([start.action[:, None], action[:, :-1]], 1).transpose(0, 1) * keep
        action_parts = self.embed_action(prev_action)  # (T, B, hidden)
        embed_parts = self.post_embed(embed.transpose(0, 1))  # (T, B, hidden)
        size = steps, batch, self.categoricals
        uniform = torch.rand(size, generator=rng, device=rng.device)

        deter, stoch = start.deter, start.stoch
        deters, stochs, logits = [], [], []
        for inputs in zip(action_parts, embed_parts, keep, uniform, strict=True):
            deter, stoch, post_logits = self.observe_step(deter, stoch, *inputs)
            deters.append(deter)
            stochs.append(stoch)
            logits.append(post_logits)

        all_deter, all_stoch, post_logits = (torch.stack(x, 1) for x in (deters, stochs, logits))
        post = Posterior(all_deter, all_stoch, post_logits, self.prior(all_deter))
        return post, State(deter, stoch, action[:, -1])

    def imagine(
        self,
        start: State,
        policy: Callable[[Tensor, int], Tensor],
        horizon: int,
        rng: torch.Generator,
    ) -> Dream:
        """Dream `horizon` steps ahead of `start` (batch N) with the prior alone: no observation.

        policy: (feat (N, F), step) -> action (N, A); `start.action` is not used. Returns states
        0..H and actions 0..H-1.
        """
        deter, stoch = start.deter, start.stoch
        deters, stochs, actions = [deter], [stoch], []
        size = horizon, deter.shape[0], self.categoricals
        uniform = torch.rand(size, generator=rng, device=rng.device)
        for t in range(horizon):
            action = policy(self.get_feat(State(deter, stoch, start.action)), t)
            deter, stoch = self.imagine_step(deter, stoch, action, uniform[t])
            deters.append(deter)
            stochs.append(stoch)
            actions.append(action)
        return Dream(torch.stack(deters, 1), torch.stack(stochs, 1), torch.stack(actions, 1))


def kl_losses(post_logits: Tensor, prior_logits: Tensor, free_nats: float) -> tuple[Tensor, Tensor]:
    """Dynamics and representation loss, each (B, T) in nats, not weighted (v2, eq. 3).

    Both are KL[q || p], summed over the categoricals *before* the free nats are taken as a floor:
    dyn = max(free, KL[sg(q) || p]) trains the prior, rep = max(free, KL[q || sg(p)]) the posterior.
    post_logits and prior_logits: (B, T, S, K), normalised here if they are not.
    """
    post, prior = post_logits.log_softmax(-1), prior_logits.log_softmax(-1)

    def kl(q: Tensor, p: Tensor) -> Tensor:
        return (q.exp() * (q - p)).sum((-2, -1)).clamp(min=free_nats)

    return kl(post.detach(), prior), kl(post, prior.detach())
