"""The published loop, written plainly, and labkit's networks and losses: the same numbers from the same weights."""

import pytest
import torch
from torch.nn.utils.parametrize import cached

from labkit import losses, networks, published
from labkit.variants import resolve

MODELS = ["adni", "sigmarat1", "sigmarat2", "sigmarat2_released"]


def prepare(model, dtype):
    variant, scale = resolve(model, "smoke", latent_dim=6, batch_size=2)
    plain, ours = published.build(variant, scale, seed=3), networks.build(variant, scale, seed=4)
    for a, b in zip(ours, plain, strict=True):
        a.to(dtype), b.to(dtype)
        published.load_by_position(a, b.state_dict())
    draws = published.Randomness(*(t.to(dtype) for t in published.draw(variant, scale, seed=5)))
    x = torch.rand(2, 1, 16, 16, 16, generator=torch.Generator().manual_seed(6)) * 2 - 1  # the same in every dtype
    return variant, plain, ours, draws, x.to(dtype)


def our_generator_loss(n, variant, x, z):
    z_enc = n.E(x)
    x_rec, x_rand = n.G(z_enc), n.G(z)
    terms = losses.reconstruction_terms(
        x, x_rec, variant.reconstruction_weights, variant.gdl_reduction, variant.gdl_gradient
    )
    return losses.generator_loss(n.D(x_rec), n.D(x_rand), n.C(z_enc), sum(terms.values()))


def our_critic_losses(n, variant, x, draws):
    with torch.no_grad():
        z_enc = n.E(x)
        x_rec, x_rand = n.G(z_enc), n.G(draws.z_critic)

    def penalty(critic, a, b, weight):
        return losses.unit_norm_penalty(critic.input_gradient(losses.points_between(a, b, weight)))

    penalties = penalty(n.D, x, x_rec, draws.mix_rec) + penalty(n.D, x, x_rand, draws.mix_rand)
    of_d = losses.critic_loss(n.D(x), n.D(x_rec), n.D(x_rand), penalties, variant.lambda1)
    penalty_code = penalty(n.C, z_enc, draws.z_code, draws.mix_code)
    return of_d, losses.code_critic_loss(n.C(z_enc), n.C(draws.z_code), penalty_code, variant.lambda1)


def gradients(loss, *parts):
    parameters = [p for part in parts for p in part.parameters()]
    found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    both = zip(parameters, found, strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for p, g in both])


def losses_and_gradients(model, dtype):
    """The three losses and their gradients, ours and the published loop's, as two lists of tensors in float64."""
    variant, plain, ours, draws, x = prepare(model, dtype)
    with cached():
        found = [our_generator_loss(ours, variant, x, draws.z_rand)]
        expected = [sum(published.generator_losses(plain, variant, x, draws.z_rand).values())]
        found.append(gradients(found[0], ours.E, ours.G))
        expected.append(gradients(expected[0], plain.E, plain.G))
    with cached():
        terms, z_enc = published.discriminator_losses(plain, variant, x, draws)
        of_d, of_c = our_critic_losses(ours, variant, x, draws)
        of_code = sum(published.code_losses(plain, variant, z_enc, draws).values())
        found += [of_d, gradients(of_d, ours.D), of_c, gradients(of_c, ours.C)]
        expected += [sum(terms.values()), gradients(sum(terms.values()), plain.D), of_code, gradients(of_code, plain.C)]
    return [[value.detach().double() for value in values] for values in (found, expected)]


def distance(found, exact):
    return ((found - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize("model", MODELS)
def test_losses_and_gradients_are_those_of_the_published_loop(model):
    for found, expected in zip(*losses_and_gradients(model, torch.float64), strict=True):
        assert distance(found, expected) < 1e-10


@pytest.mark.parametrize("model", MODELS)
def test_float32_rounds_them_no_more_than_it_rounds_the_published_loops(model):
    # how much float32 costs depends on the processor and, through batch norms of two scans, on the variant
    _, exact = losses_and_gradients(model, torch.float64)
    for found, expected, truth in zip(*losses_and_gradients(model, torch.float32), exact, strict=True):
        assert distance(found, truth) < max(1e-3, 3 * distance(expected, truth))


@pytest.mark.parametrize("model", MODELS)
def test_the_published_loop_moves_every_network_and_logs_every_term(model):
    variant, plain, _, draws, x = prepare(model, torch.float32)
    opts = published.optimisers(plain, variant)
    before = [[p.detach().clone() for p in network.parameters()] for network in plain]
    logged = published.step(plain, opts, variant, x, x.flip(0), draws)
    assert set(logged) == {
        *("G.adversarial", "G.code", *(f"G.{name}" for name in variant.reconstruction_weights)),
        *("D.critic", "D.penalty", "C.critic", "C.penalty"),
    }
    assert all(torch.isfinite(value) and not value.requires_grad for value in logged.values())
    for network, old in zip(plain, before, strict=True):
        moved = [not torch.equal(p, q) for p, q in zip(network.parameters(), old, strict=True) if p.ndim > 1]
        assert all(moved)  # biases before a norm, and a critic's last one, have no gradient


def test_the_released_loop_takes_two_steps_of_g_on_one_gradient():
    steps = {}
    for model in ("sigmarat2", "sigmarat2_released"):
        variant, plain, _, draws, x = prepare(model, torch.float32)
        opts = published.optimisers(plain, variant)
        published.step(plain, opts, variant, x, x, draws)
        steps[model] = [
            {int(s["step"]) for s in getattr(opts, letter).state_dict()["state"].values()} for letter in "EGDC"
        ]
    assert steps == {"sigmarat2": [{1}, {1}, {1}, {1}], "sigmarat2_released": [{1}, {2}, {1}, {1}]}


def test_power_iterations_can_be_made_once_an_update():
    variant, plain, _, draws, x = prepare("sigmarat2", torch.float32)
    calls = []
    spectral = next(m for m in plain.D.modules() if type(m).__name__ == "_SpectralNorm")
    spectral.register_forward_hook(lambda *_: calls.append(1))
    opts = published.optimisers(plain, variant)
    published.step(plain, opts, variant, x, x, draws, one_power_iteration=True)
    assert len(calls) == 2  # the update of (E, G), and that of D
    published.step(plain, opts, variant, x, x, draws)
    assert len(calls) == 2 + 2 + 5  # two calls of D in the first update; three and two penalties in the second
