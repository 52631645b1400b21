import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

import labkit
from labkit import CohortError, generation
from labkit.data import volumes
from labkit.data.cohort import Cohort
from labkit.data.file_template import FileTemplate, without_identity, written_range
from labkit.data.volumes import resize
from labkit.evidence.sample import Sample
from labkit.generation import decode, draw_codes, encode, generate, interpolate, reconstruct, slerp
from labkit.runs import RunError, load_run
from labkit.tests.rats import ellipsoids
from labkit.tests.test_training import FAST
from labkit.training import train


@pytest.fixture(scope="module")
def rats(tmp_path_factory):
    return ellipsoids(tmp_path_factory.mktemp("cohort") / "rats")


@pytest.fixture(scope="module")
def run(rats, tmp_path_factory):
    return train("sigmarat2", rats, "smoke", tmp_path_factory.mktemp("runs") / "run", **FAST)


def files(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_synthetic_scans_open_like_the_scans_they_stand_for(rats, run, tmp_path):
    made = generate(run, 20, tmp_path / "made")
    original = nib.load(rats[0].origin.path)
    paths = sorted((tmp_path / "made").rglob("*.nii.gz"))
    assert len(paths) == len(made) == 20
    for path in paths:
        image = nib.load(path)
        assert image.shape == original.shape and image.header.get_zooms() == original.header.get_zooms()
        assert np.array_equal(image.affine, original.affine)
        assert nib.aff2axcodes(image.affine) == nib.aff2axcodes(original.affine)
        assert image.header.get_xyzt_units() == original.header.get_xyzt_units()
        assert image.get_data_dtype() == original.get_data_dtype()
        assert b"synthetic" in bytes(image.header["descrip"]) and "desc-synthetic" in path.name
    assert made.shape == rats.shape and len(set(made.digests)) == 20


def test_a_generated_scan_keeps_the_scale_that_its_generator_gave_it(run, tmp_path):
    made = generate(run, 3, tmp_path / "made")
    wanted = resize(decode(run, draw_codes(run, 3, 0), "random"), 64)
    sample = Sample.of(made)
    inside = (..., *sample.slices)
    assert torch.allclose(sample.cubes[inside] * 2 - 1, wanted[inside], atol=3e-3)  # rounded to the file's integers
    assert (made.volumes(64) - wanted)[inside].abs().max() > 0.05  # each scan's own range stretches it
    for path in (tmp_path / "made").rglob("sub-*.json"):
        path.unlink()
    assert written_range(made[0]) == (made[0].origin.low, made[0].origin.high)


def test_the_intensity_range_is_one_of_the_training_scans(rats, run):
    train_part = run.train_part(rats)
    ends = torch.full((1, 64, 64, 64), -1.0)
    ends[0, 30, 30, 30] = 1
    rng = np.random.default_rng(0)
    ranges = set()
    for _ in range(30):
        data = np.asarray(run.file_template.image(ends, rng).dataobj)
        ranges.add((float(data.min()), float(data.max())))
    assert ranges <= {(scan.origin.low, scan.origin.high) for scan in train_part} and len(ranges) > 2
    middle = np.asarray(run.file_template.image(torch.zeros(1, 64, 64, 64), rng).dataobj)
    assert middle.min() == middle.max() and any(abs(middle.max() - sum(r) / 2) <= 0.5 for r in ranges)  # not stretched


def test_one_seed_gives_the_same_bytes_and_another_seed_others(run, tmp_path):
    for name, n, seed in (("a", 5, 3), ("b", 5, 3), ("more", 11, 3), ("other", 5, 4)):
        generate(run, n, tmp_path / name, seed=seed)
    a, b, more, other = (files(tmp_path / name) for name in ("a", "b", "more", "other"))
    assert a == b
    scans = {name for name in a if name.endswith((".nii.gz", "boldref.json", "T2w.json"))}
    assert len(scans) == 10 and all(more[name] == a[name] for name in scans)  # scan i whatever n
    assert all(other[name] != a[name] for name in scans)


def test_the_code_beside_a_scan_makes_it_again(run, tmp_path):
    folder = generate(run, 3, tmp_path / "made", seed=5).folder
    sidecars = sorted(folder.rglob("sub-*.json"))
    codes = torch.tensor([json.loads(path.read_text())["Code"] for path in sidecars])
    assert torch.equal(codes, draw_codes(run, 3, 5))
    facts = json.loads(sidecars[1].read_text())
    assert facts["Synthetic"] is True and facts["Index"] == 1 and facts["RunFingerprint"] == run.fingerprint


def test_the_data_set_says_that_it_is_synthetic(run, tmp_path):
    folder = generate(run, 2, tmp_path / "made").folder
    description = json.loads((folder / "dataset_description.json").read_text())
    assert description["DatasetType"] == "derivative" and description["Synthetic"] is True
    assert description["GeneratedBy"][0]["Name"] == "labkit"
    assert (
        "SYNTHETIC" in (folder / "README.md").read_text() and "synthetic" in (folder / "participants.tsv").read_text()
    )


def test_nothing_of_the_animal_is_left(tmp_path):
    folder = tmp_path / "named"
    rats = ellipsoids(folder)
    for path in folder.glob("*_T2w.nii.gz"):
        image = nib.load(path)
        image.header["descrip"], image.header["db_name"], image.header["aux_file"] = b"Rattie 7", b"Rattie", b"Rattie"
        image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"Rattie of cage 9"))
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj), image.affine, image.header), path)
    rats = labkit.open_cohort(folder)
    run = train("sigmarat2", rats, "smoke", tmp_path / "run", **FAST)
    made = generate(run, 2, tmp_path / "made", like=rats).folder
    for path in made.rglob("*"):
        if path.is_file():
            content = nib.load(path).header.binaryblock if path.name.endswith(".gz") else path.read_bytes()
            assert b"Rattie" not in content and str(folder).encode() not in content
            if path.name.endswith(".gz"):
                assert not nib.load(path).header.extensions
    assert b"Rattie" not in (run.path / "file_template.json").read_bytes()


def test_a_finished_folder_is_opened_and_another_is_refused(run, tmp_path):
    generate(run, 2, tmp_path / "made")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "made").rglob("*")}
    assert len(generate(run, 2, tmp_path / "made")) == 2
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "made").rglob("*")}
    with pytest.raises(FileExistsError, match="seed: 0 there, 1 asked"):
        generate(run, 2, tmp_path / "made", seed=1)


@pytest.mark.parametrize("change", ["deleted", "replaced", "added", "sidecar"])
def test_a_made_folder_that_was_changed_since_is_not_taken_for_what_was_made(run, rats, tmp_path, change):
    made = generate(run, 3, tmp_path / "made")
    path = Path(made[1].origin.path)
    if change == "deleted":
        path.unlink()
    elif change == "replaced":
        shutil.copy(rats[0].origin.path, path)
    elif change == "added":
        shutil.copy(path, path.with_name("sub-mine_T2w.nii.gz"))
    else:
        path.with_name(path.name.replace(".nii.gz", ".json")).write_text("{}")
    words = {"deleted": "is missing", "added": "sub-mine_T2w.nii.gz was not made with"}.get(change, "another content")
    with pytest.raises(FileExistsError, match=f"holds something else:\n.*{words}(.|\n)*remove that folder"):
        generate(run, 3, tmp_path / "made")
    with pytest.raises(FileExistsError, match="seed: 0 there, 1 asked"):
        generate(run, 3, tmp_path / "made", seed=1)


def test_sums_of_a_made_folder_are_of_all_its_files_but_the_card_which_is_renewed(run, rats, tmp_path):
    for made in (generate(run, 2, tmp_path / "made"), reconstruct(run, rats[:2], tmp_path / "back")):
        lines = dict(line.split("  ")[::-1] for line in (made.folder / "SHA256SUMS").read_text().splitlines())
        assert lines == {
            name: sum_ for name, sum_ in files(made.folder).items() if name not in ("SHA256SUMS", "README.md")
        }
    (tmp_path / "made" / "README.md").write_text("renewed")
    assert len(generate(run, 2, tmp_path / "made")) == 2


def test_of_several_that_generate_the_same_at_once_each_gets_it(run, tmp_path, monkeypatch):
    real, others = generation.seal, []

    def slow(fresh):  # while it is about to finish, another one makes the folder
        if not others:
            others.append(fresh)
            generate(run, 2, tmp_path / "made")
        real(fresh)

    monkeypatch.setattr(generation, "seal", slow)
    assert len(generate(run, 2, tmp_path / "made")) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


@pytest.mark.parametrize("text", ["x/../../../out", "..", "T2w\n", "<script>"])
def test_a_run_from_others_cannot_make_files_be_written_elsewhere(run, tmp_path, text):
    theirs = tmp_path / "deep" / "down" / "run"
    shutil.copytree(run.path, theirs, ignore=shutil.ignore_patterns("synthetic", "reconstructed"))
    file = theirs / "file_template.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"suffix": text}))
    before = files(tmp_path)
    with pytest.raises(ValueError, match="cannot be a part of a file's name"):
        generate(load_run(theirs), 2)
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    "file, change, message",
    [
        (
            "config.json",
            {"scale": {"base_channels": 100_000}},
            "base_channels is 100000, allowed is a whole number from 1",
        ),
        ("config.json", {"scale": {"base_channels": 512}}, "does not hold the networks that config"),
        ("config.json", {"variant": {"latent_dim": 10**9}}, "latent_dim is 1000000000, allowed is a whole number"),
        ("file_template.json", {"shape": [100_000] * 3}, "three sides of 2 to 2048"),
        ("file_template.json", {"origin": {"shape": [100_000] * 3}}, "three sides of 2 to 2048"),
    ],
)
def test_sizes_that_somebody_sent_are_bounded_before_memory_is_asked_for(
    run, tmp_path, monkeypatch, file, change, message
):
    theirs = tmp_path / "run"
    shutil.copytree(run.path, theirs, ignore=shutil.ignore_patterns("synthetic", "reconstructed"))
    content = json.loads((theirs / file).read_text())
    for key, value in change.items():
        content[key] = content[key] | value if isinstance(value, dict) else value
    (theirs / file).write_text(json.dumps(content))
    before = files(theirs)
    with pytest.raises((ValueError, RunError), match=message):
        generate(load_run(theirs), 2)
    assert files(theirs) == before


def test_a_recipe_for_other_rats_than_the_run_had_is_refused_before_they_are_made(run, tmp_path):
    theirs = tmp_path / "run"
    shutil.copytree(run.path, theirs, ignore=shutil.ignore_patterns("synthetic", "reconstructed"))
    config = json.loads((theirs / "config.json").read_text())
    config["cohort"]["recipe"] = {"source": "phantom", "n": 5000, "seed": 3}
    (theirs / "config.json").write_text(json.dumps(config))
    with pytest.raises(RunError, match="contradicts itself: 7 scans in the cohort, n=5000 in its recipe, 7 trained on"):
        load_run(theirs).cohort()
    with pytest.raises(CohortError, match="n=100000: at most 10000 rats are simulated"):
        labkit.open_cohort("phantom", n=100_000)


def test_an_interrupted_generation_leaves_no_folder(run, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(generation.nifti, "save", full)
    with pytest.raises(OSError):
        generate(run, 2, tmp_path / "made")
    assert list(tmp_path.iterdir()) == []


def test_scans_can_be_like_another_labs(run, tmp_path):
    turned = tmp_path / "other" / "rat1_T2w.nii"
    turned.parent.mkdir()
    rng = np.random.default_rng(0)
    data = np.pad(rng.uniform(50, 90, (20, 30, 24)), 6).astype(np.float32)
    nib.save(nib.Nifti1Image(data, np.diag([-0.6, 0.7, 0.6, 1])), turned)
    other = labkit.open_cohort(turned.parent)
    made = generate(run, 1, tmp_path / "made", like=other[0])
    image = nib.load(next(made.folder.rglob("*.nii.gz")))
    assert image.shape == data.shape and nib.aff2axcodes(image.affine) == ("L", "A", "S")
    assert image.get_data_dtype() == np.float32 and np.array_equal(image.affine, nib.load(turned).affine)


def test_a_run_without_weights_says_so(run, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_text((run.path / "config.json").read_text())
    with pytest.raises(RunError, match="train it first"):
        generate(tmp_path / "empty", 2)
    with pytest.raises(ValueError, match="n=0"):
        generate(run, 0)
    with pytest.raises(ValueError, match="have the shape"):
        decode(run, torch.zeros(2, 3))


def test_reconstructions_keep_their_animals_names_and_grids(rats, run, tmp_path):
    held_out = run.held_out(rats)
    back = reconstruct(run, held_out, tmp_path / "back")
    assert back.subjects == held_out.subjects
    image = nib.load(sorted((tmp_path / "back").rglob("*.nii.gz"))[0])
    assert image.shape == nib.load(held_out[0].origin.path).shape and b"reconstructed" in bytes(image.header["descrip"])
    expected = run.generator(codes="encoded")(run.encoder()(held_out.volumes(16)))
    assert torch.allclose(decode(run, encode(run, held_out, "cpu"), "encoded", "cpu"), expected, atol=1e-5)


def test_a_run_opens_its_cohort_again_and_notices_a_change(rats, run, tmp_path):
    assert run.cohort().fingerprint == rats.fingerprint
    assert set(run.train_part(rats).subjects) & set(run.held_out(rats).subjects) == set()
    part = train("sigmarat2", rats.subset([0, 2, 3]), "smoke", tmp_path / "part", **FAST)
    with pytest.raises(RunError, match="chosen by hand"):
        part.cohort()


@pytest.mark.parametrize(
    ("source", "levels", "said"),
    [("phantom", 1, None), ("phantom", 9, "another version of labkit"), ("folder", 1, "changed since")],
)
def test_the_same_recipe_with_other_voxels_is_a_runs_own_only_where_a_simulator_rounds(
    source, levels, said, rats, run, tmp_path
):
    recipe = rats.recipe | {"source": source}
    shutil.copytree(run.path, tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    config["cohort"]["recipe"] = recipe
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    moved = [
        dataclasses.replace(scan, digest=f"{place:064d}",
                            origin=dataclasses.replace(scan.origin, high=scan.origin.high + levels))
        for place, scan in enumerate(rats)
    ]  # fmt: skip
    # the run is older than an option of opening that nobody asks for
    opened = Cohort(rats.name, rats.folder, moved, recipe=recipe | {"later": None})
    other = load_run(tmp_path / "run")
    if said:
        with pytest.raises(RunError, match=said):
            other.held_out(opened)
        return
    assert other.held_out(opened).subjects == run.held_out(rats).subjects


def test_the_newest_run_is_the_default(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError, match="no trained run"):
        load_run()
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "one").symlink_to(run.path)
    assert load_run().fingerprint == run.fingerprint


def test_an_arc_keeps_the_length_that_a_straight_line_loses():
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 500, generator=g)
    way = slerp(a, b, torch.linspace(0, 1, 5))
    assert torch.allclose(way[0], a, atol=1e-4) and torch.allclose(way[-1], b, atol=1e-4)
    assert torch.allclose(way[2].norm(), (a.norm() + b.norm()) / 2, rtol=1e-4)
    assert ((a + b) / 2).norm() < 0.8 * way[2].norm()
    quarter = slerp(torch.tensor([1.0, 0]), torch.tensor([0, 2.0]), torch.tensor([0.5]))[0]
    assert torch.allclose(quarter, torch.tensor([1.5, 1.5]) / 2**0.5)
    assert torch.allclose(slerp(a, a, torch.tensor([0.3]))[0], a)


def test_an_interpolation_begins_and_ends_with_its_rats(run):
    a, b = draw_codes(run, 2)
    way, codes = interpolate(run, a, b, 4)
    ends = decode(run, torch.stack([a, b]))
    assert way.shape == (4, 1, 16, 16, 16) and codes.shape == (4, run.variant.latent_dim)
    assert torch.allclose(way[0], ends[0], atol=1e-5) and torch.allclose(way[3], ends[1], atol=1e-5)


def test_a_likeness_survives_json(rats):
    file_template = FileTemplate.of(rats)
    assert FileTemplate.from_json(json.loads(json.dumps(file_template.to_json()))) == file_template
    assert file_template.grid == "study" and file_template.origin.path == ""
    assert without_identity(nib.Nifti2Header())["descrip"].item().startswith(b"synthetic")


def test_a_generator_that_makes_one_rat_is_seen_and_not_refused(rats, run, tmp_path, monkeypatch):
    one = draw_codes(run, 1)
    monkeypatch.setattr(generation, "draw_codes", lambda run, n, *_, **__: one.expand(n, -1))
    same = generate(run, 4, tmp_path / "same", like=rats[0])
    assert len(same) == 4 and len(set(same.digests)) == 1
    with pytest.raises(labkit.CohortError, match="duplicate"):
        labkit.open_cohort(tmp_path / "same")  # elsewhere twins are a fault


def test_truncation_draws_shorter_codes_where_g_feels_them_and_is_refused_where_not(run, rats, tmp_path):
    adni = train("adni", rats, "smoke", tmp_path / "adni", **FAST)
    folder = generate(adni, 2, tmp_path / "made", truncation=0.5).folder
    codes = torch.tensor([json.loads(path.read_text())["Code"] for path in sorted(folder.rglob("sub-*.json"))])
    assert torch.equal(codes, draw_codes(adni, 2) / 2)
    for of, apart in ((adni, True), (run, False)):
        near = (decode(of, draw_codes(of, 2)) - decode(of, draw_codes(of, 2) / 2)).abs().mean()
        assert (near > 1e-3) == apart == of.variant.feels_length
    with pytest.raises(ValueError, match="a code is a direction"):
        generate(run, 2, tmp_path / "other", truncation=0.5)
    assert not (tmp_path / "other").exists()


def test_a_generator_that_makes_nothing_says_so_and_leaves_nothing(run, tmp_path, monkeypatch):
    monkeypatch.setattr(generation, "draw_codes", lambda run, n, *_, **__: torch.zeros(n, run.variant.latent_dim))
    with pytest.raises(ValueError, match="everywhere of code 0"):  # hardly trained, it makes nothing of zeros
        generate(run, 2, tmp_path / "made")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"seed": -1}, "seed=-1"),
        ({"seed": 1.5}, "seed=1.5"),
        ({"truncation": float("nan")}, "truncation=nan"),
        ({"truncation": "1"}, "truncation='1'"),
        ({"like": "folder"}, "like='folder'"),
        ({"n": 2.5}, "n=2.5"),
    ],
)
def test_what_cannot_be_generated_is_refused_before_any_work(run, tmp_path, wrong, message):
    with pytest.raises(ValueError, match=message):
        generate(run, **{"n": 2, "out_dir": tmp_path / "made"} | wrong)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("affine", "told"),
    [
        (np.diag([3.75, 3.75, 5, 1]), {"axes": "RSA", "voxel_mm": (0.375, 0.375, 0.5)}),
        (np.diag([0.375, 0.375, 0.5, 1]), {"axes": "RSA"}),
    ],
)
def test_headers_known_to_be_wrong_stay_so_and_are_read_rightly(rats, tmp_path, affine, told):
    folder = tmp_path / "wrong"
    folder.mkdir()
    for index, scan in enumerate(rats):
        nib.save(nib.Nifti1Image(scan.image.astype(np.int16), affine), folder / f"rat{index}.nii.gz")
    cohort = labkit.open_cohort(folder, **told)
    run = train("sigmarat2", cohort, "smoke", tmp_path / "run", **FAST)
    made = generate(run, 3)
    assert made.shape == cohort.shape and not made[0].origin.resampled
    assert np.allclose(made[0].affine, cohort[0].affine)
    assert np.allclose(nib.load(made[0].origin.path).affine, nib.load(cohort[0].origin.path).affine)
    assert reconstruct(run, cohort[:2])[0].zooms == cohort[0].zooms


def test_a_run_may_be_renamed(run, tmp_path):
    shutil.copytree(run.path, tmp_path / "one", ignore=shutil.ignore_patterns("synthetic", "reconstructed"))
    first = generate(tmp_path / "one", 2)
    (tmp_path / "one").rename(tmp_path / "two")
    assert generate(tmp_path / "two", 2).fingerprint == first.fingerprint


def test_scans_on_another_grid_are_refused(run, tmp_path):
    (tmp_path / "other").mkdir()
    data = np.random.default_rng(0).uniform(50, 90, (80, 60, 80)).astype(np.float32)
    nib.save(nib.Nifti1Image(data, np.diag([0.3, 0.3, 0.3, 1])), tmp_path / "other" / "a_T2w.nii")
    native = labkit.open_cohort(tmp_path / "other", grid="native")
    for work in (lambda: encode(run, native), lambda: generate(run, 1, tmp_path / "x", like=native)):
        with pytest.raises(ValueError, match="grid='study'"):
            work()


def test_scans_on_another_grid_than_their_files_are_written_as_they_were_made(tmp_path):
    """A finer file would be an interpolation, and reading it again a blur."""
    rng = np.random.default_rng(0)
    for index in range(6):
        data = np.pad(rng.uniform(500, 900, (30, 40, 24)), 4).astype(np.float32)
        nib.save(nib.Nifti1Image(data, np.diag([-0.4, 0.4, 0.6, 1])), tmp_path / f"rat{index}_T2w.nii")
    cohort = labkit.open_cohort(tmp_path, grid="24x20x28@0.7")
    own = train("sigmarat2", cohort, "smoke", tmp_path / "run", n_train=4, size=32, **FAST)
    made = generate(own, 2)
    image = nib.load(next(made.folder.rglob("*.nii.gz")))
    assert image.shape == (24, 28, 20) and nib.aff2axcodes(image.affine) == ("L", "A", "S")
    assert np.allclose(image.header.get_zooms(), 0.7) and np.allclose(image.get_sform(), image.get_qform(), atol=1e-4)
    assert made.shape == cohort.shape and np.allclose(made[0].affine, cohort[0].affine, atol=1e-3)
    volume = decode(own, draw_codes(own, 2, 0))[0]
    low, high = json.loads(next(made.folder.rglob("sub*00000*.json")).read_text())["IntensityRange"]
    cube = resize(volume[None], volumes.cube_side(cohort.shape))
    kept = volumes.crop_from_cube(volumes.from_unit_range(cube, low, high), cohort.shape)[0].numpy()
    assert np.allclose(made[0].image, kept, atol=1e-3 * high)
    back = reconstruct(own, cohort[:2])
    assert np.allclose(back[1].affine, cohort[1].affine, atol=1e-3) and not back[0].origin.resampled


@pytest.mark.parametrize("types, expected", [
    ((np.int16, np.float32), np.float32), ((np.uint8, np.int16), np.int16), ((np.int16, np.uint16), np.int32),
    ((np.uint8, np.uint8), np.uint8), ((np.float64, np.float64), np.float64),
])  # fmt: skip
def test_what_is_written_can_hold_the_values_of_every_scan(tmp_path, types, expected):
    rng = np.random.default_rng(0)
    for index in range(6):
        kind = types[index % 2]
        top = 1.0 if np.issubdtype(kind, np.floating) else min(np.iinfo(kind).max, 60_000)
        data = (np.pad(rng.uniform(0.2, 1, (30, 40, 24)), 4) * top).astype(kind)
        nib.save(nib.Nifti1Image(data, np.diag([0.5, 0.5, 0.5, 1])), tmp_path / f"rat{index}_T2w.nii")
    cohort = labkit.open_cohort(tmp_path)
    own = train("sigmarat2", cohort, "smoke", tmp_path / "run", n_train=4, **FAST | {"iterations": 1})
    for made in (generate(own, 6), generate(own, 6, like=cohort)):
        for path in made.folder.rglob("*.nii.gz"):
            image = nib.load(path)
            low, high = json.loads(path.with_name(path.name.replace(".nii.gz", ".json")).read_text())["IntensityRange"]
            values = image.get_fdata()
            assert image.get_data_dtype() == expected and values.max() <= high * 1.001
            assert len(np.unique(values)) > 20 and np.ptp(values) > 0.02 * (high - low)
