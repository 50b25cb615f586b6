"""The networks: MLP, encoder, decoder, prediction heads, actor and critic.

All are MLPs of `Linear -> LayerNorm -> SiLU` blocks on vectors, with convolutions for images, and
all prediction heads read the model state `feat` (..., F): deter, the GRU's memory h, beside stoch,
the sampled latent z (rssm.py).

An observation (..., O) is one flat vector: its numbers first, then its flags and one-hot vectors,
then the pixels of its images, each image (H, W, C) row by row in whole numbers from 0 to 255.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamer.utils import (
    mode_onehot,
    sample_onehot,
    symexp,
    symlog,
    twohot_bins,
    twohot_loss,
    twohot_mean,
    unimix,
)

CUT_STD = 0.87962566  # what is left of a normal's standard deviation 1 when it is cut at ±2


def init_layer(layer: Any, fan_in: int | None = None, scale: float = 1.0) -> Any:
    """The layer with weights and bias from a normal truncated at two standard deviations, of
    variance `scale^2 / fan_in` (the authors' bias: 0). With zero bias, a linear layer and the norm
    behind it would map x and 2 x to the same output. fan_in: None is a linear layer's."""
    std = scale / math.sqrt(fan_in or layer.in_features) / CUT_STD
    for values in layer.parameters():
        if scale == 0.0:
            nn.init.zeros_(values)
        else:
            nn.init.trunc_normal_(values, std=std, a=-2 * std, b=2 * std)
    return layer


def make_norm(size: int) -> nn.LayerNorm:
    """LayerNorm, with the authors' eps, in the place of their RMSNorm: its CPU kernel is fused."""
    return nn.LayerNorm(size, eps=1e-4)


class MLP(nn.Sequential):
    """`layers` blocks of Linear -> Norm -> SiLU, then a plain Linear to `out_size` if given.

    (..., in_size) -> (..., out_size or hidden). `out_scale` scales the output layer's initial
    weights: 0 makes a fresh head predict exactly zero.
    """

    def __init__(
        self,
        in_size: int,
        hidden: int,
        layers: int,
        out_size: int | None = None,
        out_scale: float = 1.0,
    ):
        blocks: list[nn.Module] = []
        for i in range(layers):
            linear = nn.Linear(in_size if i == 0 else hidden, hidden)
            blocks += [init_layer(linear), make_norm(hidden), nn.SiLU()]
        if out_size is not None:
            blocks.append(init_layer(nn.Linear(hidden, out_size), scale=out_scale))
        super().__init__(*blocks)


# ---------------------------------------------------------------- images


Shapes = Sequence[Sequence[int]]  # of images: height H, width W, channels C
KERNEL = 4  # of each convolution, stride 2
SMALL = 32  # pixels: with a shorter side it is a board, where a pixel is a thing, and rare


def image_sizes(shape: Sequence[int], depth: int) -> list[tuple[int, int, int]]:
    """(H, W, C) of an image and of what each stage makes of it: half the sides, rounded down, until
    the shorter one is 4 to 7 long, and twice the channels, `depth` at first (v1)."""
    sizes = [(shape[0], shape[1], shape[2])]
    while min(sizes[-1][:2]) >= 8:
        height, width, _ = sizes[-1]
        sizes.append((height // 2, width // 2, depth * 2 ** (len(sizes) - 1)))
    return sizes


class ImageEncoder(nn.Sequential):
    """Stages of a convolution that halves the sides, norm and SiLU: pixels (..., H*W*C) from 0 to
    255 -> (..., size). No symlog. The norm is of a whole image: a quarter faster on a CPU than one
    of each pixel's channels. Weights lie in memory as pixels do, which is faster too."""

    def __init__(self, shape: Sequence[int], depth: int):
        self.shape, sizes = tuple(shape), image_sizes(shape, depth)
        blocks: list[nn.Module] = []
        for (*_, c), (*_, out) in itertools.pairwise(sizes):
            conv = nn.Conv2d(c, out, KERNEL, stride=2, padding=1)
            norm = nn.GroupNorm(1, out, eps=1e-4)
            blocks += [init_layer(conv, c * KERNEL**2), norm, nn.SiLU()]
        super().__init__(*blocks)
        self.size = math.prod(sizes[-1])
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, pixels: Tensor) -> Tensor:
        x = pixels.reshape(-1, *self.shape).permute(0, 3, 1, 2)  # (N, C, H, W)
        x = super().forward(x / 255 - 0.5)
        return x.permute(0, 2, 3, 1).reshape(*pixels.shape[:-1], self.size)


class ImageDecoder(nn.Sequential):
    """The encoder's mirror, with transposed convolutions: feat (..., F) -> (..., H*W*C), where 0 is
    black and 1 is white."""

    def __init__(self, feat_size: int, shape: Sequence[int], depth: int):
        sizes = image_sizes(shape, depth)[::-1]
        self.shape, self.size, (height, width, channels) = shape, math.prod(shape), sizes[0]
        blocks: list[nn.Module] = [
            init_layer(nn.Linear(feat_size, math.prod(sizes[0]))),
            nn.Unflatten(1, (channels, height, width)),
        ]
        for (*_, c), (h, w, out) in itertools.pairwise(sizes):
            odd = (h % 2, w % 2)  # what halving has rounded off
            conv = nn.ConvTranspose2d(c, out, KERNEL, stride=2, padding=1, output_padding=odd)
            init_layer(conv, c * KERNEL**2 // 4)  # each pixel reads a quarter of the kernel
            blocks += [nn.GroupNorm(1, c, eps=1e-4), nn.SiLU(), conv]
        super().__init__(*blocks)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, feat: Tensor) -> Tensor:
        x = super().forward(feat.flatten(0, -2)) + 0.5  # (N, C, H, W)
        return x.permute(0, 2, 3, 1).reshape(*feat.shape[:-1], self.size)

    def loss(self, guess: Tensor, target: Tensor) -> Tensor:
        """(..., H*W*C) -> (...): squared error (v2, eq. 3) or, of a small image, cross-entropy, as
        if of 64 x 64 pixels: else it would cost less than the KL of saying it."""
        if min(self.shape[:2]) < SMALL:  # black is a logit of -4, white of 4
            loss = F.binary_cross_entropy_with_logits(8 * (guess - 0.5), target, reduction="none")
        else:
            loss = (guess - target).square()
        return 64 * 64 / math.prod(self.shape[:2]) * loss.sum(-1)


# ---------------------------------------------------------------- observations


class ObsNorm(nn.Module):
    """symlog of numbers (..., N), then each dimension to mean 0, standard deviation 1, within ±10.

    Symlog alone leaves an angle of ±0.1 rad so small that the decoder's squared error hardly
    notices it. Running averages over replayed batches, debiased, and none before the first; a
    (nearly) constant dimension is not blown up. The bound is for rare extremes, such as a
    contact: one would outweigh all else.
    """

    moments: Tensor  # (2, N), averages of x and x^2
    weight: Tensor  # 1 - decay^n, the debiasing
    mean: Tensor  # (N,)
    std: Tensor  # (N,)
    limit = 10.0  # standard deviations

    def __init__(self, numbers: int, decay: float = 0.99, min_std: float = 0.01):
        super().__init__()
        self.decay, self.min_std = decay, min_std
        self.register_buffer("moments", torch.zeros(2, numbers))
        self.register_buffer("weight", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(numbers))
        self.register_buffer("std", torch.ones(numbers))

    @torch.no_grad()
    def update(self, numbers: Tensor) -> None:
        """Take in a batch (..., N) in the environment's own units."""
        x = symlog(numbers).flatten(0, -2)
        self.moments.lerp_(torch.stack([x.mean(0), x.square().mean(0)]), 1 - self.decay)
        self.weight.lerp_(torch.ones_like(self.weight), 1 - self.decay)
        mean, square = self.moments / self.weight
        self.mean.copy_(mean)
        self.std.copy_((square - mean.square()).clamp(min=0).sqrt().clamp(min=self.min_std))

    def forward(self, numbers: Tensor) -> Tensor:
        """(..., N) -> (..., N)."""
        return ((symlog(numbers) - self.mean) / self.std).clamp(-self.limit, self.limit)

    def inverse(self, x: Tensor) -> Tensor:
        """(..., N) back to the environment's own units."""
        return symexp(x * self.std + self.mean)


class Encoder(nn.Module):
    """What an observation says: obs (..., O) -> embed (..., E). Normalised symlog of its numbers,
    beside its flags and one-hot vectors, goes through an MLP; each image goes through convolutions.

    numbers: how many entries are numbers; vector: how many come before the pixels; images: shapes.
    """

    def __init__(
        self, numbers: int, vector: int, images: Shapes, hidden: int, layers: int, depth: int
    ):
        super().__init__()
        self.norm, self.numbers = ObsNorm(numbers), numbers
        self.sizes = [vector, *map(math.prod, images)]  # of the vector and of each image
        self.mlp = MLP(vector, hidden, layers) if vector else None
        encoders = [ImageEncoder(shape, depth) for shape in images]
        self.images = nn.ModuleList(encoders)
        self.size = (hidden if vector else 0) + sum(image.size for image in encoders)  # E

    def forward(self, obs: Tensor) -> Tensor:
        vector, *images = obs.split(self.sizes, -1)
        embed = [image(x) for image, x in zip(self.images, images, strict=True)]
        if self.mlp is not None:
            embed.insert(0, self.mlp(self.normalise(vector)))
        return torch.cat(embed, -1)

    def normalise(self, vector: Tensor) -> Tensor:
        """An observation's vector (..., V) with its numbers normalised."""
        numbers, rest = vector.tensor_split([self.numbers], -1)
        return torch.cat([self.norm(numbers), rest], -1)


class Decoder(nn.Module):
    """Reconstructs the observation: feat (..., F) -> (..., O), numbers in the units of the
    encoder's norm, logits for the entries of one-hot vectors, pixels from 0 to 1 (v2, eq. 1).

    encoder: the one whose observations are reconstructed; categories: sizes of the one-hot vectors.
    """

    def __init__(
        self,
        feat_size: int,
        encoder: Encoder,
        categories: Sequence[int],
        images: Shapes,
        hidden: int,
        layers: int,
        depth: int,
    ):
        super().__init__()
        self.norm, self.normalise, self.numbers = encoder.norm, encoder.normalise, encoder.numbers
        self.vector, self.categories = encoder.sizes[0], list(categories)
        self.plain = self.vector - sum(categories)  # numbers and flags
        self.mlp = MLP(feat_size, hidden, layers, self.vector) if self.vector else None
        self.images = nn.ModuleList(ImageDecoder(feat_size, shape, depth) for shape in images)

    def forward(self, feat: Tensor) -> Tensor:
        vector = [] if self.mlp is None else [self.mlp(feat)]
        return torch.cat(vector + [image(feat) for image in self.images], -1)

    def split(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """(..., O) -> the vector (..., V), and the pixels."""
        return obs[..., : self.vector], obs[..., self.vector :]

    def one_hots(self, vector: Tensor) -> tuple[Tensor, ...]:
        """The one-hot vectors in (..., V), or the logits in their places."""
        return vector[..., self.plain :].split(self.categories, -1)

    def mean(self, recon: Tensor) -> Tensor:
        """`self(feat)` with probabilities in the place of logits."""
        vector, pixels = self.split(recon)
        probs = [logits.softmax(-1) for logits in self.one_hots(vector)]
        return torch.cat([vector[..., : self.plain], *probs, pixels], -1)

    def predict(self, feat: Tensor) -> Tensor:
        """Predicted observation in the environment's own units; probabilities of categories."""
        vector, pixels = self.split(self.mean(self(feat)))
        numbers, rest = vector.tensor_split([self.numbers], -1)
        return torch.cat([self.norm.inverse(numbers), rest, 255 * pixels.clamp(0, 1)], -1)

    def image_loss(self, recon: Tensor, obs: Tensor) -> Tensor:
        """Loss of all images (...)."""
        sizes = [image.size for image in self.images]
        both = (self.split(pixels)[1].split(sizes, -1) for pixels in (recon, obs / 255))
        return sum(map(ImageDecoder.loss, self.images, *both), recon.new_zeros(()))

    def loss(self, recon: Tensor, obs: Tensor) -> Tensor:
        """Loss of `self(feat)`, summed over all but pixels: (...). Squared error against flags and
        the normalised symlog of numbers (v2, eq. 8, without its ½), cross-entropy of one-hot
        vectors, in nats."""
        target, recon = self.normalise(self.split(obs)[0]), self.split(recon)[0]
        loss = (recon - target)[..., : self.plain].square().sum(-1)
        for logits, onehot in zip(self.one_hots(recon), self.one_hots(target), strict=True):
            loss = loss - (logits.log_softmax(-1) * onehot).sum(-1)
        return loss


class TwoHotHead(nn.Module):
    """A scalar as a distribution over 255 exponentially spaced bins, zero at first (v2, eq. 10)."""

    bins: Tensor

    def __init__(self, feat_size: int, hidden: int, layers: int, num_bins: int = 255):
        super().__init__()
        self.mlp = MLP(feat_size, hidden, layers, num_bins, out_scale=0.0)
        self.register_buffer("bins", twohot_bins(num_bins), persistent=False)

    def forward(self, feat: Tensor) -> Tensor:
        """feat (..., F) -> logits (..., num_bins)."""
        return self.mlp(feat)

    def mean(self, logits: Tensor) -> Tensor:
        """Expected value in raw units: logits (..., num_bins) -> (...)."""
        return twohot_mean(logits, self.bins)

    def predict(self, feat: Tensor) -> Tensor:
        """Expected value in raw units: feat (..., F) -> (...)."""
        return self.mean(self(feat))

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy of `self(feat)` with the two-hot target (raw units): (...) in nats."""
        return twohot_loss(logits, target, self.bins)


class RewardHead(TwoHotHead):
    """Reward received on arriving at the state (v2, eq. 1)."""


class Critic(TwoHotHead):
    """Distribution of the λ-return from the state on (v2, eq. 4)."""


class ContinueHead(nn.Module):
    """Logit of the task's going on at the state: a time limit does not end it (v2, eq. 1)."""

    def __init__(self, feat_size: int, hidden: int, layers: int):
        super().__init__()
        self.mlp = MLP(feat_size, hidden, layers, 1)

    def forward(self, feat: Tensor) -> Tensor:
        """feat (..., F) -> logit (...)."""
        return self.mlp(feat)[..., 0]

    def predict(self, feat: Tensor) -> Tensor:
        """Probability in [0, 1]: (..., F) -> (...)."""
        return self(feat).sigmoid()

    def loss(self, logit: Tensor, cont: Tensor) -> Tensor:
        """Binary cross-entropy of `self(feat)` with cont in {0, 1}: (...) in nats."""
        return F.binary_cross_entropy_with_logits(logit, cont, reduction="none")


class DiscretePolicy:
    """Independent categoricals, G of them (one for `Discrete`), over an action (..., A) made of
    one one-hot vector each. log_probs: G tensors (..., K_g), whose sizes add up to A."""

    def __init__(self, log_probs: Sequence[Tensor]):
        self.log_probs = log_probs

    def sample(self, noise: Tensor) -> Tensor:
        """One-hot action (..., A) with straight-through gradients; noise (..., G) in [0, 1)."""
        parts = zip(self.log_probs, noise.unbind(-1), strict=True)
        return torch.cat([sample_onehot(log_probs, uniform) for log_probs, uniform in parts], -1)

    def mode(self) -> Tensor:
        """The likeliest action (..., A)."""
        return torch.cat([mode_onehot(log_probs) for log_probs in self.log_probs], -1)

    def log_prob(self, action: Tensor) -> Tensor:
        """action (..., A) -> (...), summed over the categoricals."""
        return (torch.cat(list(self.log_probs), -1) * action).sum(-1)

    def entropy(self) -> Tensor:
        """(...), nats, summed over the categoricals."""
        log_probs = torch.cat(list(self.log_probs), -1)
        return -(log_probs.exp() * log_probs).sum(-1)


class ContinuousPolicy:
    """Independent normals, mean and std (..., A), in units of the scaled action [-1, 1]."""

    def __init__(self, mean: Tensor, std: Tensor):
        self.mean, self.std = mean, std

    def sample(self, noise: Tensor) -> Tensor:
        """Reparameterised sample (..., A), not clipped; noise (..., A) standard normal."""
        return self.mean + self.std * noise

    def mode(self) -> Tensor:
        """The likeliest action (..., A), the mean."""
        return self.mean

    def log_prob(self, action: Tensor) -> Tensor:
        """action (..., A) -> (...), summed over action dimensions."""
        error = (action - self.mean) / self.std
        return (-0.5 * error.square() - self.std.log() - 0.5 * math.log(2 * math.pi)).sum(-1)

    def entropy(self) -> Tensor:
        """(...), nats, summed over action dimensions."""
        return (0.5 + 0.5 * math.log(2 * math.pi) + self.std.log()).sum(-1)


Policy = DiscretePolicy | ContinuousPolicy


class Actor(nn.Module):
    """Policy π(a | feat): categorical with unimix, or a normal with `mean = tanh(m)` and
    `std = 0.1 + 0.9 sigmoid(s + 2)` (the authors' code). The output layer starts small: a fresh
    policy is close to uniform, or a normal of mean 0 and std 0.9.

    numbers: of a continuous action; categories: sizes of the one-hot vectors of a discrete one.
    """

    def __init__(
        self,
        feat_size: int,
        numbers: int,
        categories: Sequence[int],
        hidden: int,
        layers: int,
        mix: float,
    ):
        super().__init__()
        self.numbers, self.categories, self.mix = numbers, list(categories), mix
        out_size = 2 * numbers + sum(categories)
        self.mlp = MLP(feat_size, hidden, layers, out_size, out_scale=0.01)

    def forward(self, feat: Tensor) -> Policy:
        """feat (..., F) -> the policy of each."""
        out = self.mlp(feat)
        if self.categories:
            parts = out.split(self.categories, -1)
            return DiscretePolicy([unimix(logits, self.mix) for logits in parts])
        mean, std = out.chunk(2, -1)
        return ContinuousPolicy(mean.tanh(), 0.1 + 0.9 * (std + 2).sigmoid())

    def noise(self, shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
        """The random numbers that `sample` takes, for actions of leading `shape`."""
        if self.categories:
            size = (*shape, len(self.categories))
            return torch.rand(size, generator=rng, device=rng.device)
        return torch.randn((*shape, self.numbers), generator=rng, device=rng.device)
