"""Variants and scales: the paper's numbers, overrides, errors that help, and the way through JSON."""

import json
import subprocess
import sys
from dataclasses import FrozenInstanceError, replace

import pytest

from labkit.data.volumes import extents
from labkit.variants import SCALES, VARIANTS, Scale, Variant, asdict, from_dict, resolve

PAPER = {  # G, D, E: norm and spectral norm; C: norm and spectral norm; weights of L1, MSE, GDL; codes; optimiser
    "adni": ("batch", False, "batch", False, "batch", False, "batch", False, {"l1": 10}, 1000, "adam", 0, "flip"),
    "sigmarat1": (
        *("instance", True, "instance", True, "instance", True, "batch", True),
        *({"l1": 10, "mse": 10}, 500, "adam", 0, "full"),
    ),
    "sigmarat2": (
        *("instance", False, "none", True, "instance", False, "none", True),
        *({"mse": 100, "gdl": 0.01}, 500, "adamw", 0.01, "full"),
    ),
}


@pytest.mark.parametrize("name", PAPER)
def test_variants_are_the_papers(name):
    v = VARIANTS[name]
    assert PAPER[name] == (
        *(v.generator_norm, v.generator_spectral, v.discriminator_norm, v.discriminator_spectral),
        *(v.encoder_norm, v.encoder_spectral, v.code_norm, v.code_spectral),
        *(v.reconstruction_weights, v.latent_dim, v.optimiser, v.weight_decay, v.augmentation),
    )
    assert (v.lr, v.beta1, v.beta2, v.eps, v.generator_steps) == (2e-4, 0.9, 0.999, 1e-8, 1)
    assert v.generator_slope == (0 if name == "adni" else 0.01)
    assert v.discriminator_slope == v.encoder_slope == v.code_slope == 0.2
    assert v.lambda1 == (100 if name == "sigmarat2" else 10)


def test_the_released_variant_differs_in_what_the_release_does():
    ours, theirs = asdict(VARIANTS["sigmarat2"]), asdict(VARIANTS["sigmarat2_released"])
    changed = {"name": "sigmarat2_released", "gdl_gradient": False, "gdl_reduction": "sum", "generator_steps": 2}
    assert theirs == ours | changed


def test_the_paper_scale_is_the_papers():
    paper = SCALES["paper"]
    assert (paper.size, paper.base_channels, paper.batch_size, paper.iterations) == (64, 64, 4, 200_000)
    assert (paper.levels, paper.channels, paper.code_channels) == (4, (64, 128, 256, 512), 4096)


@pytest.mark.parametrize(("size", "levels"), [(16, 2), (32, 3), (96, 4), (128, 5), (192, 5), (256, 6)])
def test_another_cube_has_levels_more_or_less(size, levels):
    assert replace(SCALES["paper"], size=size).levels == levels


def test_a_box_is_fitted_to_the_next_multiple_that_holds_the_scans():
    scale = replace(SCALES["paper"], box="fitted")
    assert scale.fitted((64, 64, 40)).box == "64x64x48" and scale.fitted((64, 64, 40)).coarsest == (4, 4, 3)
    assert replace(scale, size=96).fitted(extents((64, 64, 43), 96)).box == "96x96x80"  # voxels 15 to 80 of 96
    assert replace(scale, size=96).fitted((90, 80, 50)).sides == (96, 80, 64)
    assert SCALES["paper"].fitted((64, 64, 40)) == SCALES["paper"]


def test_overrides_reach_both_configurations():
    variant, scale = resolve("adni", "smoke", latent_dim=8, discriminator_norm="none", size=32, precision="fp32")
    assert (variant.latent_dim, variant.discriminator_norm, variant.name) == (8, "none", "adni")
    assert (scale.size, scale.precision, scale.name) == (32, "fp32", "smoke")
    assert VARIANTS["adni"].latent_dim == 1000


def test_resolving_nothing_else_gives_the_registered_ones():
    assert resolve("sigmarat1", "paper") == (VARIANTS["sigmarat1"], SCALES["paper"])
    assert resolve(VARIANTS["adni"], SCALES["smoke"]) == (VARIANTS["adni"], SCALES["smoke"])


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"lr": "1e-4"}, ("lr", 1e-4)),  # YAML reads 1e-4 as text
        ({"lambda1": 5}, ("lambda1", 5.0)),
        ({"iterations": 2e3}, ("iterations", 2000)),
        ({"discriminator_norm": None}, ("discriminator_norm", "none")),
        ({"discriminator_norm": "None"}, ("discriminator_norm", "none")),
        ({"encoder_spectral": "True"}, ("encoder_spectral", True)),
        ({"size": "32"}, ("size", 32)),
    ],
)
def test_values_as_a_command_line_gives_them_are_understood(given, kept):
    variant, scale = resolve("sigmarat2", "smoke", **given)
    name, value = kept
    found = getattr(variant, name) if hasattr(variant, name) else getattr(scale, name)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("arguments", "overrides", "words"),
    [
        (("sigmarat4", "smoke"), {}, ["'sigmarat4'", "did you mean 'sigmarat3", "adni", "sigmarat1", "released"]),
        (("SigmaRat2", "smoke"), {}, ["did you mean 'sigmarat2'"]),
        (("adni", "laptp"), {}, ["'laptp'", "did you mean 'laptop'", "paper", "smoke"]),
        (("adni", "smoke"), {"latentdim": 5}, ["'latentdim'", "did you mean 'latent_dim'", "base_channels", "lr"]),
        (("adni", "smoke"), {"name": "mine"}, ["'name'"]),
        (("adni", "smoke"), {"generator_norm": "layer"}, ["generator_norm", "'layer'", "batch, instance, none"]),
        (("adni", "smoke"), {"code_norm": "instance"}, ["code_norm", "batch, none"]),
        (("adni", "smoke"), {"l1_weight": 10}, ["l1_weight", "10", "lambda1"]),
        (("adni", "smoke"), {"size": 48}, ["size", "48", "16, 32, 64, 96, 128, 192, 256"]),
        (("adni", "smoke"), {"lr": "fast"}, ["lr", "'fast'", "a number"]),
        (("adni", "smoke"), {"lr": 0}, ["lr", "0"]),
        (("adni", "smoke"), {"lambda1": float("nan")}, ["lambda1", "nan"]),
        (("adni", "smoke"), {"beta1": 1}, ["beta1", "1"]),
        (("adni", "smoke"), {"latent_dim": 2.5}, ["latent_dim", "2.5", "a whole number from 1 to"]),
        (("adni", "smoke"), {"latent_dim": True}, ["latent_dim", "True"]),
        (("adni", "smoke"), {"generator_spectral": 1}, ["generator_spectral", "true and false"]),
        (("adni", "smoke"), {"box": "16x16"}, ["box", "'16x16'", "16x16x12", "multiples of 4"]),
        (("adni", "smoke"), {"box": "16x16x10"}, ["multiples of 4"]),
        (("adni", "smoke"), {"box": "16x16x20"}, ["at most 16"]),
        (("adni", "smoke"), {"box": "round"}, ["cube, fitted"]),
        (("adni", "smoke"), {"box": 16}, ["box is 16", "cube, fitted"]),
        (("atlas", "smoke"), {"box": "fitted"}, ["'box'"]),
        (("adni", "smoke"), {"batch_size": 1}, ["batch_size is 1", "BatchNorm", "code_norm"]),
    ],
)
def test_a_value_that_is_not_allowed_is_named_with_what_is(arguments, overrides, words):
    with pytest.raises(ValueError) as error:
        resolve(*arguments, **overrides)
    assert [word for word in words if word not in str(error.value)] == []


def test_all_wrong_values_stand_in_one_error():
    with pytest.raises(ValueError, match=r"optimiser.*lr.*eps"):
        resolve("adni", "smoke", lr=-1, eps=-1, optimiser="sgd")


def test_a_batch_of_one_is_allowed_without_batch_norm_in_the_code_discriminator():
    assert resolve("sigmarat2", "smoke", batch_size=1)[1].batch_size == 1


def test_reconstruction_weights_follow_their_lambdas():
    assert resolve("adni", "smoke", lambda2=3)[0].reconstruction_weights == {"l1": 3}
    assert resolve("sigmarat2", "smoke", gdl_reduction="none")[0].reconstruction_weights == {"mse": 100}
    assert resolve("sigmarat2", "smoke", lambda3=0)[0].reconstruction_weights == {"mse": 100}


@pytest.mark.parametrize("config", [*VARIANTS.values(), *SCALES.values()], ids=lambda c: c.name)
def test_a_configuration_comes_back_from_json(config):
    assert from_dict(type(config), json.loads(json.dumps(asdict(config)))) == config


def test_a_stored_configuration_that_does_not_fit_says_how():
    stored = asdict(VARIANTS["adni"])
    with pytest.raises(ValueError, match="lacks lambda1"):
        from_dict(Variant, {key: value for key, value in stored.items() if key != "lambda1"})
    with pytest.raises(ValueError, match=r"unknown field of Scale 'sise'.*size"):
        from_dict(Scale, asdict(SCALES["smoke"]) | {"sise": 16})


def test_a_configuration_cannot_be_changed_in_place():
    with pytest.raises(FrozenInstanceError):
        VARIANTS["adni"].lr = 1.0


def test_variants_need_no_torch():
    code = "import sys; sys.modules['torch'] = None; import labkit.variants"
    subprocess.run([sys.executable, "-c", code], check=True)
