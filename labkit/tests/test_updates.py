import copy

import pytest
import torch

from labkit import files, published
from labkit.updates import Draws, Learner, choose_precision, step
from labkit.variants import VARIANTS, resolve

CPU = torch.device("cpu")


def batch(size, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(size, 1, 16, 16, 16, generator=generator, dtype=torch.float64) * 2 - 1


@pytest.mark.parametrize("model", [name for name, variant in VARIANTS.items() if variant.generator_head == "voxels"])
def test_iterations_are_those_of_the_published_loop(model):
    """Losses, and the weights of all four networks after three iterations, in double precision."""
    variant, scale = resolve(model, "smoke", latent_dim=6, batch_size=3, precision="fp32")
    plain = published.build(variant, scale, seed=3)
    learner = Learner(variant, scale, CPU)
    for name, theirs in zip("EGDC", plain, strict=True):
        theirs.double()
        published.load_by_position(learner.networks[name].double(), theirs.state_dict())
    learner.average.double()
    optimisers = published.optimisers(plain, variant)
    for iteration in range(3):
        x_real, x_critic = batch(3, 10 + iteration), batch(3, 20 + iteration)
        drawn = published.Randomness(*(t.double() for t in published.draw(variant, scale, seed=iteration)))
        theirs = published.step(plain, optimisers, variant, x_real, x_critic, drawn, one_power_iteration=True)
        ours = step(
            learner,
            Draws(x_real, drawn.z_rand, x_critic, drawn.z_critic, drawn.z_code,
                  drawn.mix_rec, drawn.mix_rand, drawn.mix_code),
        )  # fmt: skip
        for network, mine in (("G", "loss_EG"), ("D", "loss_D"), ("C", "loss_C")):
            loss = sum(value for name, value in theirs.items() if name.startswith(f"{network}."))
            assert ours[mine].item() == pytest.approx(loss.item(), rel=1e-6, abs=1e-8), (iteration, mine)
    norms = {"E": variant.encoder_norm, "G": "", "D": variant.discriminator_norm, "C": variant.code_norm}
    for name, network in zip("EGDC", plain, strict=True):
        for (key, a), b in zip(learner.networks[name].state_dict().items(), network.state_dict().values(), strict=True):
            if norms[name] != "none" and key.endswith("layer.bias"):
                continue  # a norm takes the bias out again: its gradient is rounding, which Adam blows up to full steps
            assert torch.allclose(a.double(), b.double(), rtol=1e-5, atol=1e-7), (name, key)


def test_the_average_starts_near_the_weights_and_then_follows_slowly():
    variant, scale = resolve("sigmarat2", "smoke", ema_decay=0.9)
    learner = Learner(variant, scale, CPU)
    with torch.no_grad():
        for parameter in learner.G.parameters():
            parameter.fill_(1.0)
    learner.update_average()
    first = next(learner.average.parameters()).mean().item()
    assert first > 0.75  # decay (1 + 1) / (10 + 1), not 0.9: initial weights do not linger
    learner.averaged = 10**6
    with torch.no_grad():
        for parameter in learner.G.parameters():
            parameter.fill_(2.0)
    learner.update_average()
    assert next(learner.average.parameters()).mean().item() == pytest.approx(0.9 * first + 0.1 * 2, abs=1e-5)


def test_a_state_put_into_another_learner_makes_it_the_same():
    variant, scale = resolve("sigmarat1", "smoke", latent_dim=6)
    a, b = Learner(variant, scale, CPU, seed=1), Learner(variant, scale, CPU, seed=2)
    x, z, w, m = batch(4, 0).float(), torch.randn(4, 6), torch.rand(4, 1, 1, 1, 1), torch.rand(4, 1)
    draws = Draws(x, z, x, z, z, w, w, m)
    step(a, draws)
    b.load(copy.deepcopy(a.state()))
    one, other = step(a, draws), step(b, draws)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_asking_for_a_precision_gives_it():
    assert choose_precision("fp32", CPU) == "fp32" and choose_precision("bf16", CPU) == "bf16"
    assert choose_precision("auto", CPU) in ("fp32", "bf16")


def test_batch_norms_are_fitted_to_the_kind_of_code_they_decode():
    """After training, encoded codes may be far from random ones; a generator's statistics must fit what it is given."""
    variant, scale = resolve("adni", "smoke", latent_dim=6)
    learner = Learner(variant, scale, CPU)
    with torch.no_grad():
        for network in (learner.E, learner.G, learner.average):
            for buffer in network.buffers():
                buffer.fill_(900)  # running statistics of some other distribution
        learner.E.head.bias.add_(20)  # encoded codes far from N(0, I)
        found = learner.evaluators(batch(32, 0).float())
        random, encoded = torch.randn(64, 6), found["E"](batch(32, 0).float())
        first = {}
        for name, codes in (("G", random), ("G_encoded", encoded)):
            hook = found[name].blocks[0].norm.register_forward_hook(lambda m, i, out: first.update(out=out))
            found[name](codes)
            hook.remove()
            assert first["out"].mean().abs() < 0.3 and 0.5 < first["out"].std() < 2


def test_looking_at_the_networks_does_not_change_them():
    learner = Learner(*resolve("adni", "smoke", latent_dim=6), CPU)
    before = copy.deepcopy(learner.state())
    found = learner.evaluators(batch(8, 0).float())
    after = files.flatten(learner.state())[0]
    assert all(torch.equal(value, after[name]) for name, value in files.flatten(before)[0].items())
    assert learner.G.training and not any(network.training for network in found.values())


def test_random_codes_are_decoded_by_the_average_and_encoded_ones_by_g():
    learner = Learner(*resolve("sigmarat2", "smoke", latent_dim=6), CPU)
    with torch.no_grad():
        learner.average.head.weight.fill_(3)
        learner.G.head.weight.fill_(5)
    found = learner.evaluators(batch(4, 0).float())
    assert found["G"].head.weight.mean() == 3 and found["G_encoded"].head.weight.mean() == 5
