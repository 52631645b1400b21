import base64
import io
import itertools
import json
import re
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from labkit import figures
from labkit.data.cohort import Cohort
from labkit.runs import RunError
from labkit.samples import middle_sections
from labkit.tests.rats import ellipsoids
from labkit.training import train


@pytest.fixture(scope="module")
def rats(tmp_path_factory):
    return ellipsoids(tmp_path_factory.mktemp("cohort") / "rats")


@pytest.fixture(scope="module")
def run(rats, tmp_path_factory):
    options = {"iterations": 8, "checkpoint_every": 8, "sample_every": 2, "log_every": 1, "device": "cpu"}
    return train("sigmarat2", rats, "smoke", tmp_path_factory.mktemp("runs") / "run", **options)


def test_loss_curves_are_interactive_live_and_a_picture_on_a_page(run, monkeypatch):
    curves = figures.loss_curves(run)
    assert "application/vnd.plotly.v1+json" not in curves._repr_mimebundle_()  # Jupyter Book warns of it
    monkeypatch.setattr("labkit.figures.interactive.in_live_kernel", lambda: True)
    bundle = curves._repr_mimebundle_()
    names = {trace["name"] for trace in bundle["application/vnd.plotly.v1+json"]["data"]}
    assert {"training batches", "held-out scans", "L_G", "L_D", "L_C"} <= names
    page = bundle["text/html"]
    alt = re.search(r'alt="([^"]+)"', page)[1]
    assert "8 iterations of sigmarat2" in alt and "held-out" in alt
    picture = Image.open(io.BytesIO(base64.b64decode(re.search(r"base64,([^\"]+)\"", page)[1])))
    assert np.asarray(picture.convert("L")).std() > 5
    assert "http" not in page.replace("http://www.w3.org", "")
    json.loads(re.search(r'<script type="application/json">(.*?)</script>', page, re.S)[1].replace("<\\/", "</"))


def test_the_legend_of_a_curve_covers_no_curve(run):
    still = figures.loss_curves(run).still
    still.canvas.draw()
    assert len(still.axes) == 4
    for ax in still.axes:
        assert ax.get_legend().get_window_extent().x0 >= ax.get_window_extent().x1


def test_the_same_figure_has_the_same_html(run):
    first, again = (figures.loss_curves(run)._repr_mimebundle_()["text/html"] for _ in range(2))
    assert first == again


def test_code_statistics_show_one_as_the_aim(run):
    figure = figures.code_statistics(run)
    upper, lower = figure.axes
    assert any(np.allclose(line.get_ydata(), 1) for line in upper.lines)
    assert np.allclose(upper.lines[0].get_ydata(), run.losses["z_enc_sd"])
    assert np.allclose(lower.lines[0].get_ydata(), run.losses["z_enc_mean"])
    figure.canvas.draw()
    labels = [text.get_text() for text in upper.get_yticklabels() + upper.get_yticklabels(minor=True)]
    assert "1" in labels and not [text for text in labels if "times" in text or "^" in text]  # 1.8, not 1.8 * 10^0


def test_samples_over_time_run_from_the_first_to_the_last_iteration(run):
    figure = figures.samples_over_time(run, codes=3, moments=3)
    labels = [ax.get_ylabel() for ax in figure.axes if ax.get_ylabel()]
    assert labels[0] == "0" and labels[-1] == "8" and len(figure.axes) == 9
    first, last = (figure.axes[place].images[0].get_array() for place in (0, 6))
    assert not np.array_equal(first, last)
    volumes = np.asarray(nib.load(run.path / "samples" / "iteration-000008_random.nii.gz").dataobj)
    for code in range(3):  # the picture's sections are those of the volumes beside it
        section = middle_sections(volumes[..., code])[0].clip(-1, 1)
        seen = np.asarray(figure.axes[6 + code].images[0].get_array())
        times = len(seen) // len(section)
        assert np.abs(seen[::times, ::times] - (section + 1) / 2).max() < 0.01


def test_reconstructions_are_of_the_scans_shown(run, rats):
    held_out = run.held_out(rats)
    figure = figures.reconstructions(run, held_out, scans=1)
    scan, back, difference = (ax.images[0].get_array() for ax in figure.axes)
    assert np.allclose(back - scan, difference, atol=1e-5)
    assert held_out[0].subject in figure.axes[1].get_title()


def test_names_of_a_lab_s_animals_stand_beside_each_other(run, rats):
    named = Cohort("named", rats.folder, [replace(scan, subject=f"R2301-day35-{scan.subject}") for scan in rats])
    figure = figures.reconstructions(run, named, scans=3)
    figure.canvas.draw()
    titles = [ax.title.get_window_extent() for ax in figure.axes[3:6]]
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(titles))


def test_held_out_scans_come_only_from_the_cohort_of_the_run(run, rats):
    held_out = run.held_out(rats)
    assert 0 < len(held_out) < len(rats) and not set(held_out.subjects) & set(run.config["train"]["subjects"])
    with pytest.raises(RunError, match="was trained on 7 scans of rats.*open that cohort"):
        run.held_out(rats.subset(range(5)))


def test_the_summary_counts_what_was_done(run):
    summary = run.summary()
    assert summary["iterations"] == 8 and summary["sittings"] == 1 and summary["iterations per second (median)"] > 0
    assert np.isfinite(summary["reconstruction error, held out"])
