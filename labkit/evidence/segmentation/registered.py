"""Labels without a network: what an atlas brings to the test scans itself, beside what networks say."""

from __future__ import annotations

from typing import TYPE_CHECKING

from labkit.evidence.segmentation import gains
from labkit.evidence.segmentation.arms import Arm
from labkit.evidence.segmentation.experiment import NO_ATLAS, Experiment, read_scores
from labkit.evidence.segmentation.scores import score
from labkit.evidence.segmentation.sources import arms_animals
from labkit.files import write_text

if TYPE_CHECKING:
    import pandas as pd


def scores(experiment: Experiment) -> pd.DataFrame:
    """Scores of labels that the atlas brings to the test scans: as :attr:`Experiment.scores`, by the same names.

    For each share of the real scans (``arm``) the atlas sees the labels that the network of that arm learned from. What
    is missing is computed and kept beside the arms. ValueError without an atlas.
    """
    import pandas as pd

    if experiment.atlas is None:
        raise ValueError(NO_ATLAS)
    tables, numbers, fingerprint = [], None, experiment.atlas.fingerprint[:8]
    for arm in _arms(experiment):
        for seed in range(experiment.seeds):
            kept = experiment.arm_folder(arm, seed) / f"registration-{fingerprint}.csv"
            if not kept.exists():
                atlas = experiment.atlas_with(arms_animals(experiment.train, arm.real, seed))
                numbers = atlas.register(experiment.test) if numbers is None else numbers
                write_text(kept, score(atlas.label(numbers), experiment.test, experiment.tissues).to_csv(index=False))
            tables.append(read_scores(kept, experiment.tissues).assign(arm=arm.name, seed=seed))
    return pd.concat(tables, ignore_index=True)


def _arms(experiment: Experiment) -> list[Arm]:
    return [arm for arm in experiment.arms if arm.source == "none" and arm.augmentation == "full"]


def beside_networks(experiment: Experiment) -> pd.DataFrame:
    """Mean Dice of both with its interval, in words: by whose labels and who learned from them, tissues across."""
    import pandas as pd

    found = {"a network": experiment.scores, "the atlas, by registration": scores(experiment)}
    means = {by: gains.means(table).set_index(["arm", "tissue"]) for by, table in found.items()}
    rows = {
        (arm.words(len(experiment.train)), by): {
            tissue: _words(*table.loc[(arm.name, tissue), ["mean", "ci_low", "ci_high"]])
            for tissue in experiment.tissues
        }
        for arm in _arms(experiment)
        for by, table in means.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(["labels of", "taught to"])


def _words(mean: float, low: float, high: float) -> str:
    return f"{mean:.3f}" + (f" ({low:.3f} to {high:.3f})" if low == low else "")  # a single seed has no interval
