from types import SimpleNamespace

import numpy as np
import pytest

from labkit.data.labels import has_tissues, label_names, without_tissues


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


def test_labels_are_called_by_the_shortest_table_that_names_all_of_them(tmp_path):
    assert label_names(tmp_path, [0, 1, 2, 3])[1] == "cerebrospinal fluid" and label_names(tmp_path, [1, 2]) == {
        1: "label 1", 2: "label 2"
    }  # fmt: skip
    (tmp_path / "desc-a_dseg.tsv").write_text("index\tname\n1\tleft\n2\tright\n3\tn/a\n")
    (tmp_path / "dseg.tsv").write_text("index\tname\n1\tcortex\n")
    assert label_names(tmp_path, [1]) == {1: "cortex"} and label_names(tmp_path, [1, 2]) == {1: "left", 2: "right"}
    assert label_names(tmp_path, [2, 3]) == {2: "label 2", 3: "label 3"}
