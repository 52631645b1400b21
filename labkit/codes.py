"""Codes: drawn, encoded, decoded, and the way from one to another. Tensors only; files are `labkit.generation`'s.

Codes are float32 tensors (N, Z). Random ones are decoded by the average of G, encoded ones by the G that was trained
beside the encoder (:meth:`labkit.runs.Run.generator`); `kind` says which, ``"random"`` or ``"encoded"``.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from labkit.cohort import Cohort
from labkit.progress import progress_bar
from labkit.runs import Run
from labkit.training import choose_device

BATCH = 8
"""Volumes a pass. Always as many, so that a volume does not depend on how many others were asked for."""


def draw_codes(run: Run, n: int, seed: int = 0, first: int = 0, truncation: float = 1.0) -> Tensor:
    """Random codes; number i of a seed is the same whatever `n` and `first`.

    Parameters
    ----------
    run : Run
        Says how long a code is.
    n : int
        How many.
    seed : int
        Of the sequence.
    first : int
        Number of the first.
    truncation : float
        Standard deviation, 0 or more: 1 is N(0, I), which G was trained on; less makes rats more alike.

    Returns
    -------
    torch.Tensor
        float32 (n, Z).
    """
    if n < 0 or not 0 <= truncation < np.inf:
        raise ValueError(f"n={n} and truncation={truncation}: both must be 0 or more, and finite")
    length = run.variant.latent_dim
    rows = [np.random.default_rng([seed, i]).standard_normal(length, np.float32) for i in range(first, first + n)]
    return torch.from_numpy(np.array(rows, np.float32).reshape(n, length)) * truncation


def in_batches(network: nn.Module, inputs: Tensor, show: str = "") -> Iterator[Tensor]:
    """Pass inputs through a network, :data:`BATCH` at a time, the last batch filled up.

    Parameters
    ----------
    network : torch.nn.Module
        In evaluation mode.
    inputs : torch.Tensor
        (N, ...), on any device.
    show : str
        Words for a progress bar; none if empty.

    Yields
    ------
    torch.Tensor
        (up to 8, ...) on the CPU.
    """
    device = next(network.parameters()).device
    parts = inputs.split(BATCH)
    for part in progress_bar(parts, show, len(parts)) if show else parts:
        full = torch.cat([part, part[-1:].expand(BATCH - len(part), *part.shape[1:])]) if len(part) < BATCH else part
        with torch.no_grad():  # around the pass alone: around the yield it would reach into the caller
            out = network(full.to(device)).float().cpu()[: len(part)]
        yield out


def decode(run: Run, codes: Tensor, kind: str = "random", device: str = "auto") -> Tensor:
    """Codes to volumes.

    Parameters
    ----------
    run : Run
        Trained.
    codes : torch.Tensor
        (N, Z).
    kind : {"random", "encoded"}
        Where the codes come from.
    device : str
        As in :func:`labkit.training.train`.

    Returns
    -------
    torch.Tensor
        float32 (N, 1, S, S, S) in [-1, 1].

    Raises
    ------
    ValueError
        The codes have another length than the run's.
    """
    _check_codes(run, codes)
    network = run.generator(choose_device(device), kind)
    return _gathered(in_batches(network, codes), (1, *(run.scale.size,) * 3))


def encode(run: Run, cohort: Cohort, device: str = "auto") -> Tensor:
    """Scans to codes, (N, Z); decode them with ``kind="encoded"``.

    Parameters
    ----------
    run : Run
        Trained.
    cohort : Cohort
        Any scans on the grid of those the run was trained on.

    Raises
    ------
    ValueError
        Scans on another grid.
    """
    run.likeness.check_grid(cohort)
    network = run.encoder(choose_device(device))
    return _gathered(in_batches(network, cohort.volumes(run.scale.size)), (run.variant.latent_dim,))


def interpolate(
    run: Run, a: Tensor, b: Tensor, steps: int = 9, kind: str = "random", device: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Volumes on the way from one code to another.

    Parameters
    ----------
    run : Run
        Trained.
    a, b : torch.Tensor
        (Z,), both of one `kind`.
    steps : int
        How many, both ends included; at least 2.
    kind : {"random", "encoded"}
        Where the codes come from.
    device : str
        As in :func:`labkit.training.train`.

    Returns
    -------
    volumes : torch.Tensor
        (steps, 1, S, S, S) in [-1, 1].
    codes : torch.Tensor
        (steps, Z).
    """
    if steps < 2:
        raise ValueError(f"steps={steps}: a way has two ends, so at least 2")
    codes = slerp(a, b, torch.linspace(0, 1, steps))
    return decode(run, codes, kind, device), codes


def slerp(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """Spherical interpolation of directions, linear interpolation of lengths.

    Gaussian codes lie in a thin shell; the straight line between two of them leaves it for the middle, where G was
    never trained, and the arc does not (White 2016, arXiv 1609.04468).

    Parameters
    ----------
    a, b : torch.Tensor
        (Z,), neither zero nor opposite.
    t : torch.Tensor
        (n,), 0 is `a`, 1 is `b`.

    Returns
    -------
    torch.Tensor
        (n, Z).
    """
    length_a, length_b = a.norm(), b.norm()
    unit_a, unit_b = a / length_a.clamp_min(1e-12), b / length_b.clamp_min(1e-12)
    angle = torch.arccos((unit_a @ unit_b).clamp(-1, 1))
    t = t.to(a)[:, None]
    if angle < 1e-4:  # hardly an arc, and its formula would divide by zero
        return a + t * (b - a)
    direction = (torch.sin((1 - t) * angle) * unit_a + torch.sin(t * angle) * unit_b) / torch.sin(angle)
    return direction * (length_a + t * (length_b - length_a))


def _check_codes(run: Run, codes: Tensor) -> None:
    length = run.variant.latent_dim
    if codes.ndim != 2 or codes.shape[1] != length:
        raise ValueError(f"codes of {run.path.name} have the shape (N, {length}); got {tuple(codes.shape)}")


def _gathered(batches: Iterator[Tensor], shape: tuple[int, ...]) -> Tensor:
    parts = list(batches)
    return torch.cat(parts) if parts else torch.empty(0, *shape)
