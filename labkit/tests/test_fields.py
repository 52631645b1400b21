import numpy as np
import pytest

from labkit.fields import whole


def test_whole_numbers_of_any_kind_become_pythons():
    assert [type(whole("n", value, 0)) for value in (3, np.int64(3), np.uint8(3))] == [int] * 3


@pytest.mark.parametrize("value", [0, -1, 1.0, "2", None, True, np.bool_(True)])
def test_what_is_no_whole_number_is_refused_with_what_is_allowed(value):
    with pytest.raises(ValueError, match="^n=.*: how many scans, a whole number of at least 1$"):
        whole("n", value, 1, "how many scans")
    with pytest.raises(ValueError, match="^seed=-1: a whole number of at least 0$"):
        whole("seed", -1, 0)
