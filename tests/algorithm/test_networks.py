"""Networks and policies, against torch.distributions and slow numpy rewritings."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Bernoulli, Categorical, Independent, Normal

from dreamer.networks import (
    MLP,
    Actor,
    ContinueHead,
    ContinuousPolicy,
    Critic,
    Decoder,
    DiscretePolicy,
    Encoder,
    ImageDecoder,
    ImageEncoder,
    ObsNorm,
    RewardHead,
    image_sizes,
    init_layer,
)
from dreamer.utils import symexp, symlog


@pytest.fixture
def rng() -> torch.Generator:
    torch.manual_seed(0)  # of the weights that a test makes
    return torch.Generator().manual_seed(1)


def stir(module: nn.Module, rng: torch.Generator, size: float = 0.3) -> nn.Module:
    """Move every weight, so that nothing is zero or one only because it is fresh."""
    with torch.no_grad():
        for p in module.parameters():
            p += size * torch.randn(p.shape, generator=rng)
    return module


def test_mlp_is_linear_norm_silu_as_numpy_computes_it(rng):
    mlp = stir(MLP(3, 5, 2, out_size=4), rng)
    x = torch.randn(7, 3, generator=rng)
    weights = [p.detach().double().numpy() for p in mlp.parameters()]
    assert [w.shape for w in weights] == [(5, 3), *[(5,)] * 3, (5, 5), *[(5,)] * 3, (4, 5), (4,)]
    y = x.double().numpy()
    for linear, bias, scale, shift in (weights[0:4], weights[4:8]):
        y = y @ linear.T + bias
        y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-4)
        y = scale * y + shift
        y = y / (1 + np.exp(-y))
    y = y @ weights[8].T + weights[9]
    np.testing.assert_allclose(mlp(x).detach().numpy(), y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 0.01])
def test_fresh_weights_have_variance_of_one_over_fan_in_and_no_tails(rng, scale):
    weight, bias = init_layer(nn.Linear(400, 3000), scale=scale).parameters()
    std = scale / math.sqrt(400)
    assert weight.std().item() == pytest.approx(std, rel=0.01)
    assert weight.mean().abs().item() < 0.01 * std
    assert weight.abs().max().item() <= 2 * std / 0.8796  # cut at two of the uncut normal's std
    assert bias.std().item() == pytest.approx(std, rel=0.05)
    assert all(p.eq(0).all() for p in init_layer(nn.Linear(4, 3), scale=0.0).parameters())


def autoencoder(numbers=0, flags=0, categories=(), images=()) -> tuple[Decoder, ObsNorm]:
    """A decoder of feat (..., 6), and the norm that it shares with its encoder."""
    vector = numbers + flags + sum(categories)
    encoder = Encoder(numbers, vector, images, 16, 1, depth=2)
    return Decoder(6, encoder, categories, images, 16, 1, depth=2), encoder.norm


def symlog64(x: torch.Tensor) -> np.ndarray:
    x = x.double().numpy()
    return np.sign(x) * np.log1p(np.abs(x))


def test_obs_norm_keeps_debiased_running_moments(rng):
    norm = ObsNorm(2, decay=0.9)
    batches = [torch.randn(8, 6, 2, generator=rng) * size + 2 for size in (1.0, 30.0, 0.1)]
    torch.testing.assert_close(norm(batches[1]), symlog(batches[1]))  # before the first update
    mean = square = weight = 0.0
    for batch in batches:
        norm.update(batch)
        x = symlog64(batch).reshape(-1, 2)
        mean, square = 0.9 * mean + 0.1 * x.mean(0), 0.9 * square + 0.1 * (x**2).mean(0)
        weight = 0.9 * weight + 0.1
    std = np.sqrt(square / weight - (mean / weight) ** 2)
    expected = (symlog64(batches[0]) - mean / weight) / std
    np.testing.assert_allclose(norm(batches[0]).numpy(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norm.inverse(norm(batches[1])), batches[1], rtol=1e-3, atol=1e-4)


def test_obs_norm_does_not_blow_up_a_constant_dimension():
    norm = ObsNorm(2, min_std=0.01)
    obs = torch.tensor([[1.0, 5.0], [-1.0, 5.0]])
    norm.update(obs)
    torch.testing.assert_close(norm(obs), torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), atol=0.1, rtol=0)
    off = norm(torch.tensor([[1.0, 5.06]]))[0, 1].item()  # symlog: 0.01 further, one min_std
    assert off == pytest.approx(math.log(6.06 / 6) / 0.01, abs=0.1)


def test_obs_norm_bounds_what_seldom_or_never_happened():
    """A contact that one row in a thousand has, and one that none has had: without a bound they
    would be 31 and 69 standard deviations from the mean, and outweigh all else when they come."""
    norm, rows = ObsNorm(2), torch.zeros(1000, 2)
    rows[0, 0] = 1
    norm.update(rows)
    far = (math.log(2) - norm.mean) / norm.std
    assert far.tolist() == pytest.approx([31.6, 69.3], abs=0.1)
    assert norm(torch.tensor([[1.0, 1.0], [0.0, -1.0]])).tolist() == [
        [10.0, 10.0],
        [pytest.approx(-0.03, abs=0.01), -10.0],
    ]


def test_flags_and_one_hot_vectors_stay_as_they_are_however_rare(rng):
    """What stands behind the numbers is neither normalised nor passed through symlog."""
    encoder = Encoder(1, 6, (), 16, 1, depth=8)
    obs = torch.zeros(1000, 6)
    obs[:, 0] = torch.linspace(-1, 1, 1000)
    obs[0, 1] = obs[:500, 2] = obs[:, 4] = 1
    encoder.norm.update(obs[:, :1])
    seen = encoder.normalise(obs)
    np.testing.assert_array_equal(seen[:, 1:], obs[:, 1:])
    assert seen[:, 0].std().item() == pytest.approx(1, rel=1e-2)
    torch.testing.assert_close(encoder(obs), encoder.mlp(seen))


def test_encoder_tells_an_observation_from_twice_that_observation(rng):
    """Without biases it cannot: its first layer's norm divides the size away."""
    encoder = Encoder(4, 4, (), 16, 2, depth=8)
    x = symlog(torch.randn(50, 4, generator=rng))
    once, twice = encoder(symexp(x)), encoder(symexp(2 * x))
    assert ((once - twice).abs().amax(-1) > 0.1).all()
    encoder.mlp[0].bias.data.zero_()
    torch.testing.assert_close(encoder(symexp(x)), encoder(symexp(2 * x)), rtol=0, atol=0.05)


def test_decoder_of_numbers_a_flag_and_two_one_hot_vectors_by_hand():
    decoder, norm = autoencoder(numbers=2, flags=1, categories=(3, 2))
    norm.mean.copy_(torch.tensor([0.5, -3.0]))
    norm.std.copy_(torch.tensor([2.0, 1.0]))
    guess = torch.tensor([[0.5, 2.0, 0.25, 1.0, 2.0, 0.0, 0.0, 1.0]])
    obs = torch.tensor([[math.e - 1, 1 - math.e, 1, 0, 1, 0, 1, 0]])  # symlog: 1 and -1
    three = np.exp([1, 2, 0]) / np.exp([1, 2, 0]).sum()
    two = np.exp([0, 1]) / np.exp([0, 1]).sum()
    errors = [0.5 - (1 - 0.5) / 2, 2 - (-1 + 3) / 1, 0.75]
    expected = np.square(errors).sum() - np.log(three[1]) - np.log(two[0])
    assert decoder.loss(guess, obs).item() == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(decoder.mean(guess)[0], [0.5, 2, 0.25, *three, *two], rtol=1e-5)
    decoder.forward = lambda feat: guess
    predicted = decoder.predict(torch.ones(1, 6))[0]
    symexps = [math.exp(1.5) - 1, 1 - math.e]  # of 0.5 * 2 + 0.5 and of 2 - 3
    np.testing.assert_allclose(predicted, [*symexps, 0.25, *three, *two], rtol=1e-5)


SIZES = [(8, 8), (9, 9), (10, 10), (15, 16), (31, 33), (48, 48), (64, 64), (95, 96), (96, 96)]


@pytest.mark.parametrize("sides", [*SIZES, (8, 96), (40, 13)])
@pytest.mark.parametrize("channels", [1, 3, 10])
def test_any_size_comes_out_as_it_went_in(sides, channels):
    shape = (*sides, channels)
    encoder, decoder = ImageEncoder(shape, 2), ImageDecoder(7, shape, 2)
    pixels = torch.rand(2, 3, sides[0] * sides[1] * channels) * 255
    embed = encoder(pixels)
    assert embed.shape == (2, 3, encoder.size)
    assert decoder(torch.rand(2, 3, 7)).shape == pixels.shape
    height, width, _ = image_sizes(shape, 2)[-1]
    assert 4 <= min(height, width) <= 7


def test_stages_by_hand():
    assert image_sizes((64, 64, 3), 8) == [
        (64, 64, 3), (32, 32, 8), (16, 16, 16), (8, 8, 32), (4, 4, 64)
    ]  # fmt: skip
    assert image_sizes((10, 10, 4), 8) == [(10, 10, 4), (5, 5, 8)]
    assert image_sizes((9, 20, 1), 3) == [(9, 20, 1), (4, 10, 3)]


def test_every_pixel_and_weight_counts():
    """Of odd sizes too: no pixel lies outside all windows, and none is drawn by nothing."""
    torch.manual_seed(0)
    shape = (17, 22, 2)
    encoder, decoder = ImageEncoder(shape, 4), ImageDecoder(5, shape, 4)
    pixels = (torch.rand(6, 17 * 22 * 2) * 255).requires_grad_()
    encoder(pixels).square().sum().backward()
    assert (pixels.grad.abs().sum(0) > 0).all()
    feat = torch.randn(6, 5, requires_grad=True)
    decoder(feat).sub(torch.rand(6, 17 * 22 * 2)).square().sum().backward()
    assert decoder(feat).std(0).min() > 0
    for module in (encoder, decoder):
        assert all(p.grad.abs().max() > 0 for p in module.parameters())


def test_a_pixel_is_where_it_was():
    """Row, column and colour of one pixel, as encoder and decoder have them."""
    shape, place = (8, 12, 3), (2, 7, 1)
    encoder = ImageEncoder(shape, 4)
    black = torch.zeros(shape)
    image = black.clone()
    image[place] = 255
    read = (encoder(image.flatten()) - encoder(black.flatten())).view(4, 6, 4).abs().amax(-1)
    most = read.flatten().topk(4).indices.sort().values  # windows of 4, from -1 on, in twos
    assert most.tolist() == [3, 4, 6 + 3, 6 + 4]  # rows 0 and 1, columns 3 and 4

    decoder = ImageDecoder(2, shape, 4)
    with torch.no_grad():
        last = decoder[-1]
        last.weight.zero_()
        last.weight[0, 1, 1, 0] = 1  # kernel row 1, column 0: image row 2 i, column 2 j - 1
        last.bias.zero_()
    drawn = []
    decoder[-2].register_forward_hook(lambda *call: drawn.append(call[-1]))
    image = decoder(torch.randn(1, 2)).view(shape) - 0.5
    np.testing.assert_allclose(
        image[::2, 1::2, 1][:, :5].detach(), drawn[0][0, 0, :, 1:].detach(), atol=1e-6
    )
    assert not image[1::2].any() and not image[..., 0].any() and not image[..., 2].any()


def test_brightness_and_contrast_are_seen():
    """Without biases the first norm would divide them away."""
    torch.manual_seed(0)
    encoder, image = ImageEncoder((16, 16, 3), 8), 255 * torch.rand(16 * 16 * 3)
    grey = torch.full_like(image, 60)
    for one, other in ((image, (image + 127.5) / 2), (grey, grey + 60)):
        one, other = encoder(one), encoder(other)
        assert (one - other).norm() > 0.05 * one.norm()
    conv, seen = encoder[0], []
    conv.register_forward_hook(lambda *call: seen.append(call[-1][0]))
    encoder(torch.full_like(image, 127.5))  # the middle is 0
    torch.testing.assert_close(seen[0], conv.bias[:, None, None].expand_as(seen[0]))


def test_small_images_by_hand():
    """Cross-entropy of pixels, weighted as if the image were 64 x 64."""
    decoder, _ = autoencoder(numbers=1, images=[(8, 8, 1)])
    guess, obs = torch.full((1, 65), 0.5), torch.zeros(1, 65)
    obs[0, 1], obs[0, 2] = 255, 127.5
    assert decoder.image_loss(guess, obs).item() == pytest.approx(64 * 64 * math.log(2))
    assert decoder.loss(guess, obs).item() == pytest.approx(0.25)
    guess[0, 1] = 1  # white is a logit of 4
    expected = 64 * (63 * math.log(2) + math.log1p(math.exp(-4)))
    assert decoder.image_loss(guess, obs).item() == pytest.approx(expected)
    guess[0, 1:4] = torch.tensor([-3, 0.2, 7])
    decoder.forward = lambda feat: guess
    predicted = decoder.predict(torch.ones(1, 6))[0, 1:5]
    assert predicted.tolist() == pytest.approx([0, 51, 255, 127.5])


def test_larger_images_cost_their_squared_error_each_as_if_of_64_by_64():
    shapes = [(64, 64, 3), (32, 64, 1), (96, 96, 1)]
    decoder, _ = autoencoder(images=shapes)
    sizes = [math.prod(shape) for shape in shapes]
    guess, obs = torch.rand(2, sum(sizes)), 255 * torch.rand(2, sum(sizes))
    parts = (guess - obs / 255).square().split(sizes, -1)
    expected = parts[0].sum(-1) + 2 * parts[1].sum(-1) + 4 / 9 * parts[2].sum(-1)
    torch.testing.assert_close(decoder.image_loss(guess, obs), expected)


def test_numbers_and_images_side_by_side():
    encoder = Encoder(2, 3, [(8, 8, 1), (16, 8, 3)], 16, 1, depth=2)
    obs = torch.rand(5, 3 + 64 + 384)
    embed = encoder(obs)
    assert embed.shape == (5, encoder.size) and encoder.size == 16 + 4 * 4 * 2 + 8 * 4 * 2
    other = obs.clone()
    other[:, 70:] = 0  # the second image alone
    changed = (encoder(other) != embed).any(0)
    assert not changed[: 16 + 32].any() and changed[48:].any()
    camera = Encoder(0, 0, [(8, 8, 1)], 16, 1, depth=2)
    assert camera(obs[:, 3:67]).shape == (5, 32)  # no vector, no MLP


@pytest.mark.parametrize("head", [RewardHead, Critic])
def test_fresh_scalar_heads_predict_exactly_zero(rng, head):
    fresh = head(6, 16, 2)
    feat = 100 * torch.randn(50, 6, generator=rng)
    assert fresh(feat).shape == (50, 255) and fresh(feat).eq(0).all()
    assert fresh.predict(feat).eq(0).all()


def test_continue_head_matches_bernoulli(rng):
    head = stir(ContinueHead(6, 16, 1), rng, 1.0)
    feat = torch.randn(9, 6, generator=rng)
    cont = (torch.arange(9) % 2).float()
    torch.testing.assert_close(head.predict(feat), head(feat).sigmoid())
    expected = -Bernoulli(logits=head(feat)).log_prob(cont)
    torch.testing.assert_close(head.loss(head(feat), cont), expected)


def test_discrete_policy_matches_categorical(rng):
    log_probs = torch.randn(20, 5, generator=rng).log_softmax(-1)
    policy, reference = DiscretePolicy([log_probs]), Categorical(logits=log_probs)
    action = torch.eye(5).repeat(4, 1)
    torch.testing.assert_close(policy.log_prob(action), reference.log_prob(action.argmax(-1)))
    torch.testing.assert_close(policy.entropy(), reference.entropy())
    assert torch.equal(policy.mode().argmax(-1), log_probs.argmax(-1))
    sample = policy.sample(torch.rand(20, 1, generator=rng))
    assert ((sample == 0) | (sample == 1)).all() and sample.sum(-1).eq(1).all()


def test_continuous_policy_matches_normal(rng):
    mean, std = torch.randn(20, 3, generator=rng), torch.rand(20, 3, generator=rng) + 0.1
    policy, reference = ContinuousPolicy(mean, std), Independent(Normal(mean, std), 1)
    action = 3 * torch.randn(20, 3, generator=rng)
    torch.testing.assert_close(policy.log_prob(action), reference.log_prob(action))
    torch.testing.assert_close(policy.entropy(), reference.entropy())
    assert torch.equal(policy.mode(), mean)
    noise = torch.tensor([0.0, 1.0, -2.0])
    torch.testing.assert_close((policy.sample(noise) - mean) / std, noise.expand(20, 3))


def test_continuous_samples_carry_gradients_to_mean_and_std():
    mean, std = torch.zeros(2, requires_grad=True), torch.ones(2, requires_grad=True)
    noise = torch.tensor([0.5, -2.0])
    ContinuousPolicy(mean, std).sample(noise).sum().backward()
    assert mean.grad.tolist() == [1, 1] and torch.equal(std.grad, noise)


def test_a_fresh_actor_is_close_to_uniform(rng):
    feat = torch.randn(100, 6, generator=rng)
    (log_probs,) = Actor(6, 0, (4,), 16, 2, 0.01)(feat).log_probs
    assert log_probs.shape == (100, 4)
    assert (log_probs.exp() - 0.25).abs().max() < 0.02
    policy = Actor(6, 4, (), 16, 2, 0.01)(feat)
    assert policy.mean.abs().max() < 0.05
    fresh_std = 0.1 + 0.9 / (1 + math.exp(-2))
    assert (policy.std - fresh_std).abs().max() < 0.02


def test_no_action_falls_below_the_unimix_floor(rng):
    actor = stir(Actor(6, 0, (4,), 16, 1, 0.08), rng, 30.0)
    (log_probs,) = actor(torch.randn(100, 6, generator=rng)).log_probs
    probs = log_probs.exp()
    assert probs.max() > 0.9  # a sure policy
    assert probs.min().item() == pytest.approx(0.08 / 4, rel=1e-3)
    torch.testing.assert_close(probs.sum(-1), torch.ones(100))


def test_continuous_actor_is_bounded(rng):
    actor = stir(Actor(6, 2, (), 16, 1, 0.0), rng, 30.0)
    feat = torch.randn(500, 6, generator=rng)
    policy, out = actor(feat), actor.mlp(feat)
    torch.testing.assert_close(policy.mean, out[:, :2].tanh())
    torch.testing.assert_close(policy.std, 0.1 + 0.9 / (1 + torch.exp(-(out[:, 2:] + 2))))
    assert policy.std.min() < 0.11 and policy.std.max() > 0.99 and policy.mean.abs().max() <= 1


@pytest.mark.parametrize(
    ("numbers", "categories", "shape"),
    [(0, (3,), (5, 7, 1)), (0, (2, 4), (5, 7, 2)), (3, (), (5, 7, 3))],
)
def test_action_noise_comes_from_the_given_generator(numbers, categories, shape):
    """One number for each one-hot vector, or for each continuous action."""
    actor = Actor(6, numbers, categories, 16, 1, 0.01)
    noise = [actor.noise((5, 7), torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert noise[0].shape == shape
    assert torch.equal(noise[0], noise[1]) and not torch.equal(noise[0], noise[2])
    if categories:
        assert 0 <= noise[0].min() and noise[0].max() < 1
    else:
        assert noise[0].std().item() == pytest.approx(1, abs=0.2)
