"""Labels for scans that have none, by a trained network, in the scans' own space."""

from __future__ import annotations

import os
from pathlib import Path

import nibabel as nib

from labkit import bids
from labkit.bids import new_folder
from labkit.cohort import Cohort, Scan
from labkit.fields import known
from labkit.likeness import Likeness
from labkit.progress import progress_bar
from labkit.runs import Run, load_run
from labkit.segmentation.arms import ARMS
from labkit.segmentation.experiment import Experiment
from labkit.segmentation.network import inputs, probabilities
from labkit.simulate.anatomy import LABEL_NAMES
from labkit.sources import open_cohort


def segment(
    run: Run | str | os.PathLike | Experiment,
    cohort: Cohort,
    out_dir: str | os.PathLike | None = None,
    arm: str = "r100",
    seed: int = 0,
) -> Cohort:
    """Label scans with a network of the segmentation experiment, and write them with ``_dseg.nii.gz`` beside each.

    Parameters
    ----------
    run : Run, path or labkit.segmentation.experiment.Experiment
        The generator's run in which the experiment was done, or the experiment.
    cohort : Cohort
        Scans of any animals, on the study's grid or the run's.
    out_dir : path, optional
        New folder; default ``segmented/<fingerprint>`` in the experiment's folder. If it is there, it is opened.
    arm, seed : str, int
        Which network.

    Returns
    -------
    Cohort
        The scans with labels 1 CSF, 2 grey matter, 3 white matter; files have the originals' grid and orientation.

    Raises
    ------
    ValueError
        That network is not trained, the cohort is empty or on another grid.
    """
    known("arm", arm, ARMS)
    experiment = run if isinstance(run, Experiment) else Experiment(run if isinstance(run, Run) else load_run(run))
    if not len(cohort):
        raise ValueError("no scans to segment: the cohort is empty")
    experiment.run.likeness.check_grid(cohort)
    network = experiment.network(arm, seed)
    default = experiment.folder / "segmented" / f"{cohort.fingerprint[:10]}-{arm}-seed{seed}"
    folder = Path(out_dir).expanduser() if out_dir else default
    if not folder.exists():
        images, box = inputs(cohort, experiment.plan)
        names = cohort.bids_labels()
        with new_folder(folder) as fresh:
            for index, scan in enumerate(progress_bar(cohort, "segmenting")):
                chances = probabilities([network], images[index : index + 1], box)
                labels = chances.argmax(1, keepdim=True).byte()[0]
                path = bids.scan_path(names[scan.subject], scan.session, scan.suffix)
                bids.save_scan(fresh, path, _as_it_was(scan), scan.restore_labels(labels))
            bids.write_label_names(fresh, LABEL_NAMES)
            bids.write_description(fresh, f"{cohort.name}, segmented", "derivative", Arm=arm, Seed=seed,
                                   Run=experiment.run.path.name, Scans=cohort.fingerprint)  # fmt: skip
    return open_cohort(folder, **Likeness.of([cohort[0]]).opening)


def _as_it_was(scan: Scan) -> nib.Nifti1Image:
    """The scan's file again, every voxel of it."""
    return nib.Nifti1Image.from_image(nib.load(scan.origin.path))
