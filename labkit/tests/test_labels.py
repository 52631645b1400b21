from types import SimpleNamespace

import numpy as np
import pytest

from labkit.data.labels import has_tissues, without_tissues


@pytest.mark.parametrize(
    ("present", "all_of_them", "some"),
    [
        ([0, 1, 2, 3], True, True),
        ([1, 2, 3], True, True),  # a field of view inside the brain
        ([0, 2, 3], False, True),
        ([0, 3], False, True),
        ([0, 1], False, False),  # a mask of the brain
        ([0], False, False),
        ([0, 1, 2, 3, 4], False, False),  # an atlas
    ],
)
def test_labels_are_the_studys_or_not(present, all_of_them, some):
    labels = np.array(present, np.uint8)
    assert has_tissues(labels) == all_of_them and has_tissues(labels, need_all=False) == some


def test_scans_without_the_studys_labels_are_named():
    scans = [SimpleNamespace(subject=name, labels=labels) for name, labels in {
        "whole": np.arange(4), "part": np.array([0, 2]), "none": None}.items()]  # fmt: skip
    assert without_tissues(scans) == ["part", "none"] and without_tissues(scans, need_all=False) == ["none"]
