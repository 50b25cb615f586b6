"""DreamerV3: the losses as pure functions, and the agent that ties them together.

`DreamerAgent.update` is the algorithm: fit the world model to replayed windows, dream ahead of
the states found there, and learn actor and critic from the dreams.
"""

import copy
import functools
import threading

import numpy as np
import torch
from torch import Tensor, nn

from dreamer.config import Config
from dreamer.networks import Actor, ContinueHead, Critic, Decoder, Encoder, RewardHead
from dreamer.replay_buffer import Layout
from dreamer.rssm import RSSM, Dream, Posterior, State, kl_losses
from dreamer.utils import PercentileScale, frozen, lambda_return, make_rng

Metrics = dict[str, Tensor]
Batch = dict[str, Tensor]
GLOBAL_RNG = threading.Lock()  # PyTorch's layers draw their weights from one for all threads


# ---------------------------------------------------------------- losses


def model_loss(
    parts: dict[str, Tensor], beta_obs: float, beta_dyn: float, beta_rep: float
) -> tuple[Tensor, Metrics]:
    """`L = L_pred + β_dyn L_dyn + β_rep L_rep`, averaged over (B, T) (v2, eq. 2 and 3).

    parts: obs_loss, reward_loss and cont_loss (which make up L_pred, with image_loss where there
    are images), dyn_loss and rep_loss, all (B, T).
    """
    metrics = {name: loss.mean() for name, loss in parts.items()}
    loss = (
        beta_obs * metrics["obs_loss"]
        + metrics["reward_loss"]
        + metrics["cont_loss"]
        + beta_dyn * metrics["dyn_loss"]
        + beta_rep * metrics["rep_loss"]
        + metrics.get("image_loss", 0.0)
    )
    return loss, {**metrics, "model_loss": loss}


def rate_factor(config: Config, updates: int) -> float:
    """Multiplier of all learning rates after so many updates: 1 / (1 + updates / lr_halving), at
    least 0.3, and then decayed linearly to 5% over the last quarter of the run, so that nothing is
    unlearned at the end."""
    left = 1 - updates / max(1, config.updates_after(config.steps))
    return max(0.3, 1 / (1 + updates / config.lr_halving)) * min(1.0, max(0.05, 4 * left))


def dream_weight(cont: Tensor, gamma: float) -> Tensor:
    """How much a dreamed state counts: the cumulative product of γ·continue (the authors' code).

    cont (N, H): c_0..c_{H-1}, as the continue head sees them. Returns (N, H), the first γ c_0: a
    dream that starts at an end, and what lies after an imagined one, count for nothing.
    """
    return (gamma * cont).cumprod(1)


def reinforce_loss(
    log_prob: Tensor, adv: Tensor, entropy: Tensor, weight: Tensor, ent_coef: float
) -> Tensor:
    """`-E[weight (sg(A) ln π(a|s) + η entropy)]` (v2, eq. 6); all (N, H), a scalar comes out."""
    return -(weight * (adv.detach() * log_prob + ent_coef * entropy)).mean()


def pathwise_loss(
    ret: Tensor, ret_scale: Tensor, entropy: Tensor, weight: Tensor, ent_coef: float
) -> Tensor:
    """`-E[weight (R / S + η entropy)]`, R differentiable in the actions through the world model
    (v1, "Actor learning", for continuous actions); ret_scale is a scalar, all else (N, H), and a
    scalar comes out."""
    return -(weight * (ret / ret_scale + ent_coef * entropy)).mean()


def critic_loss(
    critic: Critic,
    logits: Tensor,
    ret: Tensor,
    slow_value: Tensor,
    weight: Tensor,
    slow_weight: float,
) -> Tensor:
    """Cross-entropy with the two-hot return, and with the slow critic's mean (v2, eq. 5).

    logits (N, H, bins); ret, slow_value and weight (N, H); a scalar comes out.
    """
    losses = critic.loss(logits, torch.stack([ret, slow_value], -1))  # (N, H, 2)
    return (weight * (losses[..., 0] + slow_weight * losses[..., 1])).mean()


# ---------------------------------------------------------------- the agent


class DreamerAgent(nn.Module):
    """World model, actor and critic, and their optimiser.

    layout: what observations and actions consist of. env_spec: how Gymnasium makes the environment
    that it learns in, as `gymnasium.envs.registration.EnvSpec.to_json` says it; None if unknown.
    """

    def __init__(self, layout: Layout, config: Config, device: torch.device | str = "cpu"):
        super().__init__()
        self.layout, self.config, self.device = layout, config, torch.device(device)
        self.env_spec: str | None = None
        c, images = config, layout.images
        feat_size = c.deter + c.categoricals * c.classes
        with GLOBAL_RNG, torch.random.fork_rng(devices=[]):  # weights depend on the seed alone
            torch.manual_seed(c.seed)
            sizes = c.hidden, c.layers, c.depth
            self.encoder = Encoder(layout.numbers, layout.vector_size, images, *sizes)
            latent = c.categoricals, c.classes, c.unimix
            self.rssm = RSSM(self.encoder.size, layout.action_size, c.deter, c.hidden, *latent)
            self.decoder = Decoder(feat_size, self.encoder, layout.categories, images, *sizes)
            self.reward = RewardHead(feat_size, c.hidden, c.layers)
            self.cont = ContinueHead(feat_size, c.hidden, c.layers)
            action = layout.action_numbers, layout.action_categories
            self.actor = Actor(feat_size, *action, c.hidden, c.layers, c.unimix)
            self.critic = Critic(feat_size, c.hidden, c.layers)
        self.slow_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.ret_scale = PercentileScale()
        self.to(self.device)

        self.model_parts = (self.encoder, self.rssm, self.decoder, self.reward, self.cont)
        model = [p for part in self.model_parts for p in part.parameters()]
        groups = [
            {"params": model, "lr": c.model_lr},
            {"params": list(self.actor.parameters()), "lr": c.actor_lr},
            {"params": list(self.critic.parameters()), "lr": c.critic_lr},
        ]
        self.optimizer = torch.optim.Adam(groups, fused=True)
        factor = functools.partial(rate_factor, c)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, factor)
        self.rng = make_rng(self.device, c.seed, 1)  # of all sampling in acting and learning

    # ------------------------------------------------------------ acting

    @torch.inference_mode()
    def act(
        self,
        obs: np.ndarray | Tensor,
        is_first: np.ndarray | Tensor,
        state: State | None = None,
        greedy: bool = False,
        rng: torch.Generator | None = None,
    ) -> tuple[np.ndarray, State]:
        """Filter one observation per environment and choose actions.

        obs (N, O), is_first (N,) bool; state: what the last call returned, None at first; greedy:
        take the policy's mode; rng: the agent's own if None. Returns actions (N, A), one-hot, or
        normal samples not yet clipped to [-1, 1], and the state for the next call.
        """
        rng = self.rng if rng is None else rng
        obs = torch.as_tensor(obs, dtype=torch.float32, device=self.device)[:, None]
        is_first = torch.as_tensor(is_first, dtype=torch.bool, device=self.device)[:, None]
        no_action = obs.new_zeros(len(obs), 1, self.layout.action_size)  # not chosen yet
        _, state = self.rssm.observe(self.encoder(obs), no_action, is_first, rng, state)
        policy = self.actor(self.rssm.get_feat(state))
        action = policy.mode() if greedy else policy.sample(self.actor.noise((len(obs),), rng))
        return action.cpu().numpy(), state._replace(action=action)

    # ------------------------------------------------------------ learning

    def update(self, rows: dict[str, np.ndarray]) -> tuple[Metrics, Posterior]:
        """One gradient update of world model, actor and critic from a replayed batch.

        rows: what `ReplayBuffer.sample` gives. Returns metrics as detached scalar tensors
        (docs/glossary.md), and the states of the rows, for `ReplayBuffer.refresh`.
        """
        batch = {k: torch.from_numpy(v).to(self.device) for k, v in rows.items()}

        # Learn the world from what happened.
        world_loss, metrics, post, feat = self.world_model_loss(batch)

        # Dream ahead of some of the states that the batch passed through.
        starts = self.choose_starts(feat.shape[0] * feat.shape[1])
        dream = self.imagine(post, starts)

        # The actor learns from dreams alone, the critic from them too.
        dream_loss, dream_metrics, ret = self.actor_critic_loss(dream)

        # The critic's anchor in reality: returns along the replayed windows.
        replay_loss = self.replay_value_loss(batch, feat, starts, ret[:, 0].detach())

        loss = world_loss + dream_loss + self.config.replay_value_weight * replay_loss
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norms = [
            nn.utils.clip_grad_norm_(group["params"], self.config.grad_clip, foreach=True)
            for group in self.optimizer.param_groups
        ]
        self.optimizer.step()
        self.schedule.step()
        self.update_slow_critic()

        names = "model_grad_norm", "actor_grad_norm", "critic_grad_norm"
        metrics |= dream_metrics | dict(zip(names, norms, strict=True))
        metrics |= {"replay_value_loss": replay_loss, "loss": loss}
        return {name: value.detach() for name, value in metrics.items()}, post

    def world_model_loss(self, batch: Batch) -> tuple[Tensor, Metrics, Posterior, Tensor]:
        """Loss of the world model on a batch: (loss, metrics, posterior, feat (B, T, F))."""
        c = self.config
        self.encoder.norm.update(batch["obs"][..., : self.layout.numbers])
        before = State(*(batch[f"prev_{name}"] for name in State._fields))
        post, _ = self.rssm.observe(
            self.encoder(batch["obs"]), batch["action"], batch["is_first"], self.rng, before
        )
        feat = self.rssm.get_feat(post)  # (B, T, F)
        cont = 1 - batch["is_terminal"].float()
        dyn, rep = kl_losses(post.post_logits, post.prior_logits, c.free_nats)
        recon = self.decoder(feat)  # (B, T, O)
        parts = {
            "obs_loss": self.decoder.loss(recon, batch["obs"]),
            "reward_loss": self.reward.loss(self.reward(feat), batch["reward"]),
            "cont_loss": self.cont.loss(self.cont(feat), cont),
            "dyn_loss": dyn,
            "rep_loss": rep,
        }
        if self.layout.images:
            parts["image_loss"] = self.decoder.image_loss(recon, batch["obs"])
        loss, metrics = model_loss(parts, c.beta_obs, c.beta_dyn, c.beta_rep)
        return loss, metrics, post, feat

    def choose_starts(self, total: int) -> Tensor:
        """Indices (N,) of the replayed states to dream from: `imag_starts`, or all if those are
        fewer."""
        order = torch.randperm(total, generator=self.rng, device=self.device)
        return order[: self.config.imag_starts]

    def imagine(self, post: Posterior, starts: Tensor) -> Dream:
        """Dream with the actor from the chosen posterior states, cut off from their past.

        With REINFORCE nothing is differentiated through the dream and no graph is made; with
        pathwise gradients the graph runs through the actions only, the world being constant.
        """
        deter, stoch = (x.detach().flatten(0, 1)[starts] for x in (post.deter, post.stoch))
        start = State(deter, stoch, deter.new_zeros(len(deter), self.layout.action_size))
        horizon = self.config.imag_horizon
        noise = self.actor.noise((horizon, len(deter)), self.rng)

        def policy(feat: Tensor, t: int) -> Tensor:
            return self.actor(feat.detach()).sample(noise[t])

        pathwise = self.config.actor_grad == "pathwise"
        with frozen(*self.model_parts), torch.set_grad_enabled(pathwise):
            return self.rssm.imagine(start, policy, horizon, self.rng)

    def actor_critic_loss(self, dream: Dream) -> tuple[Tensor, Metrics, Tensor]:
        """Loss of actor and critic on dreams: (loss, metrics, returns (N, H))."""
        c = self.config
        feat = self.rssm.get_feat(dream)  # (N, H+1, F)
        pathwise = c.actor_grad == "pathwise"

        # What the world model and the critic say of every dreamed state.
        logits = self.critic(feat.detach())  # (N, H+1, bins)
        with frozen(*self.model_parts, self.critic), torch.set_grad_enabled(pathwise):
            reward = self.reward.predict(feat)[:, 1:]  # (N, H)
            cont = self.cont.predict(feat)  # (N, H+1)
            value = self.critic.predict(feat) if pathwise else self.critic.mean(logits)
            ret = lambda_return(reward, value, cont[:, 1:], c.gamma, c.lam)  # (N, H)
        with torch.no_grad():
            weight = dream_weight(cont[:, :-1], c.gamma)
            slow_value = self.slow_critic.predict(feat.detach())[:, :-1]
            ret_scale = self.ret_scale.update(ret)
            adv = (ret - value[:, :-1]) / ret_scale

        # The actor raises the return of what it did, and keeps some entropy.
        policy = self.actor(feat[:, :-1].detach())
        entropy = policy.entropy()
        if pathwise:
            actor_loss = pathwise_loss(ret, ret_scale, entropy, weight, c.ent_coef)
        else:
            log_prob = policy.log_prob(dream.action)
            actor_loss = reinforce_loss(log_prob, adv, entropy, weight, c.ent_coef)

        # The critic learns the return of every dreamed state but the last.
        targets = ret, slow_value, weight, c.slow_weight
        value_loss = critic_loss(self.critic, logits[:, :-1], *targets)
        metrics = {
            "actor_loss": actor_loss,
            "critic_loss": value_loss,
            "entropy": entropy.mean(),
            "adv_mag": adv.abs().mean(),
            "imag_reward": reward.mean(),
            "imag_cont": cont[:, 1:].mean(),
            "imag_return": ret.mean(),
            "ret_scale": ret_scale,
            "value": value.mean(),
        }
        return actor_loss + value_loss, metrics, ret

    def replay_value_loss(
        self, batch: Batch, feat: Tensor, starts: Tensor, imag_return: Tensor
    ) -> Tensor:
        """The critic's loss on replayed windows (v2, "Critic learning").

        λ-returns over real rewards; they bootstrap on the imagined return of a state where one
        was dreamed (imag_return (N,) at `starts`), else on the critic. At an episode's end λ is 0;
        after a time limit the value there still counts. What a random action or an older policy
        earned is not what today's would: λ is smaller where a row's action is less than a third
        as likely today as the likeliest. A row with is_last has no successor and no loss. (In the
        authors' code this loss also shapes the world model.)
        """
        c = self.config
        feat = feat.detach()
        logits = self.critic(feat)  # (B, T, bins)
        with torch.no_grad():
            value = self.critic.mean(logits)
            boot = value.clone()
            boot.view(-1)[starts] = imag_return
            reward, cont = batch["reward"][:, 1:], 1 - batch["is_terminal"][:, 1:].float()
            live, policy = 1 - batch["is_last"].float(), self.actor(feat)
            likely = policy.log_prob(batch["action"]) - policy.log_prob(policy.mode())
            trace = c.lam * live * (3 * likely.exp()).clamp(max=1)  # (B, T)
            ret = lambda_return(reward, boot, cont, c.gamma, trace[:, 1:])
            slow_value = self.slow_critic.predict(feat)[:, :-1]
        targets = ret, slow_value, live[:, :-1], c.slow_weight
        return critic_loss(self.critic, logits[:, :-1], *targets)

    @torch.no_grad()
    def update_slow_critic(self) -> None:
        """Move the slow critic a step of `slow_rate` towards the critic."""
        pairs = zip(self.slow_critic.parameters(), self.critic.parameters(), strict=True)
        for slow, fast in pairs:
            slow.lerp_(fast, self.config.slow_rate)
