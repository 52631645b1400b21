"""Networks: the paper's parameters, shapes and weights at any cube side, and gradients of critics that agree."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrize import cached

from labkit import losses, published
from labkit.figures.architecture import summary
from labkit.layers import InstanceNorm3d
from labkit.networks import CodeDiscriminator, Discriminator, Encoder, Generator, build
from labkit.published import load_by_position
from labkit.variants import resolve

MODELS = ["adni", "sigmarat1", "sigmarat2"]


def small(model, **overrides):
    return resolve(model, "smoke", **{"latent_dim": 6, "base_channels": 4} | overrides)


def scans(batch=3, size=16, dtype=torch.float32):
    g = torch.Generator().manual_seed(0)
    return torch.rand(batch, 1, size, size, size, generator=g, dtype=dtype) * 2 - 1


def codes(batch=3, length=6, dtype=torch.float32):
    return torch.randn(batch, length, generator=torch.Generator().manual_seed(1), dtype=dtype)


def freeze_power_iterations(network):
    for module in network.modules():
        if type(module).__name__ == "SpectralNorm":
            module.eval()
    return network


@pytest.mark.parametrize("model", MODELS)
def test_parameters_at_full_size_are_the_papers(model):
    with torch.device("meta"):
        networks = [kind(*resolve(model, "paper", latent_dim=500, **plain)) for kind, plain in [
            (Generator, {"generator_spectral": False}),
            (Discriminator, {"discriminator_spectral": False}),
            (Encoder, {"encoder_spectral": False}),
            (CodeDiscriminator, {"code_spectral": False}),
        ]]  # fmt: skip
    counts = [sum(p.numel() for name, p in n.named_parameters() if "norm" not in name) for n in networks]
    assert counts == [21_030_592, 11_047_873, 27_399_604, 18_837_505]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("size", "base"), [(16, 3), (32, 4)])
def test_shapes_and_ranges_are_those_of_scans_and_codes(model, size, base):
    variant, scale = small(model, size=size, base_channels=base)
    n = build(variant, scale)
    x, z = scans(2, size), codes(2)
    fake = n.G(z)
    assert fake.shape == x.shape
    assert fake.abs().max() <= 1
    assert n.E(x).shape == (2, 6)
    assert n.D(x).shape == n.C(z).shape == (2,)


@pytest.mark.parametrize("size", [16, 32, 64, 96, 128, 192, 256])
def test_every_cube_side_is_built_with_a_level_more_or_less(size):
    variant, scale = resolve("sigmarat2", "paper", size=size, discriminator_spectral=False, code_spectral=False)
    with torch.device("meta"):
        n = [kind(variant, scale) for kind in (Generator, Discriminator, Encoder)]
        x = torch.zeros(1, 1, size, size, size)
        assert n[0](torch.zeros(1, 500)).shape == x.shape
        assert n[1](x).shape == (1,)
        assert n[2](x).shape == (1, 500)
    widths = [64 * 2**level for level in range(scale.levels)]
    assert [b.layer.out_channels for b in n[0].blocks] == widths[::-1]
    assert [b.layer.out_channels for b in n[1].blocks] == widths


@pytest.mark.parametrize("model", MODELS)
def test_norms_and_activations_stand_where_the_paper_has_them(model):
    n = build(*small(model))
    norm = {"adni": "BatchNorm", "sigmarat1": "InstanceNorm", "sigmarat2": "InstanceNorm"}[model]
    slope = "ReLU" if model == "adni" else "LeakyReLU 0.01"
    spectral = ", spectral norm" if model == "sigmarat1" else ""
    of_d = ", spectral norm" if model != "adni" else ""
    of_c = of_d + ("" if model == "sigmarat2" else ", BatchNorm")
    in_d = "" if model == "sigmarat2" else f", {norm}"
    assert [row.layer for row in summary(n.G, (1, 6))] == [
        f"transposed conv n8 k4 s1 p0{spectral}, {norm}, {slope}",
        f"upsample x2, conv n4 k3 s1 p1{spectral}, {norm}, {slope}",
        f"upsample x2, conv n1 k3 s1 p1{spectral}, tanh",
    ]
    assert [row.layer for row in summary(n.D, (1, 1, 16, 16, 16))] == [
        f"conv n4 k4 s2 p1{of_d}, LeakyReLU 0.2",
        f"conv n8 k4 s2 p1{of_d}{in_d}, LeakyReLU 0.2",
        f"conv n1 k4 s1 p0{of_d}",
    ]
    assert [row.layer for row in summary(n.E, (1, 1, 16, 16, 16))] == [
        f"conv n4 k4 s2 p1{spectral}, LeakyReLU 0.2",
        f"conv n8 k4 s2 p1{spectral}, {norm}, LeakyReLU 0.2",
        f"conv n6 k4 s1 p0{spectral}",
    ]
    assert [row.layer for row in summary(n.C, (1, 6))] == [
        f"linear n256{of_c}, LeakyReLU 0.2",
        f"linear n256{of_c}, LeakyReLU 0.2",
        f"linear n1{of_d}",
    ]


def test_summary_counts_everything_and_changes_nothing():
    n = build(*small("sigmarat1"))
    before = copy.deepcopy(n.D.state_dict())
    rows = summary(n.D, (2, 1, 16, 16, 16))
    assert rows[0].output_shape == (2, 4, 8, 8, 8)
    assert rows[-1].output_shape == (2, 1)
    assert sum(row.parameters for row in rows) == sum(p.numel() for p in n.D.parameters())
    assert n.D.training
    assert all(torch.equal(before[name], value) for name, value in n.D.state_dict().items())


def test_weights_of_a_plain_generator_load_by_position():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        plain = nn.Sequential(
            *(nn.Unflatten(1, (6, 1, 1, 1)), nn.ConvTranspose3d(6, 8, 4, bias=False), nn.InstanceNorm3d(8)),
            *(nn.LeakyReLU(), nn.Upsample(scale_factor=2), nn.Conv3d(8, 4, 3, padding=1, bias=False)),
            *(nn.InstanceNorm3d(4), nn.LeakyReLU(), nn.Upsample(scale_factor=2)),
            *(nn.Conv3d(4, 1, 3, padding=1, bias=False), nn.Tanh()),
        )
    ours = Generator(*small("sigmarat2"))
    load_by_position(ours, plain.state_dict())
    z = codes()
    torch.testing.assert_close(ours(z), plain(z), rtol=0, atol=1e-5)
    gradients = [torch.autograd.grad(f(z).pow(3).mean(), list(f.parameters())) for f in (ours, plain)]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_weights_that_do_not_fit_are_refused_by_name():
    ours = Generator(*small("sigmarat2"))
    wider = Generator(*small("sigmarat2", base_channels=8)).state_dict()
    with pytest.raises(ValueError, match=r"blocks.0.layer.weight \(6, 16, 4, 4, 4\) for .* \(6, 8, 4, 4, 4\)"):
        load_by_position(ours, wider)
    with pytest.raises(ValueError, match="has 3 tensors, the weights have 1"):
        load_by_position(ours, {"w": torch.zeros(1)})


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("critic", ["D", "C"])
def test_a_critics_own_gradient_is_that_of_automatic_differentiation(model, critic):
    network = freeze_power_iterations(getattr(build(*small(model)), critic).double())
    x = scans(dtype=torch.double) if critic == "D" else codes(dtype=torch.double)
    ours = network.input_gradient(x)
    (automatic,) = torch.autograd.grad(network(x.requires_grad_()).sum(), x, create_graph=True)
    torch.testing.assert_close(ours, automatic, rtol=1e-10, atol=1e-14)
    parameters = list(network.parameters())
    found, expected = (
        torch.autograd.grad(losses.unit_norm_penalty(g), parameters, allow_unused=True) for g in (ours, automatic)
    )
    for p, a, b in zip(parameters, found, expected, strict=True):  # None is a parameter it does not depend on
        a, b = (torch.zeros_like(p) if g is None else g for g in (a, b))
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-13)
    assert sum(g.norm() for g in found if g is not None) > 1e-3


@pytest.mark.parametrize("model", MODELS)
def test_networks_of_a_box_see_and_make_nothing_around_it(model):
    variant, scale = small(model, box="16x16x12")
    n = build(variant, scale)
    x, z = scans(), codes()
    made = n.G(z)
    assert made.shape == x.shape and (made[..., :2] == -1).all() and (made[..., 14:] == -1).all()
    assert made[..., 2:14].abs().max() < 1
    for network in (n.E, n.D):
        network.eval()
        other = x.clone()
        other[..., :2], other[..., 14:] = 0.5, -0.3
        assert torch.equal(network(x), network(other))
        other[..., 2] += 0.1
        assert not torch.equal(network(x), network(other))


@pytest.mark.parametrize("model", MODELS)
def test_networks_of_a_box_are_the_published_ones_of_its_sides(model):
    variant, scale = small(model, box="16x12x8", generator_spectral=False, discriminator_spectral=False,
                           encoder_spectral=False, code_spectral=False)  # fmt: skip
    n, plain = build(variant, scale), published.build(variant, scale)
    for letter in "GDE":
        load_by_position(getattr(n, letter), getattr(plain, letter).state_dict())
    x, z = scans(), codes()
    part = x[..., 2:14, 4:12]
    torch.testing.assert_close(n.G(z)[..., 2:14, 4:12], plain.G(z), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(n.D(x), plain.D(part).flatten(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(n.E(x), plain.E(part), rtol=1e-4, atol=1e-5)


def test_the_gradient_of_a_critic_of_a_box_is_that_of_automatic_differentiation():
    network = freeze_power_iterations(build(*small("sigmarat1", box="16x16x12")).D.double())
    x = scans(dtype=torch.double)
    ours = network.input_gradient(x)
    (automatic,) = torch.autograd.grad(network(x.requires_grad_()).sum(), x)
    torch.testing.assert_close(ours.detach(), automatic, rtol=1e-10, atol=1e-14)
    assert (ours[..., :2] == 0).all() and ours[..., 2].abs().max() > 0


def kept_bytes(network, x):
    """Of all that the passes of a network keep for its gradient, each tensor once."""
    seen = {}

    def keep(tensor):
        seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = network(x).square().sum()
    return sum(seen.values()), torch.autograd.grad(out, list(network.parameters()))


@pytest.mark.parametrize("part", ["G", "E", "D"])
@pytest.mark.parametrize("model", ["sigmarat1", "sigmarat2"])
def test_activation_checkpointing_keeps_less_and_changes_no_gradient(model, part):
    found = {}
    for lean in (False, True):
        network = getattr(build(*small(model, size=32, base_channels=8, activation_checkpointing=lean)), part)
        with cached():
            found[lean] = kept_bytes(freeze_power_iterations(network), codes() if part == "G" else scans(size=32))
    assert found[True][0] < 0.8 * found[False][0]
    for a, b in zip(found[True][1], found[False][1], strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("model", MODELS)
def test_a_critics_own_gradient_can_be_looked_at_without_training_it(model):
    network = freeze_power_iterations(build(*small(model)).D)
    expected = network.input_gradient(scans()).detach()
    with torch.no_grad():
        looked_at = network.input_gradient(scans())
    frozen = network.requires_grad_(False).input_gradient(scans())
    assert not looked_at.requires_grad
    torch.testing.assert_close(looked_at, expected)
    torch.testing.assert_close(frozen.detach(), expected)


def test_instance_norm_is_the_frameworks_without_affine_parameters():
    x = scans(4, 8).reshape(2, 2, 8, 8, 8) * 3 + 1
    torch.testing.assert_close(InstanceNorm3d()(x), F.instance_norm(x), rtol=1e-4, atol=1e-5)
    assert list(InstanceNorm3d().parameters()) == []


def test_instance_norm_keeps_float32_statistics_of_bfloat16_volumes():
    x = (scans(32) * 3 + 2).bfloat16()
    exact = F.instance_norm(x.double()).flatten(1)
    scale = (InstanceNorm3d()(x).double().flatten(1) * exact).sum(1) / exact.square().sum(1)
    assert (scale - 1).abs().max() < 1e-3  # rounded voxels average out, a rounded standard deviation does not: 3e-3


def test_evaluation_leaves_spectral_norms_as_they_are():
    network = build(*small("sigmarat1")).D.eval()
    before = copy.deepcopy(network.state_dict())
    first, second = network(scans()), network(scans())
    assert torch.equal(first, second)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_training_makes_one_power_iteration_an_update_where_weights_are_cached():
    one, many = (build(*small("sigmarat1")).D for _ in range(2))
    with cached():
        assert torch.equal(one(scans()), one(scans()))
        one.input_gradient(scans())
    many(scans())
    assert all(torch.equal(value, many.state_dict()[name]) for name, value in one.state_dict().items())
    many(scans())
    assert not all(torch.equal(value, many.state_dict()[name]) for name, value in one.state_dict().items())


def test_cached_weights_still_learn_from_every_pass():
    network = build(*small("sigmarat2")).D
    with cached():
        loss = network(scans()).mean() + losses.unit_norm_penalty(network.input_gradient(scans()))
        loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_spectral_norm_bounds_every_layer():
    network = build(*small("sigmarat1")).D
    for _ in range(50):
        network(scans())
    for layer in [*(block.layer for block in network.eval().blocks), network.head]:
        assert torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() == pytest.approx(1, rel=1e-3)


def test_spectral_norm_of_the_generator_is_that_of_the_papers_weights():
    network = build(*small("sigmarat1")).G
    for _ in range(50):
        network(codes())
    first, second = network.eval().blocks[0].layer.weight, network.blocks[1].layer.weight
    assert torch.linalg.matrix_norm(first.transpose(0, 1).flatten(1), 2).item() == pytest.approx(1, rel=1e-3)
    assert torch.linalg.matrix_norm(second.flatten(1), 2).item() == pytest.approx(1, rel=1e-3)


def test_batch_norm_on_one_code_is_refused_in_training_only():
    network = CodeDiscriminator(*small("adni"))
    with pytest.raises(ValueError, match="2 or more codes"):
        network(codes(1))
    assert network.eval()(codes(1)).shape == (1,)


@pytest.mark.parametrize("model", MODELS)
def test_bfloat16_stays_near_float32_and_gives_float32_back(model):
    n = build(*small(model, base_channels=8))
    for network in n:
        freeze_power_iterations(network)
    x, z = scans(), codes()
    exact = [n.G(z), n.E(x), n.D(x), n.C(z), n.D.input_gradient(x)]
    with torch.autocast("cpu", torch.bfloat16):
        rounded = [n.G(z), n.E(x), n.D(x), n.C(z), n.D.input_gradient(x)]
    for a, b in zip(exact, rounded, strict=True):
        assert b.dtype == torch.float32
        assert (a - b).norm() < 0.1 * a.norm()  # rectifiers of the gradient flip where a value is near zero


def test_a_seed_means_the_same_weights_and_leaves_the_global_state_alone():
    state = torch.random.get_rng_state()
    first, again, other = (build(*small("sigmarat1"), seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), state)
    for a, b, c in zip(first, again, other, strict=True):
        weights = [next(iter(n.parameters())) for n in (a, b, c)]
        assert torch.equal(weights[0], weights[1])
        assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("part", ["G", "D", "E", "gradient"])
def test_networks_can_be_captured_as_one_graph(part):
    n = build(*small("sigmarat2", discriminator_spectral=False))
    function, x = {
        "G": (n.G, codes()),
        "D": (n.D, scans()),
        "E": (n.E, scans()),
        "gradient": (n.D.input_gradient, scans()),
    }[part]
    compiled = torch.compile(function, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), function(x))


@pytest.mark.parametrize("model", ["sigmarat1", "sigmarat2"])
def test_a_code_is_a_direction_to_a_generator_that_begins_with_an_instance_norm(model):
    generator = build(*small(model)).G.double().eval()
    z = 100 * codes(dtype=torch.double)  # so long that the norm's epsilon does not count beside them
    torch.testing.assert_close(generator(0.3 * z), generator(z), rtol=0, atol=1e-4)
    assert (generator(-z) - generator(z)).abs().max() > 0.01
    baseline = build(*small("adni")).G.double().eval()
    assert (baseline(0.3 * z) - baseline(z)).abs().max() > 0.01


@pytest.mark.parametrize("model", MODELS)
def test_a_code_discriminator_with_batch_norm_cannot_see_what_all_codes_share(model):
    critic = freeze_power_iterations(build(*small(model)).C.double())
    z = codes(batch=8, dtype=torch.double)
    moved = (critic(10 * z + 7) - critic(z)).abs().max()
    assert moved < 1e-3 if model in ("adni", "sigmarat1") else moved > 0.1
