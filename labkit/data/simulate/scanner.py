"""The paper's acquisition: T2*-weighted gradient-echo EPI at 11.7 T with a four-element surface coil.

Ferreira et al. 2022 give matrix, voxel size, TR, TE, coil and averages; what they leave open (flip angle, echo
spacing, coil geometry, noise) is chosen here and said so. Slices are coronal, the read-out runs left to right, and the
phase-encoding axis is dorso-ventral: the head is wider than the field of view but fades ventrally, away from the coil,
so that this is the direction in which nothing folds back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from labkit.data.grids import STUDY_SHAPE, STUDY_ZOOMS

from .anatomy import TISSUE_PROPERTIES
from .individual import clipped_normal

READ, PHASE, SLICE = 0, 1, 2  # array axes: right, superior, anterior


@dataclass(frozen=True)
class Scanner:
    """Acquisition parameters; a spread (cv) is between rats."""

    te_ms: float = 17.5  # echo time
    tr_ms: float = 2000.0  # repetition time
    flip_deg: float = 80.0
    b0_tesla: float = 11.7
    averages: int = 9  # complex ones
    # time between neighbouring lines of k-space, divided by the number of segments where there are several; with the
    # matrix it sets the bandwidth along the phase-encoding axis, and so distortion and T2* blur
    echo_spacing_ms: float = 0.125
    # SD of one average's noise in each of the real and imaginary part; unit: signal of fully relaxed water at the
    # coil's reference
    noise: float = 0.015
    gain: float = 40000.0  # grey values per unit of that signal, the same for all rats
    gain_cv: float = 0.05  # of coil loading
    ghost: float = 0.03  # amplitude of the N/2 ghost relative to the image
    ghost_cv: float = 0.2
    coil_radius_mm: float = 11.0  # of each of the four loops
    coil_distance_mm: float = 18.0  # of the loops' centres from the long axis through the middle of the field of view
    coil_angle_deg: float = 42.0  # of the left and the right pair from the vertical
    coil_spacing_mm: float = 14.0  # between the front and the rear pair
    coil_shift_mm: float = 0.5  # spread of the whole coil's position along each axis
    field_cv: float = 0.15  # of the field of ear canals and sinuses
    shim_hz_per_mm: float = 2.0  # spread of the linear shim left over along each axis
    largest_shift: float = 4.0  # distortion is held below this many voxels, where a real image holds no signal any more

    @property
    def hz_per_voxel(self) -> float:
        """Bandwidth of one voxel along the phase-encoding axis, Hz."""
        return 1000 / (self.echo_spacing_ms * STUDY_SHAPE[PHASE])


@dataclass(frozen=True)
class ScanConditions:
    """The random numbers of one rat's scan; see :func:`draw_conditions`."""

    gain: float
    ghost: float
    ghost_slope: float
    coil_shift_mm: torch.Tensor
    field_scale: float
    shim_hz_per_mm: torch.Tensor
    noise: torch.Tensor


def draw_conditions(scanner: Scanner, generator: torch.Generator) -> ScanConditions:
    """Draw what differs between scans: coil, gain, shim, ghost and noise (standard normal, (2, X, Y, Z))."""
    gain, ghost, slope, coil, field, shim = clipped_normal(10, generator=generator).split([1, 1, 1, 3, 1, 3])
    return ScanConditions(
        gain=1 + scanner.gain_cv * gain.item(),
        ghost=scanner.ghost * (1 + scanner.ghost_cv * ghost.item()),
        ghost_slope=0.3 * scanner.ghost * slope.item(),
        coil_shift_mm=scanner.coil_shift_mm * coil,
        field_scale=1 + scanner.field_cv * field.item(),
        shim_hz_per_mm=scanner.shim_hz_per_mm * shim,
        noise=torch.randn(2, *STUDY_SHAPE, generator=generator),
    )


def steady_state(scanner: Scanner, tissues: tuple[str, ...], contrast: torch.Tensor) -> torch.Tensor:
    """Signal (B, T) of each tissue: spoiled gradient echo, after density, T1 saturation and T2* decay.

    `contrast` (B, 3, T) are factors on density, T1 and T2*; the unit is the signal of fully relaxed water.
    """
    properties = [TISSUE_PROPERTIES[name] for name in tissues]
    values = [(tissue.density, tissue.t1_ms, tissue.t2star_ms) for tissue in properties]
    density, t1, t2star = (torch.tensor(values, device=contrast.device).T * contrast).unbind(1)
    alpha = math.radians(scanner.flip_deg)
    recovery = torch.exp(-scanner.tr_ms / t1)
    saturated = math.sin(alpha) * (1 - recovery) / (1 - math.cos(alpha) * recovery)
    return density * saturated * torch.exp(-scanner.te_ms / t2star)


def coil_sensitivity(scanner: Scanner, points_mm: torch.Tensor, shift_mm: torch.Tensor) -> torch.Tensor:
    """Sum of squares of the receive sensitivities of four circular loops bent over the head, (B, X, Y, Z).

    By reciprocity a loop receives what its current would excite: the part of its Biot-Savart field that is transverse
    to the main field, which lies along the third axis. `points_mm` (3, X, Y, Z) are right, superior, anterior of the
    middle of the field of view, `shift_mm` (B, 3) displacements of the coil. For the coil in its place the value is 1
    at 5 mm above the middle.
    """
    reference = torch.tensor([0.0, 5.0, 0.0], device=points_mm.device)[:, None]
    fields = torch.stack([_loops(scanner, points_mm.flatten(1) - shift[:, None]) for shift in shift_mm])
    return (fields / _loops(scanner, reference)).unflatten(1, points_mm.shape[1:])


def _loops(scanner: Scanner, points: torch.Tensor) -> torch.Tensor:
    """Transverse field of the four loops, root of the sum of squares: (3, P) mm -> (P,)."""
    segments = 16
    angle = torch.arange(segments, device=points.device) * (2 * math.pi / segments)
    across, along = scanner.coil_radius_mm * angle.cos(), scanner.coil_radius_mm * angle.sin()
    power = points.new_zeros(points.shape[1])
    for side in (-1, 1):
        tilt = side * math.radians(scanner.coil_angle_deg)
        for front in (-0.5, 0.5):
            # distance from the wire, which runs around the loop's centre at a tangent to the head
            right = points[0][:, None] - scanner.coil_distance_mm * math.sin(tilt) - across * math.cos(tilt)
            superior = points[1][:, None] - scanner.coil_distance_mm * math.cos(tilt) + across * math.sin(tilt)
            anterior = points[2][:, None] - front * scanner.coil_spacing_mm - along
            # 1 mm: wire has a thickness, so that the field beside it stays finite
            cube = (right**2 + superior**2 + anterior**2 + 1) ** 1.5
            i_right, i_superior, i_anterior = -along * math.cos(tilt), along * math.sin(tilt), across
            b_right = ((i_superior * anterior - i_anterior * superior) / cube).sum(1)
            b_superior = ((i_anterior * right - i_right * anterior) / cube).sum(1)
            power = power + b_right**2 + b_superior**2
    return power.sqrt()


def dephasing(scanner: Scanner, hz: torch.Tensor, spacing_mm: tuple[float, ...]) -> torch.Tensor:
    """Signal left, (0, 1], when the field `hz` (B, X, Y, Z) varies within a voxel.

    For a linear variation of D Hz across a voxel the signal falls by sinc(D TE) (Reichenbach et al. 1997, J Magn Reson
    Imaging 7:266); the Gaussian of the same curvature is used, because real voxels do not show sinc's side lobes.
    """
    gradients = torch.gradient(hz, dim=(1, 2, 3))
    across = sum((g / d * zoom) ** 2 for g, d, zoom in zip(gradients, spacing_mm, STUDY_ZOOMS, strict=True))
    return torch.exp(-across * (math.pi * scanner.te_ms / 1000) ** 2 / 6)


def acquire(scanner: Scanner, signal: torch.Tensor, conditions: list[ScanConditions]) -> torch.Tensor:
    """From the continuous picture to the averaged magnitude image, by way of k-space.

    The matrix cuts k-space off (Gibbs ringing), T2* decay along its lines blurs, the phase that odd lines have and even
    lines have not makes the ghost. Noise is added to the combined, averaged complex image, so that its magnitude is
    Rician; a sum of four magnitude channels would be non-central chi.

    `signal` (B, 128, 128, 40) is transverse magnetisation times sensitivity on a grid twice as fine in the slice's
    plane; the result is float32 (B, 64, 64, 40), grey values, 0 or more.
    """
    n = STUDY_SHAPE[PHASE]
    # (B, S, R, P): slices are independent, and the last two axes are the ones that are transformed.
    plane = signal.permute(0, 3, 1, 2)
    line = torch.arange(-n // 2, n // 2, device=signal.device)
    t2star = TISSUE_PROPERTIES["grey"].t2star_ms
    # Lines away from the middle of k-space are acquired before and after TE: stronger and weaker.
    decay = torch.exp(-line * scanner.echo_spacing_ms / t2star)
    lines = _crop(torch.fft.fft(plane, dim=-1), n, -1) * decay  # (B, S, 2R, P)
    reads = _crop(torch.fft.fft(lines, dim=-2), STUDY_SHAPE[READ], -2)
    hybrid = torch.fft.ifft(torch.fft.ifftshift(reads, dim=-2), dim=-2)  # (B, S, R, P): image along R, k-space along P
    across = torch.linspace(-1, 1, STUDY_SHAPE[READ], device=signal.device)
    ghost, slope, gain = (
        torch.tensor([getattr(s, name) for s in conditions], device=signal.device)[:, None]
        for name in ("ghost", "ghost_slope", "gain")
    )
    # Odd and even lines, read in opposite directions, differ in phase; what that moves to N/2 is the ghost.
    phase = (ghost + slope * across)[:, None, :, None] * (1 - 2 * (line % 2))
    image = torch.fft.ifft(torch.fft.ifftshift(torch.polar(torch.ones_like(phase), phase) * hybrid, dim=-1), dim=-1)
    image = image.permute(0, 2, 3, 1) * gain[..., None, None]
    noise = torch.stack([s.noise for s in conditions]).to(signal.device) * (scanner.noise / scanner.averages**0.5)
    return scanner.gain * torch.hypot(image.real + noise[:, 0], image.imag + noise[:, 1])


def _crop(spectrum: torch.Tensor, n: int, axis: int) -> torch.Tensor:
    """The middle `n` samples of k-space, zero frequency in their middle, moved half a fine voxel onto the image."""
    fine = spectrum.shape[axis]
    k = torch.arange(-n // 2, n // 2, device=spectrum.device)
    middle = torch.fft.fftshift(spectrum, dim=axis).narrow(axis, fine // 2 - n // 2, n)
    ramp = torch.polar(torch.full(k.shape, n / fine, device=k.device), math.pi * k / fine)
    return middle * (ramp if axis == -1 else ramp[:, None])
