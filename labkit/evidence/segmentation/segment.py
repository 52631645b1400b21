"""Labels for scans that have none, by a trained network or an atlas, in the scans' own space."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import nibabel as nib
from torch import Tensor

from labkit.data import bids
from labkit.data.cohort import Cohort
from labkit.data.file_template import FileTemplate
from labkit.data.labels import LABEL_NAMES, TISSUE_LABELS
from labkit.data.sources import open_cohort
from labkit.evidence.segmentation.arms import ARMS
from labkit.evidence.segmentation.experiment import Experiment
from labkit.evidence.segmentation.network import MODEL_FILE, inputs, probabilities
from labkit.evidence.segmentation.reader import find_network
from labkit.fields import known
from labkit.files import digest, located, progress_bar
from labkit.generation import fill
from labkit.runs import Run, load_run


def segment(
    run: Run | str | os.PathLike | Experiment,
    cohort: Cohort,
    out_dir: str | os.PathLike | None = None,
    arm: str | None = None,
    seed: int = 0,
) -> Cohort:
    """Label scans, and write them with ``_dseg.nii.gz`` beside each.

    An atlas that was trained on scans of which some had labels brings its template's along by registration, whatever
    their coding; so does the atlas of a generator that moves one, where there is no network. With other runs it is a
    network of the segmentation experiment that labels.

    Parameters
    ----------
    run : Run, path or labkit.evidence.segmentation.experiment.Experiment
        An atlas's run, or one that has an atlas of its own; the generator's run in which the experiment was done; or
        the experiment. Their data are not needed.
    cohort : Cohort
        Scans of any animals, on the study's grid or the run's.
    out_dir : path, optional
        New folder; default ``segmented/<fingerprint>`` in the run's or the experiment's folder. If it holds these
        scans with these labels, it is opened.
    arm, seed : str, int
        Which network; default the atlas of an atlas's run, ``r100`` of others.

    Returns
    -------
    Cohort
        The scans with labels, in the numbers of those that were learned from; files have the originals' grid and
        orientation.

    Raises
    ------
    ValueError
        That network is not there, the atlas has no labels, the cohort is empty or on another grid.
    FileExistsError
        `out_dir` is there and holds something else.

    Examples
    --------
    >>> from labkit.evidence.segmentation.experiment import Experiment
    >>> experiment = Experiment(run, arms="r100", seeds=1).go_on()
    >>> labelled = labkit.segment(experiment, rats[:2], folder / "labelled")
    >>> labelled.labelled
    True
    """
    if not len(cohort):
        raise ValueError("no scans to segment: the cohort is empty")
    generator = run.run if isinstance(run, Experiment) else run if isinstance(run, Run) else load_run(run)
    generator.file_template.check_grid(cohort)
    by_atlas = arm is None and not isinstance(run, Experiment)
    if by_atlas and generator.variant.name == "atlas":
        return _by_atlas(generator, cohort, out_dir)
    arm = known("arm", arm or "r100", ARMS)
    found = find_network(run.folder if isinstance(run, Experiment) else generator.path, arm, seed)
    if found is None and by_atlas and generator.own_atlas is not None:
        return _by_atlas(generator.own_atlas, cohort, out_dir, generator)
    if found is None:
        raise ValueError(
            f"{generator.path.name} has no network of arm {arm} with seed {seed}: do the experiment first "
            "(papermill book/05_segmentation.ipynb out.ipynb), or name another arm"
        )
    default = found.folder.parent / "segmented" / f"{cohort.fingerprint[:10]}-{arm}-seed{seed}"
    folder = located(out_dir) if out_dir else default
    made = {"Scans": cohort.fingerprint}
    made["LabelledBy"] = digest(found.folder / MODEL_FILE)

    def write(fresh: Path) -> None:
        images, box = inputs(cohort, found.plan)
        chances = (probabilities([found.network], image[None], box) for image in images)
        labels = (found.plan.maps(chance.max(1, keepdim=True).indices)[0] for chance in chances)
        names = LABEL_NAMES if found.plan.labels == TISSUE_LABELS else generator.file_template.label_names
        _write(fresh, cohort, labels, names, **made, Arm=arm, Seed=seed, Run=generator.path.name)

    fill(folder, made, write)
    return open_cohort(folder, **FileTemplate.of([cohort[0]]).opening)


def _by_atlas(run: Run, cohort: Cohort, out_dir: str | os.PathLike | None, home: Run | None = None) -> Cohort:
    """Labels by registration: each scan's warp, and what the template's labels become under it.

    `home` is the run that the atlas belongs to, if it is another's.
    """
    home = home or run
    if not run.generator().has_labels:
        raise ValueError(
            f"{home.path.name} was trained on scans without labels: put *_dseg.nii.gz beside some, and train it again"
        )
    default = home.path / "segmented" / f"{run.fingerprint[:8]}-{cohort.fingerprint[:10]}"
    folder = located(out_dir) if out_dir else default
    made = {"Scans": cohort.fingerprint, "LabelledBy": run.fingerprint}

    def write(fresh: Path) -> None:
        encoder, scans = run.encoder(), cohort.volumes(run.scale.size)
        labels = (map_ for part in scans.split(8) for map_ in encoder.labels(part))
        _write(fresh, cohort, labels, run.file_template.label_names, **made, Run=home.path.name)

    fill(folder, made, write)
    return open_cohort(folder, **FileTemplate.of([cohort[0]]).opening)


def _write(fresh: Path, cohort: Cohort, labels: Iterable[Tensor], label_names: dict[int, str], **about: Any) -> None:
    """The cohort's own files with label maps (1, S, S, S) beside them."""
    names = cohort.bids_labels()
    for scan, cube in zip(progress_bar(cohort, "segmenting"), labels, strict=True):
        original = nib.Nifti1Image.from_image(nib.load(scan.origin.path))  # every voxel of the file
        path = bids.scan_path(names[scan.subject], scan.session, scan.suffix)
        bids.save_scan(fresh, path, original, scan.restore_labels(cube))
    if label_names:
        bids.write_label_names(fresh, {0: "background", **label_names})
    cohort.write_about(fresh, f"{cohort.name}, segmented", "derivative", **about)
