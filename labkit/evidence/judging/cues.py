"""Do trivial traces tell real from synthetic? A classifier that sees those and no anatomy must not know better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from labkit.data.cohort import Cohort
from labkit.data.volumes import scanned_slices
from labkit.evidence.judging.results import padded
from labkit.evidence.judging.session import Session, Stimuli
from labkit.evidence.judging.trials import REAL

if TYPE_CHECKING:
    from pandas.io.formats.style import Styler

CORNER = 6
"""Voxels along a side of the field of view's four edges, where there is air in every scan."""

ALPHA = 0.05


@dataclass(frozen=True)
class CueCheck:
    """What a classifier makes of trivial cues."""

    accuracy: float  # balanced, of a linear classifier on scans it did not learn from; 0.5 is chance
    p: float  # share of random relabellings that it does as well on
    telling: str  # the cue that alone separates best, and how well (area under the ROC curve, 0.5 to 1)
    real: int  # scans
    synthetic: int
    varied: int  # cues that differ between scans at all: the others can tell nothing
    of: int  # cues

    @property
    def passes(self) -> bool:
        """Whether the classifier does no better than chance."""
        return self.p > ALPHA


def check_cues(
    session: Session, prepared: bool = True, names: bool = True, seed: int = 0, synthetic: Cohort | None = None
) -> CueCheck:
    """Whether file name, intensity range, background, padding or the noise of air give synthetic scans away.

    Parameters
    ----------
    session : Session
        All scans of its sources are looked at, not only those it shows: a cue is a property of the chain.
    prepared : bool
        Look at scans as they are shown; False: at the files as they are, which tells whether the check sees cues.
    names : bool
        Of files, look at their names, too; where those tell everything, nothing is learned about the voxels.
    seed : int
        Of folds and relabellings.
    synthetic : Cohort, optional
        Scans of the session's full resolution that are looked at in place of its own synthetic ones.
    """
    sources = session.sources
    if synthetic is not None:
        sources = {REAL: sources[REAL], "synthetic": Stimuli(synthetic)}
    tables = {name: shown_cues(source) if prepared else file_cues(source.cohort) for name, source in sources.items()}
    cue_names = [cue for cue in tables[REAL][0] if names or "name" not in cue]
    x, truth = [], []
    for name, rows in tables.items():
        x += [[row[cue] for cue in cue_names] for row in rows]
        truth += [name != REAL] * len(rows)
    return classify(np.array(x, float), np.array(truth), cue_names, seed)


def side_by_side(checks: dict[str, CueCheck]) -> Styler:
    """Checks for a notebook, a row each."""
    import pandas as pd

    rows = {
        name: {
            "balanced accuracy": check.accuracy, "p": check.p, "most telling trace": check.telling,
            "verdict": "no better than chance" if check.passes else "better than chance",
            "differ": f"{check.varied} of {check.of}",
            "real + synthetic": f"{check.real} + {check.synthetic}",
        }
        for name, check in checks.items()
    }  # fmt: skip
    return padded(pd.DataFrame.from_dict(rows, orient="index"))


def classify(x: np.ndarray, truth: np.ndarray, names: Sequence[str], seed: int = 0, shuffles: int = 99) -> CueCheck:
    """Judge a table of cues (N, K) with truth (N,), True for synthetic."""
    from sklearn.linear_model import RidgeClassifier
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold, permutation_test_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    real, synthetic, total = int((~truth).sum()), int(truth.sum()), x.shape[1]
    varies = np.ptp(x, 0) > 1e-9
    if not varies.any():
        return CueCheck(0.5, 1.0, "none differs", real, synthetic, 0, total)
    x, varying = x[:, varies], np.array(names)[varies]
    folds = StratifiedKFold(min(5, real, synthetic), shuffle=True, random_state=seed)
    model = make_pipeline(StandardScaler(), RidgeClassifier(class_weight="balanced"))
    accuracy, _, p = permutation_test_score(
        model, x, truth, cv=folds, n_permutations=shuffles, scoring="balanced_accuracy", random_state=seed
    )
    areas = [0.5 + abs(roc_auc_score(truth, column) - 0.5) for column in x.T]
    telling = f"{varying[np.argmax(areas)]} (AUC {max(areas):.2f})"
    return CueCheck(float(accuracy), float(p), telling, real, synthetic, x.shape[1], total)


def shown_cues(source: Stimuli) -> list[dict[str, float]]:
    """Cues of scans as raters get them, without any name."""
    volumes = source.cubes[(slice(None), 0, *scanned_slices(source.cohort.shape, source.size))].numpy()
    return [voxel_cues(volume) for volume in volumes]


def file_cues(cohort: Cohort) -> list[dict[str, float]]:
    """Cues of the files as they are, the name among them."""
    rows = []
    for scan in cohort:
        name = Path(scan.origin.path).name
        cues = {"length of the name": float(len(name)), "digits in the name": float(sum(map(str.isdigit, name)))}
        cues |= {"smallest value": float(scan.image.min()), "largest value": float(scan.image.max())}
        rows.append(cues | voxel_cues(scan.image / max(float(scan.image.max()), 1e-6)))
    return rows


def voxel_cues(volume: np.ndarray) -> dict[str, float]:
    """Traces in a volume (X, Y, Z) that no rater should need: range, air, padding, noise in the air."""
    x, y = (min(CORNER, extent // 4) for extent in volume.shape[:2])
    edges = [volume[a, b] for a in (slice(x), slice(-x, None)) for b in (slice(y), slice(-y, None))]
    air = np.concatenate([edge.ravel() for edge in edges])
    column = volume[:x, :y]
    flat = [np.ptp(part) < 1e-6 for part in (volume[..., 0], volume[..., -1], volume[0], volume[-1])]
    return {
        "darkest voxel": float(volume.min()),
        "brightest voxel": float(volume.max()),
        "share of white voxels": float((volume >= volume.max() - 1e-6).sum() / max((volume > 0).sum(), 1)),
        "brightness of the air": float(air.mean()),
        "brightest air": float(air.max()),
        "share of black air": float((air <= 0).mean()),
        "spread of the air": float(air.std()),
        "noise of the air": float(np.diff(column, axis=2).std()),
        "empty outer planes": float(sum(flat)),
        "unused grey levels": _gaps(volume),
    }


def _gaps(volume: np.ndarray) -> float:
    """Of 256 levels up to the brightest voxel the middle half, which every head fills: how many no voxel has.

    A file of few bits leaves gaps there; how dark a head gets inside is anatomy, and not counted.
    """
    levels = np.round(volume / max(float(volume.max()), 1e-6) * 255).astype(int)
    return float(128 - len(set(range(64, 192)) & set(np.unique(levels))))
