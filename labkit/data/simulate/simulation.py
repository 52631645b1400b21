"""Anatomy x individual x scanner: labelled scans of rats, one after the other.

A point of the image is traced back to the anatomy: through the distortion, then pose and size, then the individual's
shape. All three are smooth, so they are worked out on a coarse grid; only the look-up itself is done on a fine one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from labkit.data.grids import STUDY_ZOOMS, grid_affine
from labkit.warps import diffeomorphism, sample

from .anatomy import Anatomy
from .departures import OEDEMA, Departure, chosen, draw_departure
from .individual import Individual, Variation, draw_variation, random_stream, rotation_matrix
from .one_thread import one_thread
from .preparation import COARSE, WARP_MM, Head, coarse_points, coarse_spacing, most_likely, prepare, upsample
from .scanner import PHASE, ScanConditions, Scanner, acquire, coil_sensitivity, dephasing, draw_conditions, steady_state


@dataclass(frozen=True)
class SimulatedRat:
    """One rat's scan."""

    index: int  # which rat of its seed
    image: np.ndarray  # int16 (64, 64, 40), magnitude in arbitrary units, 0 or more, on one scale for all rats
    # uint8 (64, 64, 40): 0 background, 1 CSF, 2 grey, 3 white matter, where the distorted image shows them
    labels: np.ndarray
    affine: np.ndarray  # (4, 4), voxel index to mm; the scanner's, and so the same for all rats
    # size, pose, smallest Jacobian, volumes of tissues in the field of view by their fractions, mm3; 1 or 0 for each
    # departure that was asked for
    properties: dict[str, float]


def simulate(
    anatomy: Anatomy,
    indices: Iterable[int],
    seed: int = 0,
    device: str | torch.device = "cpu",
    individual: Individual | None = None,
    scanner: Scanner | None = None,
    batch_size: int = 2,
    departures: str | Sequence[str] = (),
) -> Iterator[SimulatedRat]:
    """Simulate the rats of `indices`, counted from 0, in their order, `batch_size` at a time.

    Rat i of a seed is the same whatever the others are, their order and the batch size (bit for bit on the CPU). Random
    numbers are drawn on the CPU, so that devices agree to rounding. `departures` are what no warp makes, by name
    (:data:`labkit.data.simulate.departures.DEPARTURES`). ValueError before any work if an index is negative,
    `batch_size` is less than 1, a departure is unknown or the anatomy's axes are not the study's.
    """
    indices = [int(index) for index in indices]
    if any(index < 0 for index in indices):
        raise ValueError(f"rats are counted from 0; rat {min(indices)} was asked for")
    if batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, not {batch_size}")
    batches = [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]
    names = chosen(departures)
    return _simulate(
        anatomy, batches, seed, torch.device(device), individual or Individual(), scanner or Scanner(), names
    )


def _simulate(
    anatomy: Anatomy,
    batches: list[list[int]],
    seed: int,
    device: torch.device,
    individual: Individual,
    scanner: Scanner,
    departures: Sequence[str],
) -> Iterator[SimulatedRat]:
    """Do the work of :func:`simulate`, as it is asked for; what was asked has been checked."""
    head = None
    for indices in batches:
        with one_thread():
            head = head or prepare(anatomy, scanner.b0_tesla, device)
            scans = _scan(head, indices, seed, individual, scanner, departures)
        yield from scans


def _scan(
    head: Head, indices: list[int], seed: int, individual: Individual, scanner: Scanner, departures: Sequence[str] = ()
) -> list[SimulatedRat]:
    """One batch of rats."""
    device, tissues = head.spins.device, head.anatomy.tissues
    warp_shape = tuple(head.ventricles.shape[1:])
    variations = [draw_variation(individual, seed, i, len(tissues), warp_shape, WARP_MM) for i in indices]
    departed = [draw_departure(departures, seed, i, warp_shape) for i in indices]
    variations = [departure.warped(rat) for departure, rat in zip(departed, variations, strict=True)]
    conditions = [draw_conditions(scanner, random_stream(seed, i, "scanner")) for i in indices]

    # individual: velocity -> flow
    spacing = torch.tensor(head.spacing(warp_shape), device=device)[:, None, None, None]
    widening = torch.tensor([d.ventricle_mm for d in variations], device=device)[:, None, None, None, None]
    velocity = torch.stack([d.velocity_mm for d in variations]).to(device) + widening * head.ventricles
    warp, smallest = diffeomorphism(velocity / spacing)

    # image -> true position -> animal -> anatomy, and how bright each point is, on the coarse grid
    points = coarse_points(device)
    shift, brightness = _distortion(head, scanner, variations, conditions, points)
    body = _to_body(_move(points, -shift), variations)
    body = body + spacing * sample(warp, head.index(body, warp_shape))
    coil_shift = torch.stack([s.coil_shift_mm for s in conditions]).to(device)
    coil = coil_sensitivity(scanner, points[0, :, ::2, ::2, ::2], coil_shift)
    brightness = brightness * upsample(coil[:, None], COARSE)[:, 0]

    # look-up and acquisition, on the fine grid
    contrast = torch.stack([d.contrast for d in variations]).to(device)
    lesioned = contrast * contrast.new_tensor(OEDEMA)[:, None]
    signals, oedema = (steady_state(scanner, tissues, own) for own in (contrast, lesioned))
    picture, fractions = _look_up(head, signals, oedema, head.index(body, head.shape), departed)
    images = acquire(scanner, picture * upsample(brightness[:, None])[:, 0], conditions)
    images = images.round().clamp(0, 32767).to(torch.int16).cpu().numpy()
    for departure, image, shares in zip(departed, images, fractions, strict=True):
        departure.cut(image)
        departure.cut(shares)
    labels = most_likely(fractions, head.label_weights).cpu().numpy()
    volumes = fractions.flatten(2).sum(2).cpu().numpy() * math.prod(STUDY_ZOOMS)
    return [
        SimulatedRat(
            index=index,
            image=images[n],
            labels=labels[n],
            affine=grid_affine(centre_mm=head.anatomy.centre_mm),
            properties=_properties(variations[n], smallest[n].item(), volumes[n]) | departed[n].properties,
        )
        for n, index in enumerate(indices)
    ]


def _distortion(
    head: Head, scanner: Scanner, variations: list[Variation], conditions: list[ScanConditions], points: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """How far the image at each point has been moved, mm, and its brightness after piling up and dephasing."""
    scale = torch.tensor([s.field_scale for s in conditions], device=points.device)[:, None, None, None]
    shim = torch.stack([s.shim_hz_per_mm for s in conditions]).to(points.device)[..., None, None, None]
    field = head.field.expand(len(variations), 1, *head.field.shape)
    shift = points.new_zeros(len(variations), *points.shape[2:])
    # What is at y shows at y + shift(y); the point p of the image shows the y for which y + shift(y) = p.
    for _ in range(4):
        where = _move(points, -shift)
        hz = scale * sample(field, head.index(_to_body(where, variations), head.field.shape))[:, 0] + (
            shim * where
        ).sum(1)
        voxels = scanner.largest_shift * torch.tanh(hz / scanner.hz_per_voxel / scanner.largest_shift)
        shift = STUDY_ZOOMS[PHASE] * voxels
    spacing = coarse_spacing()
    piling_up = 1 - torch.gradient(shift, spacing=spacing[PHASE], dim=1 + PHASE)[0]
    return shift, piling_up.clamp(0, 3) * dephasing(scanner, hz, spacing)


def _move(points: torch.Tensor, along_phase: torch.Tensor) -> torch.Tensor:
    """Points moved along the phase-encoding axis: (1, 3, ...), (B, ...) -> (B, 3, ...)."""
    moved = points.expand(len(along_phase), *points.shape[1:]).clone()
    moved[:, PHASE] += along_phase
    return moved


def _to_body(points: torch.Tensor, variations: list[Variation]) -> torch.Tensor:
    """From the scanner to the animal: shift, rotation and size undone, (B, 3, x, y, z) mm."""
    shift = torch.stack([d.shift_mm for d in variations]).to(points.device)[:, :, None, None, None]
    size = torch.tensor([d.size for d in variations], device=points.device)[:, None, None]
    turn = rotation_matrix(torch.stack([d.rotation_deg for d in variations])).to(points.device)
    back = (turn.transpose(1, 2) / size)[..., None, None, None]
    return (back * (points - shift)[:, None]).sum(2)


def _look_up(
    head: Head, signals: torch.Tensor, oedema: torch.Tensor, index: torch.Tensor, departed: list[Departure]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Signal on the fine grid (B, 128, 128, 40), and fractions of the three tissues in the study's voxels."""
    values = torch.empty(len(signals), len(head.spins), 4, device=index.device)
    values[..., 1:] = head.fractions
    for n, signal in enumerate(signals):  # one product a rat: rounding must not depend on the batch
        values[n, :, 0] = torch.mv(head.spins, signal)
        departed[n].alter(values[n], head, signal, oedema[n])
    volume = values.unflatten(1, head.shape).movedim(-1, 1)  # channels last in memory: one visit to each corner
    seen = sample(volume, upsample(index))
    return seen[:, 0], F.avg_pool3d(seen[:, 1:], (2, 2, 1))


def _properties(rat: Variation, smallest: float, volumes: np.ndarray) -> dict[str, float]:
    values = {"size": rat.size}
    for axis, degrees, mm in zip("rsa", rat.rotation_deg.tolist(), rat.shift_mm.tolist(), strict=True):
        values |= {f"rotation_{axis}_deg": degrees, f"shift_{axis}_mm": mm}
    values |= {"min_jacobian": smallest, "brain_mm3": float(volumes.sum())}
    values |= {f"{name}_mm3": float(mm3) for name, mm3 in zip(("csf", "grey", "white"), volumes, strict=True)}
    return {name: round(value, 4) for name, value in values.items()}
