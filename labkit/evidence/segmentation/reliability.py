"""Can the tissue of synthetic scans be delineated? Whether networks that were trained apart read them alike.

A scan that two networks read alike, as alike as they read real ones, shows tissue with borders; a mosaic or a blur each
reads in its own way, or both alike and wrongly, as noise that all take for CSF. Less agreement than on real scans, in
any tissue, is a fault. As much is no proof: networks that learned from the same animals share errors, and one scan
drawn over and over is read as well as any. More is no merit: the mean of all animals is read more alike than they
are. A label that a generator gives its own scan is a function of its template, and a network may agree with it more
closely than with a real scan's true one.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from labkit.data.cohort import Cohort
from labkit.evidence.metrics import intervals
from labkit.evidence.sample import Sample, at_resolution, check_grid, one_scan_an_animal
from labkit.evidence.segmentation.experiment import Experiment
from labkit.evidence.segmentation.network import full_labels, padded_box, probabilities
from labkit.evidence.segmentation.scores import dice, masks
from labkit.files import progress_bar
from labkit.markup import styled

if TYPE_CHECKING:
    import pandas as pd
    from pandas.io.formats.style import Styler

ARM = "r100"
REAL = "real, held out"
BY_TWO, BY_LABEL = "two networks", "label and network"


def agreement(experiment: Experiment, synthetic: Mapping[str, Cohort]) -> pd.DataFrame:
    """Dice of networks with each other, and with the scans' own labels, on real and on synthetic scans.

    Parameters
    ----------
    experiment : Experiment
        At least two networks of its arm ``r100`` are trained: on all real training scans, with seeds of their own.
    synthetic : dict of str to Cohort
        Scans by name of what made them, on the grid of the real ones. Labels of their own are compared where each scan
        has them, coded as the real ones are.

    Returns
    -------
    pandas.DataFrame
        One row a source, comparison and tissue: ``source`` (the experiment's test scans, one of each animal; the same
        at the resolution of the run's generator, where that is coarser: what a perfect one could reach; then
        `synthetic`), ``comparison`` ("two networks", mean over pairs; "label and network", mean over networks, a real
        scan's own is the true one), ``tissue``, ``dice`` (mean over scans; 0 for a scan in which neither finds the
        tissue), ``ci_low``, ``ci_high`` (95 %, Student's t over scans: these networks are given, and the same in every
        row), ``n`` scans, ``networks``.

    Raises
    ------
    ValueError
        Fewer than two networks, no scans, or scans on another grid.
    """
    import pandas as pd

    networks, plan = _networks(experiment), experiment.plan
    cohorts = {REAL: one_scan_an_animal(experiment.test), **synthetic}
    for name, cohort in synthetic.items():
        if not len(cohort):
            raise ValueError(f"no scans of {name}: the cohort is empty")
        check_grid(cohorts[REAL], cohort, name)
    sources = [(name, cohort, Sample.of(cohort, plan.size)) for name, cohort in cohorts.items()]
    if (size := experiment.run.scale.size) < plan.size:
        name, real, sample = sources[0]
        sources.insert(1, (f"{name}, at {size}³", real, at_resolution(sample, size)))
    rows = []
    for name, cohort, sample in progress_bar(sources, "reading scans"):
        for comparison, scores in _compared(networks, cohort, sample, experiment).items():
            for tissue, values in zip(experiment.tissues, scores.T, strict=True):
                low, high = np.clip(intervals.of_mean(values), 0, 1)
                rows.append((name, comparison, tissue, values.mean(), low, high, len(values), len(networks)))
    columns = ["source", "comparison", "tissue", "dice", "ci_low", "ci_high", "n", "networks"]
    return pd.DataFrame(rows, columns=columns)


def _networks(experiment: Experiment) -> list[nn.Module]:
    missing = experiment.missing()
    seeds = [seed for arm, seed in experiment.jobs if arm.name == ARM and (arm, seed) not in missing]
    if len(seeds) < 2:
        raise ValueError(
            f"{len(seeds)} networks of arm {ARM} are trained, and it takes two to compare them: open the experiment "
            f"with arm {ARM} and seeds=2 or more, and call go_on()"
        )
    return [experiment.network(ARM, seed) for seed in seeds]


def _compared(
    networks: list[nn.Module], cohort: Cohort, sample: Sample, experiment: Experiment
) -> dict[str, np.ndarray]:
    """Dice by comparison, (N, tissues), means over networks or pairs of them."""
    plan, tissues = experiment.plan, experiment.tissues
    images, box = sample.normalised * 2 - 1, padded_box(sample.shape, plan)
    read = [full_labels(probabilities([network], images, box), sample.shape, plan) for network in networks]
    one, other = (list(places) for places in zip(*combinations(range(len(networks)), 2), strict=True))
    found: dict[str, list[Tensor]] = {BY_TWO: []} | ({BY_LABEL: []} if cohort.labelled else {})
    for scan, *maps in zip(cohort, *read, strict=True):
        theirs = torch.stack([masks(each, tissues) for each in maps])
        found[BY_TWO].append(dice(theirs[one], theirs[other], neither=0).mean(0))
        if cohort.labelled:
            own = masks(torch.from_numpy(np.array(scan.labels)), tissues)
            found[BY_LABEL].append(dice(own.expand_as(theirs), theirs, neither=0).mean(0))
    return {name: torch.stack(scores).numpy() for name, scores in found.items()}


def shown(table: pd.DataFrame) -> Styler:
    """A table of :func:`agreement` for a notebook: comparisons and sources down, tissues across."""
    texts = [
        f"{row.dice:.3f}" + ("" if np.isnan(row.ci_low) else f" ({row.ci_low:.3f} to {row.ci_high:.3f})")
        for row in table.itertuples()
    ]
    found = table.assign(text=texts).sort_values("comparison", ascending=False, kind="stable")
    rows = ["comparison", "source", "n"]
    wide = found.pivot_table(index=rows, columns="tissue", values="text", aggfunc="first", sort=False)
    return styled(wide, na="", caption=f"Dice, by {table['networks'].max()} networks: mean over scans, 95 % interval")
