"""Labels for scans that have none, by a trained network, in the scans' own space."""

from __future__ import annotations

import os

import nibabel as nib

from labkit.data import bids
from labkit.data.cohort import Cohort
from labkit.data.file_template import FileTemplate
from labkit.data.labels import LABEL_NAMES
from labkit.data.sources import open_cohort
from labkit.evidence.segmentation.arms import ARMS
from labkit.evidence.segmentation.experiment import Experiment
from labkit.evidence.segmentation.network import inputs, probabilities
from labkit.evidence.segmentation.reader import find_network
from labkit.fields import known
from labkit.files import located, new_folder, progress_bar
from labkit.runs import Run, load_run


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
    run : Run, path or labkit.evidence.segmentation.experiment.Experiment
        The generator's run in which the experiment was done, or the experiment. Its data are not needed.
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
        That network is not there, the cohort is empty or on another grid.

    Examples
    --------
    >>> from labkit.evidence.segmentation.experiment import Experiment
    >>> experiment = Experiment(run, arms="r100", seeds=1).go_on()
    >>> labelled = labkit.segment(experiment, rats[:2], folder / "labelled")
    >>> labelled.labelled
    True
    """
    known("arm", arm, ARMS)
    if not len(cohort):
        raise ValueError("no scans to segment: the cohort is empty")
    generator = run.run if isinstance(run, Experiment) else run if isinstance(run, Run) else load_run(run)
    generator.file_template.check_grid(cohort)
    found = find_network(run.folder if isinstance(run, Experiment) else generator.path, arm, seed)
    if found is None:
        raise ValueError(
            f"{generator.path.name} has no network of arm {arm} with seed {seed}: do the experiment first "
            "(papermill book/05_segmentation.ipynb out.ipynb), or name another arm"
        )
    default = found.folder.parent / "segmented" / f"{cohort.fingerprint[:10]}-{arm}-seed{seed}"
    folder = located(out_dir) if out_dir else default
    if not folder.exists():
        images, box = inputs(cohort, found.plan)
        names = cohort.bids_labels()
        with new_folder(folder) as fresh:
            for index, scan in enumerate(progress_bar(cohort, "segmenting")):
                chances = probabilities([found.network], images[index : index + 1], box)
                labels = chances.argmax(1, keepdim=True).byte()[0]
                original = nib.Nifti1Image.from_image(nib.load(scan.origin.path))  # every voxel of the file
                path = bids.scan_path(names[scan.subject], scan.session, scan.suffix)
                bids.save_scan(fresh, path, original, scan.restore_labels(labels))
            bids.write_label_names(fresh, LABEL_NAMES)
            bids.write_description(fresh, f"{cohort.name}, segmented", "derivative", Arm=arm, Seed=seed,
                                   Run=generator.path.name, Scans=cohort.fingerprint)  # fmt: skip
    return open_cohort(folder, **FileTemplate.of([cohort[0]]).opening)
