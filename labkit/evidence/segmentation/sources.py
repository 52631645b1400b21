"""Where an arm's added scans come from: a generator, a Gaussian, an atlas with labels of its own, random warps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from labkit.data import volumes
from labkit.data.augment import elastic
from labkit.data.cohort import Cohort
from labkit.evidence.sample import Sample
from labkit.evidence.segmentation.network import MANY, Examples, Plan
from labkit.generation import decode, draw_codes, labelled_batches
from labkit.runs import Run


def synthetic(run: Run, n: int, seed: int, size: int, shape: tuple[int, ...]) -> Sample:
    """Scans as a generator makes them, brought to cubes of `size`; the padding is black, as real scans' is."""
    parts = [_sample(decode(run, part), size, shape).cubes for part in draw_codes(run, n, seed).split(MANY)]
    return Sample(torch.cat(parts), shape)


def _sample(made: Tensor, size: int, shape: tuple[int, ...]) -> Sample:
    made = volumes.resize(made, size)
    sample = Sample(torch.zeros_like(made), shape)
    sample.scanned[:] = (made[(..., *sample.slices)] + 1) / 2
    sample.cubes.clamp_(0, 1)
    return sample


def gaussian(images: Tensor, n: int, seed: int) -> Tensor:
    """Samples of the Gaussian with the images' own mean and covariance, (N, 1, S, S, S) -> (n, 1, S, S, S) in [-1, 1].

    Sums of the images' deviations with random weights have just that covariance: all principal components, no model.
    """
    mean = images.mean(0, keepdim=True)
    weights = torch.randn(n, len(images), generator=torch.Generator().manual_seed(seed))
    weights /= max(1, len(images) - 1) ** 0.5
    return (mean + torch.einsum("ni,i...->n...", weights, images - mean)).clamp_(-1, 1)


def warped(real: Examples, n: int, seed: int) -> Examples:
    """Scans and labels drawn with replacement, each under a random warp (:func:`labkit.data.augment.elastic`)."""
    rng = torch.Generator().manual_seed(seed)
    chosen = torch.randint(len(real), (n,), generator=rng)
    pairs = [elastic(real.images[part], real.labels[part], rng) for part in chosen.split(8)]
    images, labels = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    return replace(real, images=images, labels=labels)


class ArmsAtlas:
    """An atlas as one arm sees it: fitted to all training scans, with the labels of that arm's scans and no others.

    Parameters
    ----------
    run : Run
        An atlas's, trained on the very scans of `train`.
    train : Cohort
        All training scans; ValueError if the atlas was trained on others.
    labelled : sequence of int
        Places in `train` of the scans whose labels it may see.
    like : Examples
        All training scans as the network takes them.
    """

    def __init__(self, run: Run, train: Cohort, labelled: list[int], like: Examples, plan: Plan) -> None:
        trained, digests = run.config["train"]["digests"], run.digests_of(train)
        if missing := set(digests) - set(trained):
            raise ValueError(
                f"{run.path.name} was not trained on {len(missing)} of the {len(train)} training scans: train an atlas "
                "on the cohort of the generator's run, or leave its arms out"
            )
        self.run, self.train, self.like, self.plan = run, train, like, plan
        place = {digest: index for index, digest in enumerate(trained)}
        atlas = run.encoder().atlas
        self.numbers = atlas.state["numbers"][[place[digest] for digest in digests]]
        size, box = run.scale.size, volumes.scanned_slices(train.shape, run.scale.size)
        maps = train.subset(labelled).label_maps(size)[(..., *box)]
        self.atlas = atlas.learn_labels(self.numbers[labelled], maps)

    def drawn(self, n: int, seed: int, contrast: bool = False) -> Examples:
        """New animals with labels of their own; with `contrast` each tissue's brightness is drawn anew.

        Random contrasts on right shapes teach a network not to rely on brightness (Billot et al. 2023, SynthSeg,
        Medical Image Analysis 86:102789); here within each tissue what the scan shows is kept, scaled and shifted.
        """
        generator = self.run.generator()
        generator.atlas = self.atlas
        found = self._made(generator, draw_codes(self.run, n, seed))
        return replace(found, images=recoloured(found.images, found.labels, seed)) if contrast else found

    def moved_by(self, run: Run, n: int, seed: int) -> Examples:
        """Scans of a generator that moves this very atlas (:class:`labkit.rendering.AtlasHead`), its labels along."""
        generator = run.generator()
        head = generator.head
        head.label_logits, head.label_values = (self.atlas.state[name] for name in ("label_logits", "label_values"))
        return self._made(generator, draw_codes(run, n, seed))

    def _made(self, generator: nn.Module, codes: Tensor) -> Examples:
        images, labels = [], []
        for made, maps in labelled_batches(generator, codes):
            images.append(_sample(made, self.plan.size, self.train.shape).normalised * 2 - 1)
            labels.append(self.plan.classes(volumes.resize_labels(maps, self.plan.size)))
        return replace(self.like, images=torch.cat(images), labels=torch.cat(labels))

    def label(self, numbers: Tensor) -> Tensor:
        """Labels of numbers (N, P), of :meth:`register`, on the scans' own grid, uint8 (N, X, Y, Z)."""
        cubes = self.run.generator().in_cube(self.atlas.labels_of(numbers), 0)
        whole = volumes.resize_labels(cubes, volumes.cube_side(self.train.shape))
        return volumes.crop_from_cube(whole, self.train.shape)

    def register(self, scans: Cohort) -> Tensor:
        """Numbers (N, P) of other scans on the same grid."""
        size = self.run.scale.size
        box = volumes.scanned_slices(scans.shape, size)
        return self.atlas.register((scans.volumes(size)[(..., *box)] + 1) / 2)

    def registered(self, places: list[int]) -> Examples:
        """Real training scans, as if without labels, with those that the template brings along."""
        cubes = self.run.generator().in_cube(self.atlas.labels_of(self.numbers[places]), 0)
        return replace(self.like.take(places), labels=self.plan.classes(volumes.resize_labels(cubes, self.plan.size)))


def recoloured(images: Tensor, labels: Tensor, seed: int) -> Tensor:
    """Scale and shift the brightness of each label of each scan at random: (N, 1, S, S, S) in [-1, 1], the same."""
    rng = torch.Generator().manual_seed(seed)
    out = images.clone()
    for label in labels.unique().tolist():
        gain, shift = (torch.rand(2, len(images), 1, 1, 1, 1, generator=rng) - 0.5).unbind(0)
        where = labels == label
        unit = (images + 1) / 2
        # what is black stays black: air has no contrast
        new = unit * (1 + gain) + shift * 0.6 * (unit > 0.05)
        out = torch.where(where, new.clamp(0, 1) * 2 - 1, out)
    return out


def places_of(train: Cohort, animals: set[str]) -> list[int]:
    """Places of the scans of some animals."""
    return [place for place, subject in enumerate(train.subjects) if subject in animals]


def arms_animals(train: Cohort, share: float, seed: int) -> set[str]:
    """The animals of which an arm takes the real scans: whole animals, other ones for each seed."""
    animals = np.array(sorted(set(train.subjects)))
    order = np.random.default_rng([seed, 7]).permutation(animals)
    return set(order[: max(int(share > 0), round(share * len(animals)))].tolist())
