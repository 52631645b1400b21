import numpy as np
import pytest
import torch

import labkit
from labkit import codes, figures, volumes
from labkit.segmentation.experiment import Experiment
from labkit.segmentation.network import PLANS
from labkit.tests.brains import onions
from labkit.tests.rats import ellipsoids
from labkit.tests.test_training import FAST
from labkit.training import train


@pytest.fixture(scope="module")
def rats(tmp_path_factory):
    return onions(tmp_path_factory.mktemp("joint") / "rats", n=8)


@pytest.fixture(scope="module")
def run(rats, tmp_path_factory):
    return train(
        "sigmarat2", rats, "smoke", tmp_path_factory.mktemp("runs") / "run", n_train=6, image_channels=4, **FAST
    )


def test_tissues_become_channels_and_labels_again(rats):
    both = rats.channels(32, 4)
    assert both.shape == (8, 4, 32, 32, 32) and set(both[:, 1:].unique().tolist()) == {-1.0, 1.0}
    assert torch.equal(both[:, :1], rats.volumes(32))
    assert torch.equal(volumes.tissue_labels(both), rats.label_maps(32))
    assert torch.equal(rats.channels(32, 1), rats.volumes(32))


def test_a_run_of_both_makes_scans_with_labels(rats, run, tmp_path):
    made = labkit.generate(run, 3, tmp_path / "made")
    images, labels = codes.decode_with_tissues(run, codes.draw_codes(run, 3))
    assert images.shape == labels.shape == (3, 1, 16, 16, 16) and labels.dtype == torch.uint8
    assert torch.equal(codes.decode(run, codes.draw_codes(run, 3)), images)
    assert run.generator()(torch.randn(2, 500)).shape == (2, 1, 16, 16, 16)
    for scan, label in zip(made, labels, strict=True):
        expected = volumes.crop_from_cube(volumes.resize_labels(label[None], 64), rats.shape)[0].numpy()
        found = np.zeros(rats.shape, np.uint8) if scan.labels is None else np.asarray(scan.labels)
        assert np.array_equal(found, expected)


def test_its_encoder_takes_scans_with_their_labels(rats, run):
    back = labkit.reconstruct(run, run.held_out(rats))
    assert len(back) == 2 and labkit.encode(run, rats).shape == (8, 500)
    assert np.isfinite(run.losses["rec_mse"]).all()


def test_a_resumed_run_of_both_goes_on_bit_for_bit(rats, tmp_path):
    fast = {**FAST, "image_channels": 4, "n_train": 6}
    fast.pop("iterations", None)
    whole = train("sigmarat2", rats, "smoke", tmp_path / "whole", iterations=4, **fast)
    parts = train("sigmarat2", rats, "smoke", tmp_path / "parts", iterations=2, **fast)
    parts = train("sigmarat2", rats, "smoke", tmp_path / "parts", iterations=4, **fast)
    assert whole.fingerprint == parts.fingerprint


def test_the_experiment_takes_its_labels(run):
    experiment = Experiment(run, PLANS["smoke"], "r100+s50", seeds=1, label_source="joint").go_on()
    data, about = experiment._data(experiment.arms[-1], 0)
    assert about == {"labels": "joint"} and len(data) == 9
    assert set(experiment.scores["arm"]) >= {"r100", "r100+s50"}
    assert torch.equal(experiment.joint(4, 0).labels[:3], experiment.joint(3, 0).labels)
    figure = figures.teacher_labels(experiment, "r100+s50", n=4)
    assert [ax.get_title() for ax in figure.axes[:3]][1:] == ["the generator's labels", "the teacher's labels"]
    other = Experiment(run, PLANS["smoke"], "r100+s50", seeds=1)
    assert other.folder != experiment.folder


def test_scans_without_the_studys_labels_are_refused(tmp_path):
    rats = ellipsoids(tmp_path / "rats")
    with pytest.raises(ValueError, match="image_channels=2"):
        train("sigmarat2", rats, "smoke", tmp_path / "run", image_channels=2, **FAST)
    for path in (tmp_path / "rats").glob("*_dseg.nii.gz"):
        path.unlink()
    with pytest.raises(ValueError, match="trains on scans with their labels"):
        train("sigmarat2", labkit.open_cohort(tmp_path / "rats"), "smoke", tmp_path / "run", image_channels=4, **FAST)
    assert not (tmp_path / "run").exists()
