"""The segmentation network: a MONAI 3-D U-Net for the study's grid, its input, its training, its predictions."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from labkit.data import volumes
from labkit.data.augment import AUGMENTATIONS, augment
from labkit.data.cohort import Cohort
from labkit.data.grids import STUDY_ZOOMS
from labkit.evidence.sample import Sample, scanned_slices
from labkit.fields import known

CLASSES = 4
"""Background, CSF, grey matter, white matter."""


@dataclass(frozen=True)
class Plan:
    """How large the network and its volumes are, and how long it is trained.

    Attributes
    ----------
    name : str
        Of the scale.
    size : int
        Side of the cubes, voxels; the padding is cut off again.
    channels : tuple of int
        Of the U-Net's levels; a halving lies between two. 40 slices halve three times at most.
    steps, batch_size : int
        Of the optimiser, the same for every arm.
    lr : float
        Largest learning rate, of one cycle up and down.
    seeds : int
        Repeats of every arm.
    teachers : int
        Networks whose mean labels synthetic scans.
    """

    name: str
    size: int
    channels: tuple[int, ...]
    steps: int
    batch_size: int = 4
    lr: float = 5e-3
    seeds: int = 5
    teachers: int = 1


PLANS = {
    plan.name: plan
    for plan in (
        Plan("smoke", 16, (4, 8), steps=20, seeds=2),
        Plan("laptop", 32, (16, 32, 64), steps=300, lr=1.5e-2),
        Plan("paper", 64, (32, 64, 128, 256), steps=6000, lr=2e-3, teachers=3),
    )
}
"""Plans by scale."""


def plan_called(name: str | Plan) -> Plan:
    """The plan of that scale; ValueError with the names there are."""
    return name if isinstance(name, Plan) else PLANS[known("scale", name, PLANS)]


@dataclass(frozen=True)
class Examples:
    """Scans and labels as the network takes them.

    Attributes
    ----------
    images : torch.Tensor
        float32 (N, 1, S, S, S) in [-1, 1]: each scan scaled by its own white
        (:func:`labkit.evidence.brightness.white`), so that gain does not matter and real and generated scans are
        treated alike.
    labels : torch.Tensor
        uint8 (N, 1, S, S, S).
    box : tuple of slice
        The part of the cube that is used, its sides divisible by the network's halvings.
    zooms : tuple of float
        Voxel size of the scans, of which the ratio matters to the augmentation.
    """

    images: Tensor
    labels: Tensor
    box: tuple[slice, slice, slice]
    zooms: tuple[float, float, float] = STUDY_ZOOMS

    def take(self, index: np.ndarray | list[int]) -> Examples:
        """Some of them."""
        chosen = torch.as_tensor(np.asarray(index), dtype=torch.long)
        return replace(self, images=self.images[chosen], labels=self.labels[chosen])

    def join(self, other: Examples | None) -> Examples:
        """Both, one after the other."""
        if other is None:
            return self
        pairs = (self.images, other.images), (self.labels, other.labels)
        return replace(self, images=torch.cat(pairs[0]), labels=torch.cat(pairs[1]))

    def __len__(self) -> int:
        return len(self.images)


def inputs(scans: Cohort, plan: Plan) -> tuple[Tensor, tuple[slice, slice, slice]]:
    """Images of a cohort as :class:`Examples` has them, and the box."""
    sample = Sample.of(scans, plan.size)
    return sample.normalised * 2 - 1, padded_box(sample.shape, plan)


def examples(scans: Cohort, plan: Plan) -> Examples:
    """A labelled cohort as the network takes it."""
    images, box = inputs(scans, plan)
    return Examples(images, scans.label_maps(plan.size), box, scans[0].zooms)


def padded_box(shape: tuple[int, int, int], plan: Plan) -> tuple[slice, slice, slice]:
    """Where in a cube scans of `shape` are, widened until the network can halve it."""
    by, size = 2 ** (len(plan.channels) - 1), plan.size
    slices = scanned_slices(shape, size)
    return tuple(slice(part.start // by * by, min(size, -(-part.stop // by) * by)) for part in slices)


def build(plan: Plan, seed: int) -> nn.Module:
    """A U-Net with weights drawn by `seed`; (B, 1, X, Y, Z) -> (B, 4, X, Y, Z) logits."""
    from monai.networks.nets import UNet

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return UNet(3, 1, CLASSES, plan.channels, (2,) * (len(plan.channels) - 1), num_res_units=1, norm="batch")


def train_network(data: Examples, plan: Plan, seed: int, augmentation: str = "full") -> nn.Module:
    """Train on a fixed number of steps, whatever the number of scans.

    Parameters
    ----------
    data : Examples
        Every scan is as likely as any other.
    plan : Plan
        Size and length.
    seed : int
        Of weights, order and augmentation.
    augmentation : {"full", "none"}
        The paper's conventional augmentation, or none.

    Returns
    -------
    torch.nn.Module
        In evaluation mode.
    """
    from monai.losses import DiceCELoss

    network = build(plan, seed)
    loss_of = DiceCELoss(softmax=True, to_onehot_y=True)
    optimiser = torch.optim.AdamW(network.parameters(), plan.lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, plan.lr, total_steps=plan.steps)
    rng = torch.Generator().manual_seed(seed)
    order = torch.zeros(0, dtype=torch.long)
    transforms = replace(AUGMENTATIONS[augmentation], voxel_mm=data.zooms)
    network.train()
    for _ in range(plan.steps):
        while len(order) < plan.batch_size:
            order = torch.cat([order, torch.randperm(len(data), generator=rng)])
        chosen, order = order[: plan.batch_size], order[plan.batch_size :]
        x, y = augment(data.images[chosen], data.labels[chosen], generator=rng, augmentation=transforms)
        loss = loss_of(network(x[(..., *data.box)]), y[(..., *data.box)])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
    return network.eval()


@torch.no_grad()
def probabilities(networks: list[nn.Module], images: Tensor, box: tuple[slice, ...], batch: int = 16) -> Tensor:
    """Mean class probabilities of networks, (N, 4, S, S, S); background outside the box."""
    out = torch.zeros(len(images), CLASSES, *images.shape[2:])
    out[:, 0] = 1
    for start in range(0, len(images), batch):
        part = images[start : start + batch][(..., *box)]
        out[start : start + batch][(..., *box)] = sum(network(part).softmax(1) for network in networks) / len(networks)
    return out


def full_labels(chances: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Labels on the scans' own grid: probabilities brought there, the largest wins. -> uint8 (N, X, Y, Z)."""
    side = volumes.cube_side(shape)
    out = torch.empty(len(chances), *shape, dtype=torch.uint8)
    for index, chance in enumerate(chances):
        whole = volumes.resize(chance[None], side)
        out[index] = volumes.crop_from_cube(whole.argmax(1, keepdim=True).to(torch.uint8), shape)[0]
    return out


def to_json(plan: Plan) -> dict[str, Any]:
    """A plan as JSON; ``Plan(**content)`` with channels as a tuple is the inverse."""
    return asdict(plan) | {"channels": list(plan.channels)}
