import base64
import re
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from labkit import widgets
from labkit.data.cohort import Cohort
from labkit.tests.test_describe import brain, random_images, toy_cohort


@pytest.fixture
def cohort():
    return toy_cohort(random_images(3), [brain()] * 3)


def controls(browser) -> dict:
    return {child.description: child for child in browser.children if child.description}


def alt(browser) -> str:
    return re.search('alt="([^"]*)"', browser.children[-1].value)[1]


def test_without_a_live_kernel_a_sentence_stands_in_its_place(cohort, capsys):
    assert widgets.slice_browser(cohort) is None
    assert "live kernel" in capsys.readouterr().out


@pytest.mark.parametrize(("allow_stdin", "live"), [(True, True), (False, False)])
def test_a_kernel_is_live_where_a_cell_may_ask_for_input(monkeypatch, allow_stdin, live):
    shell = SimpleNamespace(kernel=SimpleNamespace(_allow_stdin=allow_stdin))
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    assert widgets.in_live_kernel() is live


def test_a_plain_interpreter_is_no_live_kernel(monkeypatch):
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: None))
    assert widgets.in_live_kernel() is False
    monkeypatch.delitem(sys.modules, "IPython")
    assert widgets.in_live_kernel() is False


def test_every_control_has_a_name(cohort):
    assert list(controls(widgets.slice_browser(cohort, live=True))) == ["animal", "plane", "slice", "labels"]


def test_scans_without_labels_have_no_tick_box_for_them():
    browser = widgets.slice_browser(toy_cohort(random_images(1)), live=True)
    assert list(controls(browser)) == ["animal", "plane", "slice"]


def test_the_picture_is_a_png_that_says_what_it_shows(cohort):
    browser = widgets.slice_browser(cohort, live=True)
    assert alt(browser).startswith("Animal 00, coronal slice 8 of 16, 3.0 mm caudal")
    encoded = re.search('base64,([^"]*)', browser.children[-1].value)[1]
    assert base64.b64decode(encoded).startswith(b"\x89PNG")


def test_moving_a_control_changes_the_picture(cohort):
    browser = widgets.slice_browser(cohort, live=True)
    control = controls(browser)
    seen = {browser.children[-1].value}
    for name, value in (("slice", 7), ("animal", 2), ("labels", True), ("plane", "sagittal")):
        control[name].value = value
        assert browser.children[-1].value not in seen
        seen.add(browser.children[-1].value)
    assert alt(browser).startswith("Animal 02, sagittal slice 8 of 16")


def test_the_slider_and_the_number_are_one_control(cohort):
    browser = widgets.slice_browser(cohort, live=True)
    (slider,) = (child for child in browser.children if type(child).__name__ == "IntSlider")
    slider.value = 16
    assert controls(browser)["slice"].value == 16
    assert "slice 16 of 16" in alt(browser)


def flat_cohort() -> Cohort:
    """16 sagittal, 10 horizontal and 16 coronal slices."""
    cohort = toy_cohort(random_images(1))
    return Cohort("flat", cohort.folder, [replace(scan, image=scan.image[:, :10]) for scan in cohort])


def test_a_plane_with_fewer_slices_starts_in_its_own_middle():
    flat = flat_cohort()
    browser = widgets.slice_browser(flat, live=True)
    control = controls(browser)
    control["slice"].value = 16
    control["plane"].value = "horizontal"
    assert (control["slice"].value, control["slice"].max) == (5, 10)
    assert "horizontal slice 5 of 10" in alt(browser)
    control["plane"].value = "coronal"
    assert (control["slice"].value, control["slice"].max) == (8, 16)


def test_one_move_draws_one_picture(monkeypatch):
    drawn = []
    monkeypatch.setattr(widgets.browser, "slice_html", lambda scan, *chosen: drawn.append(chosen[:3]) or "")
    browser = widgets.slice_browser(flat_cohort(), live=True)
    controls(browser)["plane"].value = "horizontal"
    assert drawn == [("coronal", 7, False), ("horizontal", 4, False)]
