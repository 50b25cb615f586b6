"""The pure maths of DreamerV3, and random numbers that depend on a seed alone.

Every function here works on plain tensors and knows nothing of agents or environments.
Equation numbers are those of arXiv 2301.04104v2 (the Nature 2025 text) unless v1 is named.

Shape letters, used in the whole package:
B batch, T time steps of a replayed window, N imagined trajectories, H imagination horizon,
S categoricals of a latent, K classes of each, D size of the GRU state, A size of an action,
O of an observation, E of its embedding, F = D + S K of `feat`, which the heads read.
"""

import contextlib
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

# ---------------------------------------------------------------- symlog


def symlog(x: Tensor) -> Tensor:
    """Symmetric logarithm `sign(x) ln(1 + |x|)`: linear near 0, logarithmic far away (eq. 9)."""
    return torch.sign(x) * torch.log1p(torch.abs(x))


def symexp(x: Tensor) -> Tensor:
    """Inverse of `symlog`: `sign(x) (exp|x| - 1)` (eq. 9)."""
    return torch.sign(x) * torch.expm1(torch.abs(x))


# ---------------------------------------------------------------- two-hot


def twohot_bins(num_bins: int = 255) -> Tensor:
    """Bin positions `symexp(linspace(-20, 20))` in raw units, ascending (eq. 10).

    Built from one half and its mirror image, so that bin i is exactly -bin(-i) and the middle
    bin is exactly 0. num_bins is odd; returns shape (num_bins,).
    """
    positive = symexp(torch.linspace(0, 20, num_bins // 2 + 1))
    return torch.cat([-positive[1:].flip(0), positive])


def _neighbours(x: Tensor, bins: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The two bins around each `x` and the weight of the upper one, linear in raw space."""
    x = x.clamp(bins[0], bins[-1])
    above = torch.searchsorted(bins, x.contiguous()).clamp(1, len(bins) - 1)
    below = above - 1
    low, high = bins[below], bins[above]
    return below, above, (x - low) / (high - low)


def twohot_encode(x: Tensor, bins: Tensor) -> Tensor:
    """Two-hot target: the two bins around `x` share weight 1 so that their mean is `x` (eq. 11).

    x (...) in raw units -> (..., num_bins). Outside the bins' range the outermost takes all.
    """
    below, above, upper = _neighbours(x, bins)
    target = torch.zeros(*x.shape, len(bins), dtype=upper.dtype, device=x.device)
    target.scatter_(-1, below[..., None], (1 - upper)[..., None])
    return target.scatter_(-1, above[..., None], upper[..., None])


def twohot_loss(logits: Tensor, target: Tensor, bins: Tensor) -> Tensor:
    """Cross-entropy between `softmax(logits)` and the two-hot code of `target` (eq. 11).

    logits (..., num_bins), target (...) in raw units -> (...), in nats; a target (..., M) holds M
    numbers for each distribution, and gives M losses. Only the two bins that carry weight are
    read; the dense target of `twohot_encode` is never made.
    """
    several = target.ndim == logits.ndim
    targets = target if several else target[..., None]  # (..., M)
    below, above, upper = _neighbours(targets.detach(), bins)
    log_probs = logits.log_softmax(-1)
    loss = -((1 - upper) * log_probs.gather(-1, below) + upper * log_probs.gather(-1, above))
    return loss if several else loss[..., 0]


def twohot_mean(logits: Tensor, bins: Tensor) -> Tensor:
    """Expected value `sum_i p_i bin_i` in raw units: (..., num_bins) -> (...).

    Summed in mirrored pairs, (p_i - p_-i) bin_i, so that a uniform head reads exactly 0; a plain
    float32 sum of terms as large as e^20 would not.
    """
    probs = logits.softmax(-1)
    half = len(bins) // 2
    return (probs[..., half + 1 :] - probs[..., :half].flip(-1)) @ bins[half + 1 :]


# ---------------------------------------------------------------- categoricals


def unimix(logits: Tensor, mix: float = 0.01) -> Tensor:
    """Log-probabilities of `(1 - mix) softmax(logits) + mix / K` over the last dimension.

    The floor of `mix / K` keeps every class possible: no infinite KL, no frozen policy
    (v2, "World model learning" and "Distributions": 1% uniform).
    """
    if mix == 0.0:
        return logits.log_softmax(-1)
    return ((1 - mix) * logits.softmax(-1) + mix / logits.shape[-1]).log()


def sample_index(log_probs: Tensor, uniform: Tensor) -> Tensor:
    """Draw classes by inverting the cumulative distribution.

    log_probs (..., K) and one uniform number in [0, 1) per categorical, (...) -> int64 (...).
    """
    cdf = log_probs.exp().cumsum(-1)  # cdf[k]: the probability of classes 0..k
    index = (cdf <= uniform[..., None] * cdf[..., -1:]).sum(-1)  # classes wholly below the number
    return index.clamp_(max=log_probs.shape[-1] - 1)


def sample_onehot(log_probs: Tensor, uniform: Tensor) -> Tensor:
    """Draw one-hot samples with straight-through gradients: `one_hot + probs - sg(probs)`.

    log_probs (..., K), uniform (...) as in `sample_index` -> (..., K). Forwards the last two terms
    cancel and the sample is one-hot; backwards `one_hot` and `sg(probs)` are constants, and the
    gradient is that of the probabilities (v1, "straight-through gradients").
    """
    index = sample_index(log_probs.detach(), uniform)
    onehot = torch.zeros_like(log_probs).scatter_(-1, index[..., None], 1.0)
    if not log_probs.requires_grad:
        return onehot
    probs = log_probs.exp()
    return onehot + (probs - probs.detach())


def mode_onehot(log_probs: Tensor) -> Tensor:
    """One-hot code of the likeliest class: (..., K) -> (..., K)."""
    return F.one_hot(log_probs.argmax(-1), log_probs.shape[-1]).to(log_probs.dtype)


# ---------------------------------------------------------------- returns


def lambda_return(
    reward: Tensor, value: Tensor, cont: Tensor, gamma: float, lam: float | Tensor
) -> Tensor:
    """λ-returns `R_t = r_{t+1} + γ c_{t+1} ((1 - λ) v_{t+1} + λ R_{t+1})`, `R_H = v_H`.

    Equation 5 of v2, which writes r_t, c_t and v_t for what arrives with state t + 1 here.

    reward (N, H): r_1..r_H, received on *arriving* at states 1..H; cont (N, H): c_1..c_H;
    value (N, H+1): v_0..v_H (v_0 is not used); lam: a number, or (N, H) for λ_1..λ_H.
    Returns R_0..R_{H-1}, shape (N, H).
    """
    discount = gamma * cont
    lam = torch.as_tensor(lam, dtype=reward.dtype, device=reward.device).expand_as(reward)
    interim = reward + discount * (1 - lam) * value[:, 1:]  # all of R_t but the λ R_{t+1} term
    carry = discount * lam
    ret = value[:, -1]
    returns = []
    for t in reversed(range(reward.shape[1])):
        ret = interim[:, t] + carry[:, t] * ret
        returns.append(ret)
    return torch.stack(returns[::-1], 1)


class PercentileScale(nn.Module):
    """Scale of the returns, `S = max(1, P95 - P5)`. Both percentiles are running averages over
    updates (v2, eq. 7; the floor of 1 is in eq. 6).

    Dividing advantages by S makes one entropy bonus fit every task; the floor of 1 keeps small
    returns from being blown up to noise. The averages are debiased, as Adam's are, so that the
    first update already has the right scale (the authors' start at 0 without debiasing).
    """

    range: Tensor  # (2,), running averages of the two percentiles
    weight: Tensor  # 1 - decay^n, the debiasing

    def __init__(self, decay: float = 0.99, low: float = 0.05, high: float = 0.95):
        super().__init__()
        self.decay, self.low, self.high = decay, low, high
        self.register_buffer("range", torch.zeros(2))
        self.register_buffer("weight", torch.zeros(()))

    @torch.no_grad()
    def update(self, returns: Tensor) -> Tensor:
        """Take in a batch of returns (any shape); return the scale, a scalar tensor."""
        levels = torch.tensor([self.low, self.high], device=returns.device)
        percentiles = torch.quantile(returns.detach().float().flatten(), levels)
        self.range.lerp_(percentiles, 1 - self.decay)
        self.weight.lerp_(torch.ones_like(self.weight), 1 - self.decay)
        return self.scale()

    def scale(self) -> Tensor:
        """Current scale, a scalar tensor of at least 1; 1 before the first update."""
        low, high = self.range / self.weight.clamp(min=1e-8)
        return (high - low).clamp(min=1.0)


# ---------------------------------------------------------------- seeds, gradients


def derive_seed(*parts: int) -> int:
    """One well-mixed 31-bit seed from several numbers, e.g. (run seed, stream, episode)."""
    return int(np.random.SeedSequence([len(parts), *parts]).generate_state(1)[0] >> 1)


def make_rng(device: torch.device, *seed: int) -> torch.Generator:
    """A torch random generator of its own on `device`, seeded from `seed`."""
    return torch.Generator(device).manual_seed(derive_seed(*seed))


@contextlib.contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """Within this block the modules' weights are constants: gradients flow *through* them only."""
    params = [p for m in modules for p in m.parameters() if p.requires_grad]
    for p in params:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in params:
            p.requires_grad_(True)
