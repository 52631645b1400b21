"""The published mice as a cohort: what their labels mean, and how a made-up repository of two becomes a data set."""

import csv
import hashlib
import json
import shutil

import nibabel as nib
import numpy as np
import pytest

from labkit import CohortError, open_cohort
from labkit.data import manifest, mice


@pytest.fixture
def own_data_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("LABKIT_DATA", str(tmp_path / "data"))


@pytest.fixture
def two_mice(tmp_path, monkeypatch, own_data_folder):
    """A mirror and a manifest with a wild type and an untreated animal, small brains of two structures."""
    mirror, folder, entries = tmp_path / "mirror", tmp_path / "manifests", []
    folder.mkdir()
    text = (manifest.manifest_folder() / "mice.toml").read_text(encoding="utf-8")
    for number, group in ((10, "UT"), (9, "WT")):
        labels = np.zeros((28, 32, 20), np.float32)
        labels[8:20, 2 : 30 - number % 9, 5:15] = 14
        labels[12:16, 10:20, 8:12] = 10
        image = np.random.default_rng(number).uniform(500, 900, labels.shape).astype(np.float32) * (labels > 0)
        for kind, array in (("image", image), ("label", labels)):
            path = mirror / "mice" / kind / f"tg4510_tp3_{number}_20130523_{group}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(array, np.diag([0.6, 0.6, 0.6, 1])), path)
            sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
            entries.append(f'[[files]]\nname = "{kind}/{path.name}"\nurl = "{kind}/{path.name}"\nsha256 = "{sha256}"\n'
                           f'bytes = {path.stat().st_size}\ndescription = "made up"\n')  # fmt: skip
    (folder / "mice.toml").write_text(text.partition("[[files]]")[0] + "\n".join(entries), encoding="utf-8")
    monkeypatch.setattr(manifest, "manifest_folder", lambda: folder)
    monkeypatch.setenv("LABKIT_MIRROR", str(mirror))
    return mirror


def test_every_structure_is_a_tissue_and_three_have_one_label_for_both_sides():
    names, found = mice.side_names(), mice.tissues(np.arange(41))
    assert len(names) == 38 and {22, 30, 37}.isdisjoint(names) and found.dtype == np.uint8
    assert {names[label] for label in names if found[label] == 1} == {"ventricles"}
    assert {label for label in names if found[label] == 3} == {2, 4, 6, 20, 24, 26, 40}
    assert found[0] == 0 and set(found[1:]) == {1, 2, 3}
    assert all(found[label] == found[label + 20] for label in range(1, 21))


def test_published_files_become_a_data_set_with_groups_tissues_and_structures(two_mice):
    cohort = open_cohort("mice", grid="native")
    assert cohort.subjects == ("09", "10") and {scan.suffix for scan in cohort} == {"T2w"} and cohort.labelled
    with (cohort.folder / "participants.tsv").open(encoding="utf-8") as lines:
        rows = {row["participant_id"]: row for row in csv.DictReader(lines, delimiter="\t")}
    assert {name: row["group"] for name, row in rows.items()} == {"sub-09": "WT", "sub-10": "UT"}
    assert set(np.unique(cohort[0].labels)) == {0, 1, 2}
    published = two_mice / "mice" / "image" / rows["sub-10"]["file"]
    assert (cohort.folder / "sub-10/anat/sub-10_T2w.nii.gz").read_bytes() == published.read_bytes()
    said = json.loads((cohort.folder / "dataset_description.json").read_text())
    assert said["License"].startswith("GPL-3.0") and "Ma D" in said["ReferencesAndLinks"][0] and "Mice" in said["Note"]
    assert said["SourceDatasets"][0]["URL"].startswith("https://raw.githubusercontent.com/dama-lab/mouse-brain-atlas/")
    assert "14\tneocortex, right" in (cohort.folder / "desc-sides_dseg.tsv").read_text()
    assert cohort.groups == {"09": "WT", "10": "UT"} and cohort[:1].write(two_mice / "copy")
    assert open_cohort(two_mice / "copy", grid="native").groups == {"09": "WT"}


def test_the_mice_come_on_a_grid_of_their_own_and_with_the_labels_that_are_asked_for(two_mice):
    tissue, structures = open_cohort("mice"), open_cohort("mice", labels="structures")
    assert tissue.shape == (56, 40, 64) and tissue[0].zooms == (0.3, 0.3, 0.3)
    assert set(np.unique(structures[0].labels)) == {0, 10, 14}
    assert structures.label_names == {10: "ventricles", 14: "neocortex"} and tissue.label_names[1].startswith("cereb")
    assert np.array_equal(structures[0].labels > 0, tissue[0].labels > 0)
    assert structures.recipe["labels"] == "structures" and "animals" in repr(tissue)
    assert open_cohort("mice", grid="study").shape == (64, 64, 40)


def test_labels_that_are_not_there_are_named(two_mice):
    with pytest.raises(CohortError, match=r"labels='strctures': no label maps \*_desc-strctures_dseg"):
        open_cohort("mice", labels="strctures")


def test_mice_once_written_need_no_mirror_and_no_network(two_mice, monkeypatch):
    folder = open_cohort("mice").folder
    shutil.rmtree(two_mice / "mice")
    shutil.rmtree(manifest.data_folder() / "mice")
    monkeypatch.setattr(manifest, "_download", lambda url, path: pytest.fail(f"asked for {url}"))
    assert open_cohort("mice", n=1).folder == folder


def test_the_groups_of_the_published_mice_differ_in_brain_volume_as_published(mirror, own_data_folder):
    if not (mirror / "mice").is_dir():
        pytest.skip("needs the published mice: set LABKIT_MIRROR to a folder that holds mice/")
    native, cohort = open_cohort("mice", grid="native", labels="sides"), open_cohort("mice")
    with (cohort.folder / "participants.tsv").open(encoding="utf-8") as lines:
        groups = [row["group"] for row in csv.DictReader(lines, delimiter="\t")]
    volumes = np.array([[(scan.labels > 0).sum() * np.prod(scan.zooms) for scan in both] for both in (native, cohort)])
    for group, count, low, high in (("WT", 8, 606, 671), ("UT", 10, 505, 554), ("TT", 7, 525, 575)):
        mine = volumes[:, [name == group for name in groups]]
        assert mine.shape[1] == count and mine[0].min().round() == low and mine[0].max().round() == high
        assert mine[1] == pytest.approx(mine[0], rel=0.015)  # on half the voxels along each axis
    assert set(np.unique(native[0].labels)) == set(mice.side_names())
    few = (open_cohort("mice", labels="structures")[0].labels > 0) != (cohort[0].labels > 0)
    assert few.mean() < 0.002  # where tissues share a voxel
