import numpy as np
import pytest

import labkit
from labkit import fields
from labkit.fields import whole


def test_whole_numbers_of_any_kind_become_pythons():
    assert [type(whole("n", value, 0)) for value in (3, np.int64(3), np.uint8(3))] == [int] * 3


@pytest.mark.parametrize("value", [0, -1, 1.0, "2", None, True, np.bool_(True)])
def test_what_is_no_whole_number_is_refused_with_what_is_allowed(value):
    with pytest.raises(ValueError, match="^n=.*: how many scans, a whole number of at least 1$"):
        whole("n", value, 1, "how many scans")
    with pytest.raises(ValueError, match="^seed=-1: a whole number of at least 0$"):
        whole("seed", -1, 0)


def test_settings_may_be_text_and_what_are_none_is_said_before_any_work():
    assert fields.mapping("overrides", '{"latent_dim": 7}') == fields.mapping("overrides", {"latent_dim": 7})
    for wrong in ("{latent_dim: 7}", "[1]", 7, None):
        with pytest.raises(ValueError, match="overrides: settings by name are wanted. With papermill: -y"):
            fields.mapping("overrides", wrong)


@pytest.mark.parametrize("opened", [labkit.open_cohort, labkit.load_run])
def test_a_folder_whose_name_papermill_took_for_a_number_is_asked_for_as_text(opened):
    with pytest.raises(ValueError, match="123 is no path. .* -r instead of -p"):
        opened(123)
