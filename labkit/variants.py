"""What the models are: each variant's networks, losses and optimiser, and the scales they are built at.

Nothing here needs torch. A `Variant` is one model of Ferreira et al. 2022 (Applied Sciences 12:4844): the networks of
its architecture figures, the loss of equation 2, 5 or 6. `AtlasSettings` are those of the study's own model. A `Scale`
says how large and how long. All are frozen, check themselves, and travel as JSON.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, ClassVar

from labkit.fields import check, from_dict, known, number, one_of

__all__ = [
    "ATLAS_SCALES",
    "MODELS",
    "SCALES",
    "VARIANTS",
    "AtlasSettings",
    "Scale",
    "Variant",
    "asdict",
    "from_dict",
    "resolve",
]

LAMBDAS = ("lambda1", "lambda2", "lambda3", "none")


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One model of the study: four networks, their losses and their optimiser.

    Attributes
    ----------
    name : str
        Key in `VARIANTS` this variant was resolved from; overrides keep it.
    latent_dim : int
        Length of a code; 1000 for the baseline, 500 for SigmaRat1 and SigmaRat2, 64 for `sigmarat3`.
    generator_norm, discriminator_norm, encoder_norm : str
        "batch", "instance" (no affine parameters) or "none"; after every hidden convolution of G, after hidden
        convolutions 2 and on of D and E (the paper's architecture figures).
    code_norm : str
        "batch" or "none", after the hidden layers of C.
    generator_spectral, discriminator_spectral, encoder_spectral, code_spectral : bool
        Spectral norm on every convolution or linear layer of that network.
    generator_slope, discriminator_slope, encoder_slope, code_slope : float
        Slope of LeakyReLU below zero, [0, 1); 0 is ReLU.
    lambda1, lambda2, lambda3 : float
        Weights of equations 2 to 6. lambda1 always weighs the gradient penalties (equations 3 and 4).
    l1_weight, mse_weight, gdl_weight : str
        Which lambda weighs the mean absolute, mean squared and gradient difference of a scan and its reconstruction
        (equations 2, 5, 6); "none" leaves the term out.
    gdl_reduction : str
        Gradient difference over voxels and batch: "sum" as equation 6 says, "mean", or "none" for no such term.
    gdl_gradient : bool
        Whether the gradient difference is trained on; the released code adds it as a plain number, which is not.
    optimiser : str
        "adam" or "adamw".
    lr, beta1, beta2, eps, weight_decay : float
        Its settings, the same for all networks.
    generator_steps : int
        Optimiser steps of G on the same gradients an iteration: 1; the released code takes 2.
    augmentation : str
        "full": all of the paper's transforms; "flip": the baseline's flip alone.
    generator_head : str
        How G ends. "voxels", the paper's: a convolution and tanh give grey values. "atlas": a warp, a brightness and
        weights of appearances, at a quarter of the resolution, which move the template of an atlas of the training
        scans, and a residual at full resolution (:class:`labkit.rendering.AtlasHead`).
    residual : float
        Of such a head: by how much, grey values of [0, 1], G may depart from what it moved.
    r1 : float
        Weight of half the squared gradient of D at real scans, every :data:`labkit.updates.R1_EVERY` iterations, in
        the place of both of D's penalties (Mescheder et al. 2018, arXiv 1801.04406); 0 is the paper's penalties.
    critic_augmentation : bool
        Shift, mirror and brighten what D sees, real and generated alike (Zhao et al. 2020, arXiv 2006.10738).
    sphere_codes : bool
        Codes of E, and those that C compares them with, have the length that random ones have on average: a G that
        feels no length (:attr:`feels_length`) loses nothing, and C has only directions to look at.

    Raises
    ------
    ValueError
        Says which field was given what, and what is allowed.
    """

    name: str
    latent_dim: int = number(1, 16384, default=500)
    generator_norm: str = one_of("batch", "instance", "none")
    generator_spectral: bool = False
    generator_slope: float = number(0, 0.999, default=0.01)
    discriminator_norm: str = one_of("batch", "instance", "none")
    discriminator_spectral: bool = False
    discriminator_slope: float = number(0, 0.999, default=0.2)
    encoder_norm: str = one_of("batch", "instance", "none")
    encoder_spectral: bool = False
    encoder_slope: float = number(0, 0.999, default=0.2)
    code_norm: str = one_of("batch", "none")
    code_spectral: bool = False
    code_slope: float = number(0, 0.999, default=0.2)
    lambda1: float = number(0)
    lambda2: float = number(0)
    lambda3: float = number(0, default=0.0)
    l1_weight: str = one_of(*LAMBDAS, default="none")
    mse_weight: str = one_of(*LAMBDAS, default="none")
    gdl_weight: str = one_of(*LAMBDAS, default="none")
    gdl_reduction: str = one_of("sum", "mean", "none", default="sum")
    gdl_gradient: bool = True
    optimiser: str = one_of("adam", "adamw", default="adam")
    lr: float = number(1e-12, 1.0, default=2e-4)
    beta1: float = number(0, 0.9999999, default=0.9)
    beta2: float = number(0, 0.9999999, default=0.999)
    eps: float = number(1e-15, 1.0, default=1e-8)
    weight_decay: float = number(0, default=0.0)
    generator_steps: int = number(1, 10, default=1)
    augmentation: str = one_of("full", "flip", default="full")
    generator_head: str = one_of("voxels", "atlas", default="voxels")
    residual: float = number(0, 1, default=0.2)
    r1: float = number(0, default=0.0)
    critic_augmentation: bool = False
    sphere_codes: bool = False

    def __post_init__(self) -> None:
        check(self)

    @property
    def norms(self) -> tuple[str, ...]:
        """Kind of norm of each network."""
        return self.generator_norm, self.discriminator_norm, self.encoder_norm, self.code_norm

    @property
    def feels_length(self) -> bool:
        """Whether G(c z) differs from G(z): not where its first layer, which has no bias, ends in an instance norm."""
        return self.generator_norm != "instance"

    @property
    def reconstruction_weights(self) -> dict[str, float]:
        """Weight of each reconstruction term that is not zero: a subset of "l1", "mse" and "gdl"."""
        gdl_weight = "none" if self.gdl_reduction == "none" else self.gdl_weight
        named = {"l1": self.l1_weight, "mse": self.mse_weight, "gdl": gdl_weight}
        return {term: getattr(self, which) for term, which in named.items() if getattr(self, which, 0.0) > 0}


@dataclass(frozen=True, kw_only=True)
class AtlasSettings:
    """The study's own model: how fine an atlas is, and how long it is fitted.

    Attributes
    ----------
    name : str
        ``"atlas"``.
    latent_dim : int
        Length of a code; 500 as in SigmaRat1 and SigmaRat2.
    iterations, batch_size : int
        Steps of the fit, and scans a step.
    coarse_share : float
        Share of the steps at half the scans' resolution, which settles most of every warp at an eighth of the cost; of
        scans of more than 64 voxels a side more, in proportion, and at a quarter before.
    template_factor : int
        Voxels of the template along a voxel of the scans, 1 or 2; appearances are as fine as the scans.
    knot_spacing, flow_spacing, brightness_spacing : int
        Voxels between knots of velocity, between points at which its flow is integrated, and between knots of
        brightness; of scans of more than 64 voxels a side in proportion more, as of all that counts voxels here.
    squarings : int
        Of scaling and squaring.
    appearances : int
        Number of A_j; :func:`labkit.training.train` takes fewer where animals are few.
    lr, lr_template : float
        Step size of Adam for velocities, voxels, and for the template, grey values in [0, 1].
    bending, speed : float
        Weights of the mean squared second difference between knots and of the mean squared velocity, voxels.
    grain : float
        Weight, divided by the number of animals, of the mean squared difference between neighbours in the template and
        in appearances: few animals leave voxels of the finer template undetermined.

    Raises
    ------
    ValueError
        Says which field was given what, and what is allowed.
    """

    feels_length: ClassVar[bool] = True  # see Variant

    name: str = "atlas"
    latent_dim: int = number(1, 16384, default=500)
    iterations: int = number(1, 1e9)
    batch_size: int = number(1, 4096, default=4)
    coarse_share: float = number(0, 1, default=0.5)
    template_factor: int = one_of(1, 2, default=2)
    knot_spacing: int = number(1, 256, default=3)
    flow_spacing: int = number(1, 256, default=3)
    brightness_spacing: int = number(1, 256, default=8)
    squarings: int = number(1, 10, default=4)
    appearances: int = number(0, 20, default=8)
    lr: float = number(1e-6, 1, default=0.25)
    lr_template: float = number(1e-6, 1, default=4e-3)
    bending: float = number(0, default=0.002)
    speed: float = number(0, default=8e-5)
    grain: float = number(0, default=0.3)

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How large the volumes and networks are, and how long a run is.

    Attributes
    ----------
    name : str
        Key in `SCALES` this scale was resolved from; overrides keep it.
    size : int
        Side of the cube, voxels: 16, 32, 64, 96, 128, 192 or 256.
    base_channels : int
        Channels of the widest-resolution layer; the paper's 64 gives 64, 128, 256, 512 at 64^3.
    batch_size : int
        Scans an update.
    iterations : int
        Iterations of a whole run.
    precision : str
        "fp32", "bf16" (autocast) or "auto": bf16 where the device computes it faster.
    lr_factor : float
        What :func:`resolve` multiplies the learning rate of a model named by the paper with: 1 at the paper's scale; a
        run a hundredth as long takes larger steps. A learning rate that is asked for is taken as it is.
    ema_decay : float
        Decay of the moving average of G's weights an iteration; 0 is G itself.
    box : str
        The part of the cube, in its middle, that the networks see and make: ``"cube"``, all of it, as the paper has it;
        ``"fitted"``, the smallest that holds the scans without their padding, for :func:`labkit.train` to find;
        or voxels such as ``"64x64x48"``, whole multiples of ``2 ** levels``. The rest of a scan is padding, -1.
    activation_checkpointing : bool
        Compute what a layer gave a second time where its gradient needs it, instead of keeping it: less memory, more
        time, the same gradients (Chen et al. 2016, arXiv 1604.06174). Layers with batch norms keep it all the same.
    log_every, sample_every, checkpoint_every : int
        Iterations between rows of losses, fixed samples, and checkpoints.

    Raises
    ------
    ValueError
        Says which field was given what, and what is allowed.
    """

    name: str
    size: int = one_of(16, 32, 64, 96, 128, 192, 256)
    base_channels: int = number(1, 512)
    batch_size: int = number(1, 4096, default=4)
    iterations: int = number(1, 1e9)
    precision: str = one_of("fp32", "bf16", "auto", default="auto")
    lr_factor: float = number(1e-3, 1e3, default=1.0)
    ema_decay: float = number(0, 0.9999999, default=0.999)
    box: str = "cube"
    activation_checkpointing: bool = False
    log_every: int = number(1, 1e9)
    sample_every: int = number(1, 1e9)
    checkpoint_every: int = number(1, 1e9)

    def __post_init__(self) -> None:
        check(self)
        step = 2**self.levels
        if (
            not isinstance(self.box, str)
            or len(self.sides) != 3
            or any(side % step or not step <= side <= self.size for side in self.sides)
        ):
            raise ValueError(
                f"box is {self.box!r}, allowed are cube, fitted and three sides such as "
                f"{self.size}x{self.size}x{self.size - step}: multiples of {step}, at most {self.size}"
            )

    @property
    def levels(self) -> int:
        """Halvings from the cube to a side of 4 voxels, or 6: 4 at 64^3, and at 96^3."""
        return (self.size // 4).bit_length() - 1

    @property
    def sides(self) -> tuple[int, ...]:
        """Voxels that the networks see and make; of a box that is to be fitted at most so many."""
        if self.box in ("cube", "fitted"):
            return (self.size,) * 3
        return tuple(int(part) if part.isdecimal() else 0 for part in self.box.split("x"))

    @property
    def coarsest(self) -> tuple[int, ...]:
        """Sides of the smallest volume in G, D and E: 4, 4, 4 at 64^3."""
        return tuple(side >> self.levels for side in self.sides)

    def fitted(self, extents: Iterable[float]) -> Scale:
        """The same with the smallest box around scans of so many voxels about the middle, where it is to be fitted."""
        if self.box != "fitted":
            return self
        step = 2**self.levels
        return replace(self, box="x".join(str(math.ceil(extent / step) * step) for extent in extents))

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels from the widest to the coarsest resolution: 64, 128, 256, 512 at 64^3 and width 64."""
        return tuple(self.base_channels * 2**level for level in range(self.levels))

    @property
    def code_channels(self) -> int:
        """Width of the code discriminator: 4096 at width 64, and in proportion."""
        return 64 * self.base_channels


def resolve(
    model: str | Variant | AtlasSettings, scale: str | Scale, **overrides: Any
) -> tuple[Variant | AtlasSettings, Scale]:
    """Look up a model and a scale, and change any of their fields.

    Parameters
    ----------
    model : str, Variant or AtlasSettings
        Name in `MODELS`, or settings made elsewhere.
    scale : str or Scale
        Key of `SCALES`, or a scale made elsewhere.
    **overrides
        Fields of either, by name. Text from a command line is taken where it says a value of the field's type:
        "1e-4" for a number, "true" for a switch; None means "none" where "none" is a choice.

    Returns
    -------
    Variant or AtlasSettings, and Scale

    Raises
    ------
    ValueError
        If a name is unknown (with the nearest known one and all of them), or a value is not allowed.

    Examples
    --------
    >>> variant, scale = labkit.resolve("sigmarat2", "laptop", latent_dim=1000, discriminator_norm="none")
    >>> variant.latent_dim, scale.size
    (1000, 32)
    >>> labkit.resolve("sigmarat4", "laptop")
    Traceback (most recent call last):
    ValueError: unknown model 'sigmarat4': did you mean 'sigmarat3'? allowed are adni, sigmarat1, sigmarat2, sigmarat3,
    sigmarat2_released, atlas
    """
    if isinstance(model, str):
        known("model", model, MODELS)
    size = SCALES[known("scale", scale, SCALES)] if isinstance(scale, str) else scale
    if not isinstance(size, Scale):
        raise TypeError(f"scale is a name, got {scale!r}")
    if model == "atlas" or isinstance(model, AtlasSettings):
        return _resolve_atlas(model, size, overrides)
    variant = VARIANTS[model] if isinstance(model, str) else model
    if not isinstance(variant, Variant):
        raise TypeError(f"model is a name, got {model!r}")
    of_variant, of_scale = ([f.name for f in fields(kind) if f.name != "name"] for kind in (Variant, Scale))
    for given in overrides:
        known("override", given, of_variant + of_scale)
    variant = replace(variant, **{name: value for name, value in overrides.items() if name in of_variant})
    size = replace(size, **{name: value for name, value in overrides.items() if name in of_scale})
    if isinstance(model, str) and "lr" not in overrides:
        variant = replace(variant, lr=variant.lr * size.lr_factor)
    if size.batch_size == 1 and variant.code_norm == "batch":
        raise ValueError(
            f"batch_size is 1, but {variant.name} has BatchNorm in its code discriminator, which needs at least 2 "
            "codes a batch; set batch_size to 2 or more, or code_norm to none"
        )
    return variant, size


def _resolve_atlas(model: str | AtlasSettings, size: Scale, overrides: dict[str, Any]) -> tuple[AtlasSettings, Scale]:
    """An atlas has no channels, no average of weights and no half precision; the rest of a scale is its own."""
    settings = ATLAS_SCALES[size.name] if isinstance(model, str) else model
    own = [f.name for f in fields(AtlasSettings) if f.name != "name"]
    of_scale = ["size", "iterations", "batch_size", "log_every", "sample_every", "checkpoint_every"]
    for given in overrides:
        known("override", given, dict.fromkeys(own + of_scale))
    settings = replace(settings, **{name: value for name, value in overrides.items() if name in own})
    steps = settings.iterations
    of_atlas = {"size": 16 if size.name == "smoke" else 64, "precision": "fp32", "iterations": steps,
                "batch_size": settings.batch_size, "log_every": max(1, steps // 100),
                "sample_every": max(1, steps // 2), "checkpoint_every": max(1, steps // 2)}  # fmt: skip
    return settings, replace(size, **of_atlas | {name: overrides[name] for name in of_scale if name in overrides})


_ADNI = Variant(
    name="adni",  # equation 2; alpha-WGAN_ADNI of Kwon et al. 2019 (arXiv 1908.02498)
    latent_dim=1000,
    generator_norm="batch",
    generator_slope=0.0,
    discriminator_norm="batch",
    encoder_norm="batch",
    code_norm="batch",
    lambda1=10.0,
    lambda2=10.0,
    l1_weight="lambda2",
    augmentation="flip",
)
_SIGMARAT1 = Variant(
    name="sigmarat1",  # equation 5
    generator_norm="instance",
    generator_spectral=True,
    discriminator_norm="instance",
    discriminator_spectral=True,
    encoder_norm="instance",
    encoder_spectral=True,
    code_norm="batch",
    code_spectral=True,
    lambda1=10.0,
    lambda2=10.0,
    l1_weight="lambda1",
    mse_weight="lambda1",
)
_SIGMARAT2 = Variant(
    name="sigmarat2",  # equation 6
    generator_norm="instance",
    discriminator_norm="none",
    discriminator_spectral=True,
    encoder_norm="instance",
    code_norm="none",
    code_spectral=True,
    lambda1=100.0,
    lambda2=100.0,
    lambda3=0.01,
    mse_weight="lambda2",
    gdl_weight="lambda3",
    optimiser="adamw",
    weight_decay=0.01,
)
VARIANTS: dict[str, Variant] = {
    variant.name: variant
    for variant in (
        _ADNI,
        _SIGMARAT1,
        _SIGMARAT2,
        # ours: the losses and networks of SigmaRat2, whose G moves an atlas instead of making every voxel, and whose
        # codes are few and all directions; book/sweeps/switches.toml asks what either is good for
        replace(_SIGMARAT2, name="sigmarat3", generator_head="atlas", latent_dim=64, sphere_codes=True),
        # what the released code trains under SigmaRat2's name: no gradient from the GDL, two steps of G an iteration
        replace(_SIGMARAT2, name="sigmarat2_released", gdl_gradient=False, gdl_reduction="sum", generator_steps=2),
    )
}
"""The paper's models by name, ours that is trained as they are, and what the release trains."""

MODELS = (*VARIANTS, "atlas")
"""Names of all models."""

SCALES: dict[str, Scale] = {
    scale.name: scale
    for scale in (
        Scale(name="smoke", size=16, base_channels=4, iterations=20, ema_decay=0.9,
              log_every=1, sample_every=10, checkpoint_every=10),
        Scale(name="laptop", size=32, base_channels=16, iterations=2000, lr_factor=2.0, ema_decay=0.995,
              log_every=20, sample_every=200, checkpoint_every=400),
        Scale(name="reference", size=64, base_channels=16, iterations=10_000, precision="fp32", lr_factor=2.0,
              ema_decay=0.995, log_every=50, sample_every=1000, checkpoint_every=250),
        Scale(name="paper", size=64, base_channels=64, iterations=200_000,
              log_every=50, sample_every=5000, checkpoint_every=1000),
    )
}  # fmt: skip
"""Scales by name: seconds for tests, minutes on a processor, hours on one (the same numbers on every machine), the
paper's."""

ATLAS_SCALES: dict[str, AtlasSettings] = {
    "smoke": AtlasSettings(latent_dim=32, iterations=120, appearances=2),
    "laptop": AtlasSettings(iterations=1200),
    "reference": AtlasSettings(iterations=1200),
    "paper": AtlasSettings(iterations=6000, appearances=16),
}
"""An atlas's settings by scale: seconds for tests, minutes on a processor, without hurry."""
