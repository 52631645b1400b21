"""A trained segmentation network as a measuring instrument: tissues of scans without labels, and features of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from labkit.data import volumes
from labkit.data.labels import TISSUE_LABELS
from labkit.evidence.segmentation.network import (
    ABOUT_FILE,
    MODEL_FILE,
    SCORES_FILE,
    Blocked,
    Plan,
    from_json,
    is_finished,
    load_network,
    padded_box,
    probabilities,
)

NAMES = tuple(
    f"{tissue} {what} by network, {unit}"
    for tissue in ("CSF", "grey matter", "white matter")
    for what, unit in (("volume", "mm³"), ("intensity", "%"))
)


@dataclass(frozen=True)
class Reader:
    """Volume and mean intensity of each tissue, and the network's deepest features."""

    network: Blocked  # of the experiment
    plan: Plan
    shape: tuple[int, ...]  # of the scans, voxels
    zooms: tuple[float, ...]  # mm

    @property
    def names(self) -> tuple[str, ...]:
        """What is read, with units."""
        return NAMES

    @property
    def box(self) -> tuple[slice, ...]:
        """The part of the cube that the network looks at."""
        return padded_box(self.shape, self.plan)

    def __call__(self, cubes: Tensor) -> Tensor:
        """(N, 1, S, S, S) in [-1, 1], scaled as :attr:`labkit.evidence.sample.Sample.normalised`, any S -> (N, 6)."""
        images = volumes.resize(cubes, self.plan.size)
        voxel_mm3 = float(np.prod(self.zooms)) * (volumes.cube_side(self.shape) / self.plan.size) ** 3
        chances = probabilities([self.network], images, self.box)
        brightness = 50 * (images + 1)  # per cent of white
        columns = []
        for label in (1, 2, 3):
            share = chances[:, label : label + 1]
            amount = share.flatten(1).sum(1)
            columns += [amount * voxel_mm3, (share * brightness).flatten(1).sum(1) / amount.clamp_min(1e-6)]
        return torch.stack(columns, 1)

    @torch.no_grad()
    def features(self, normalised: Tensor) -> np.ndarray:
        """Means over the volume of the deepest layer's channels: (N, 1, S, S, S) in [0, 1] -> (N, F)."""
        images = volumes.resize(normalised * 2 - 1, self.plan.size)[(..., *self.box)]
        return torch.cat([self.network.deepest(part).mean((2, 3, 4)) for part in images.split(16)]).double().numpy()


class TrainedNetwork(NamedTuple):
    """A trained network of an experiment, its plan, and the arm's folder."""

    network: Blocked
    plan: Plan
    folder: Path


def find_network(folder: Path, arm: str = "r100", seed: int = 0) -> TrainedNetwork | None:
    """The newest network of an arm in a generator's run, or in one experiment's folder, if any; needs no data."""
    name = f"{arm}-seed{seed}/{SCORES_FILE}"
    there = [*folder.glob(f"segmentation/*/{name}"), *folder.glob(name)]
    found = [path for path in there if is_finished(path.parent) and path.with_name(MODEL_FILE).exists()]
    if not found:
        return None
    newest = max(found, key=lambda path: path.stat().st_mtime).parent
    plan = from_json(json.loads((newest / ABOUT_FILE).read_text())["plan"])
    return TrainedNetwork(load_network(plan, newest / MODEL_FILE), plan, newest)


def find_reader(run_path: Path, shape: tuple[int, ...], zooms: tuple[float, ...]) -> Reader | None:
    """The newest network that a run's segmentation experiment trained on all its real scans, if it reads tissues."""
    found = find_network(run_path)
    if found is None or found.plan.labels != TISSUE_LABELS:
        return None
    return Reader(found.network, found.plan, tuple(shape), tuple(zooms))
