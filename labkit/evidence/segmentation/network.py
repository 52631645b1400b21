"""The segmentation network: a MONAI 3-D U-Net for the study's grid, its input, its training, its predictions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from labkit.data import volumes
from labkit.data.augment import AUGMENTATIONS, augment
from labkit.data.cohort import Cohort
from labkit.data.grids import STUDY_ZOOMS
from labkit.data.labels import TISSUE_LABELS
from labkit.evidence.sample import Sample
from labkit.fields import known
from labkit.files import load_state

MODEL_FILE, ABOUT_FILE, SCORES_FILE = "model.safetensors", "arm.json", "scores.csv"


"""What a trained arm's folder holds; the scores are written last and say that the arm is finished."""


LEFT_OUT = "left out"


def is_finished(folder: Path) -> bool:
    """Whether all of an arm is there: network, what it was trained on, and scores.

    Of one that was packed the network may have been left out, as what it was trained on says.
    """
    if not all((folder / name).exists() for name in (ABOUT_FILE, SCORES_FILE)):
        return False
    return (folder / MODEL_FILE).exists() or json.loads((folder / ABOUT_FILE).read_text()).get("network") == LEFT_OUT


SPARE = 1.15
"""Scans labelled for each that is kept: the least certain of them are dropped."""


@dataclass(frozen=True)
class Plan:
    """How large the network and its volumes are, and how long it is trained."""

    name: str  # of the scale
    size: int  # side of the cubes, voxels; the padding is cut off again
    channels: tuple[int, ...]  # of the U-Net's levels; a halving lies between two. 40 slices halve three times at most
    steps: int  # of the optimiser, the same for every arm
    batch_size: int = 4
    lr: float = 5e-3  # the largest learning rate, of one cycle up and down
    block: int = 1  # voxels a side that the network takes as channels of one: an eighth of the work for 2
    residual: int = 1  # of a level's convolutions with a short cut; 0 for plain ones
    seeds: int = 5  # repeats of every arm
    teachers: int = 1  # networks whose mean labels synthetic scans
    labels: tuple[int, ...] = TISSUE_LABELS  # what the label maps hold, rising, background first: a class each

    def classes(self, maps: Tensor) -> Tensor:
        """Label maps to places in `labels`, uint8; a number that is not among them is background."""
        table = torch.zeros(256, dtype=torch.uint8)
        table[list(self.labels)] = torch.arange(len(self.labels), dtype=torch.uint8)
        return table[maps.long()]

    def maps(self, classes: Tensor) -> Tensor:
        """Inverse of :meth:`classes`."""
        return torch.tensor(self.labels, dtype=torch.uint8)[classes.long()]


PLANS = {
    plan.name: plan
    for plan in (
        Plan("smoke", 16, (4, 8), steps=20, seeds=2),
        # batches of one: many small steps converge in the fewest operations
        Plan("laptop", 64, (32, 64, 128), steps=2400, batch_size=1, lr=2e-2, block=2, residual=0),
        Plan("paper", 64, (32, 64, 128, 256), steps=6000, lr=2e-3, teachers=3),
    )
}
PLANS["reference"] = replace(PLANS["laptop"], name="reference")
"""Plans by scale."""


MANY = 64
"""Scans of which more is made at a time than is kept of them: what thousands take is then what is kept."""


def plan_called(name: str | Plan) -> Plan:
    """The plan of that scale; ValueError with the names there are."""
    return name if isinstance(name, Plan) else PLANS[known("scale", name, PLANS)]


def to_json(plan: Plan) -> dict[str, Any]:
    """A plan as JSON, with labels only where they are not the study's; :func:`from_json` is the inverse."""
    content = asdict(plan) | {"channels": list(plan.channels), "labels": list(plan.labels)}
    if plan.labels == TISSUE_LABELS:
        del content["labels"]
    return content


def from_json(content: Mapping[str, Any]) -> Plan:
    """A plan from its JSON."""
    lists: dict[str, Any] = {key: tuple(value) for key, value in content.items() if isinstance(value, list)}
    return Plan(**{**content, **lists})


@dataclass(frozen=True)
class Examples:
    """Scans and labels as the network takes them.

    Images are float32 (N, 1, S, S, S) in [-1, 1]: each scan scaled by its own white
    (:func:`labkit.evidence.brightness.white`), so that gain does not matter and real and generated scans are treated
    alike. Labels are places in the plan's, uint8 (N, 1, S, S, S). The box is the part of the cube that is used, its
    sides divisible by the network's halvings; of the voxel size, the ratio matters to the augmentation.
    """

    images: Tensor
    labels: Tensor
    box: tuple[slice, ...]
    zooms: tuple[float, ...] = STUDY_ZOOMS

    def take(self, index: np.ndarray | Sequence[int]) -> Examples:
        """Some of them."""
        chosen = torch.as_tensor(np.asarray(index), dtype=torch.long)
        return replace(self, images=self.images[chosen], labels=self.labels[chosen])

    def join(self, other: Examples) -> Examples:
        """Both, one after the other."""
        pairs = (self.images, other.images), (self.labels, other.labels)
        return replace(self, images=torch.cat(pairs[0]), labels=torch.cat(pairs[1]))

    def __len__(self) -> int:
        return len(self.images)


def inputs(scans: Cohort, plan: Plan) -> tuple[Tensor, tuple[slice, ...]]:
    """Images of a cohort as :class:`Examples` has them, and the box."""
    sample = Sample.of(scans, plan.size)
    return sample.normalised * 2 - 1, padded_box(sample.shape, plan)


def examples(scans: Cohort, plan: Plan) -> Examples:
    """A labelled cohort as the network takes it."""
    images, box = inputs(scans, plan)
    return Examples(images, plan.classes(scans.label_maps(plan.size)), box, scans[0].zooms)


def padded_box(shape: tuple[int, ...], plan: Plan) -> tuple[slice, ...]:
    """Where in a cube scans of `shape` are, widened until the network can halve it."""
    by, size, box = plan.block * 2 ** (len(plan.channels) - 1), plan.size, []
    for part in volumes.scanned_slices(shape, size):
        extent = part.stop - part.start
        wide = -(-extent // by) * by
        start = min(max(0, part.start - (wide - extent) // 2), size - wide)
        box.append(slice(start, start + wide))
    return tuple(box)


class Blocked(nn.Module):
    """A U-Net that takes blocks of voxels as channels and gives the classes of a block at once.

    All voxels of the scan go in and come out, and the network works on a grid that is coarser by the block.
    """

    def __init__(self, plan: Plan) -> None:
        from monai.networks.nets import UNet

        super().__init__()
        self.block, voxels, halvings = plan.block, plan.block**3, (2,) * (len(plan.channels) - 1)
        out = len(plan.labels) * voxels
        wide = min(out, max(plan.channels[0], len(TISSUE_LABELS) * voxels))
        self.unet = UNet(3, voxels, wide, plan.channels, halvings, num_res_units=plan.residual, norm="batch")
        # many classes of a block of voxels are cheaper to tell from what the last layer finds than by that layer itself
        self.head = nn.Conv3d(wide, out, 1) if out > wide else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, X, Y, Z) -> (B, K, X, Y, Z) logits."""
        from monai.networks.utils import pixelshuffle, pixelunshuffle

        return pixelshuffle(self.head(self.unet(pixelunshuffle(x, 3, self.block))), 3, self.block)

    def deepest(self, x: Tensor) -> Tensor:
        """What the way down ends in, (B, 1, X, Y, Z) -> (B, C, x, y, z), without the way up, the most work."""
        from monai.networks.utils import pixelunshuffle

        x, level = pixelunshuffle(x, 3, self.block), self.unet.model
        while isinstance(level, nn.Sequential) and len(level) > 1 and hasattr(level[1], "submodule"):
            x, level = level[0](x), level[1].submodule
        return level(x)


def build(plan: Plan, seed: int) -> Blocked:
    """A U-Net with weights drawn by `seed`; (B, 1, X, Y, Z) -> (B, K, X, Y, Z) logits, K classes."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return Blocked(plan)


def load_network(plan: Plan, path: Path) -> Blocked:
    """A trained network's file, in evaluation mode."""
    network = build(plan, 0)
    network.load_state_dict(load_state(path, "cpu"))
    return network.eval()


def train_network(data: Examples, plan: Plan, seed: int, augmentation: str = "full") -> nn.Module:
    """Train for a fixed number of steps, whatever the number of scans; every scan is as likely as any other.

    `seed` is of weights, order and augmentation; `augmentation` is the paper's conventional one, ``full``, or ``none``.
    Other labels than tissues may tell left from right, and are not flipped. The network comes back in evaluation mode.
    """
    from monai.losses import DiceCELoss

    network = build(plan, seed)
    loss_of = DiceCELoss(softmax=True, to_onehot_y=True)
    optimiser = torch.optim.AdamW(network.parameters(), plan.lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, plan.lr, total_steps=plan.steps)
    rng = torch.Generator().manual_seed(seed)
    order = torch.zeros(0, dtype=torch.long)
    transforms = replace(AUGMENTATIONS[augmentation], voxel_mm=data.zooms)
    if plan.labels != TISSUE_LABELS:
        transforms = replace(transforms, flip_axis=None)
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
    """Mean class probabilities of networks, (N, K, S, S, S); background outside the box."""
    whole = []
    for part in images.split(batch):
        inside = sum(network(part[(..., *box)]).softmax(1) for network in networks) / len(networks)
        chances = inside.new_zeros(len(part), inside.shape[1], *part.shape[2:])
        chances[:, 0] = 1
        chances[(..., *box)] = inside
        whole.append(chances)
    return torch.cat(whole)


def full_labels(chances: Tensor, shape: tuple[int, ...], plan: Plan) -> Tensor:
    """Labels on the scans' own grid: probabilities brought there, the largest wins. -> uint8 (N, X, Y, Z)."""
    side = volumes.cube_side(shape)
    out = torch.empty(len(chances), *shape, dtype=torch.uint8)
    for index, chance in enumerate(chances):
        whole = volumes.resize(chance[None], side)
        winners = whole.max(1, keepdim=True).indices  # seven times as fast as argmax
        out[index] = volumes.crop_from_cube(winners.to(torch.uint8), shape)[0]
    return plan.maps(out)


class Labelled(NamedTuple):
    """Synthetic scans with labels."""

    examples: Examples  # the scans that were kept, in their order
    kept: np.ndarray  # their indices among all N
    confidence: np.ndarray  # (N,), of all


def teach(networks: list[nn.Module], images: Tensor, box: tuple[slice, ...], keep: int) -> Labelled:
    """Label synthetic scans, which are born without, and keep the `keep` most certain of N.

    The teacher, one network or the mean of several, is trained on the very real scans of the arm that it serves. It
    cannot know more than those scans taught it: what a student can gain is the variety of the images, not of the
    labels. Where the teacher is wrong, the student learns the mistake. Images and box are as in :class:`Examples`.
    """
    if keep > len(images):
        raise ValueError(f"{keep} scans are to be kept of {len(images)}: generate more")
    found, sure = [], []
    for part in images.split(MANY):  # a thousand scans' probabilities of every label would be 4 GB
        winners, places = probabilities(networks, part, box).max(1, keepdim=True)
        sure.append(confidence(winners, places))
        found.append(places.to(torch.uint8))
    certain, labels = np.concatenate(sure), torch.cat(found)
    kept = np.sort(np.argsort(-certain, kind="stable")[:keep])
    chosen = torch.from_numpy(kept)
    return Labelled(Examples(images[chosen], labels[chosen], box), kept, certain)


def confidence(winners: Tensor, labels: Tensor) -> np.ndarray:
    """Mean winning probability over voxels called brain, 0 where there are none: (N, 1, S, S, S) twice -> (N,)."""
    brain = (labels > 0).float()
    voxels = brain.flatten(1).sum(1)
    return ((winners * brain).flatten(1).sum(1) / voxels.clamp_min(1)).numpy()
