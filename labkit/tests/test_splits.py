from collections import Counter
from dataclasses import replace

import pytest

from labkit.data.cohort import Cohort
from labkit.data.splits import default_n_train, folds, split
from labkit.tests.rats import ellipsoids


@pytest.fixture(scope="module")
def rats(tmp_path_factory):
    return ellipsoids(tmp_path_factory.mktemp("cohort") / "rats")


@pytest.mark.parametrize("animals, held_out", [
    (4, 0), (5, 2), (12, 4), (19, 6), (20, 8), (24, 8), (46, 8), (47, 8), (60, 10), (70, 12), (210, 36),
])  # fmt: skip
def test_a_small_cohort_holds_enough_out_to_measure_with(animals, held_out):
    assert animals - default_n_train(animals) == held_out


@pytest.mark.parametrize("animals, labelled, expected", [(24, 6, 2), (24, 3, 2), (24, 2, 1), (12, 12, 4), (12, 0, 0)])
def test_labels_on_some_animals_are_on_both_sides_of_the_split(tmp_path, animals, labelled, expected):
    rats = ellipsoids(tmp_path / "rats", n=animals)
    some = {scan.subject for scan in rats[:labelled]}
    scans = [scan if scan.subject in some else replace(scan, labels=None) for scan in rats]
    train_part, held_out = split(Cohort("some", rats.folder, scans))
    assert len(train_part) == default_n_train(animals) and len(train_part) + len(held_out) == animals
    assert len(some & set(held_out.subjects)) == expected and not set(train_part.subjects) & set(held_out.subjects)
    assert split(Cohort("some", rats.folder, scans), animals)[1] is None
    with pytest.raises(ValueError, match="leaves one side empty"):
        split(Cohort("some", rats.folder, scans), 0)


def test_folds_hold_every_animal_out_once_and_groups_are_on_both_sides(tmp_path):
    rats = ellipsoids(tmp_path / "rats", n=25)
    groups = dict(zip(rats.subjects, ["WT"] * 8 + ["UT"] * 10 + ["TT"] * 7, strict=True))
    rats.groups = groups
    out = [split(rats, fold=fold)[1].subjects for fold in range(folds(25, default_n_train(25)))]
    assert sorted(sum(out, ())) == sorted(rats.subjects) and [len(part) for part in out] == [8, 9, 8]
    for part in out:
        counts = Counter(groups[subject] for subject in part)
        assert 2 <= counts["WT"] <= 3 and 3 <= counts["UT"] <= 4 and 2 <= counts["TT"] <= 3
    again = [split(rats, fold=fold)[1].subjects for fold in range(3, 6)]
    assert sorted(sum(again, ())) == sorted(rats.subjects) and not set(map(frozenset, again)) & set(map(frozenset, out))


def test_without_groups_the_first_fold_is_the_split_that_runs_have_always_had(rats):
    assert split(rats, 6)[0].subjects == rats.split(6, seed=0)[0].subjects
    with pytest.raises(ValueError, match="all 7 animals are trained on"):
        split(rats, 7, fold=1)
