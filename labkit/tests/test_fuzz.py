import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from labkit.data import nifti, reading
from labkit.data.grids import ScanFaultError

CI = Path(__file__).parents[2] / "ci"


@pytest.fixture
def fuzz(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(CI))
    monkeypatch.setenv("LABKIT_DATA", str(tmp_path / "data"))  # which it sets itself, and which is then put back
    import fuzz

    yield fuzz
    sys.modules.pop("fuzz")


def test_two_hundred_spoiled_files_end_in_an_error_that_names_them_or_in_their_voxels(fuzz, tmp_path, capsys):
    assert fuzz.main(["--rounds", "200", "--keep", str(tmp_path / "failed")]) == 0
    said = capsys.readouterr().out
    refused, opened = (int(said.split(word)[0].split()[-1]) for word in (" refused", " opened"))
    assert refused + opened == 200 and min(refused, opened) > 40  # it tries both kinds


def misread(path, read=reading._read_whole):
    header, voxels = read(path)
    return header, bytes(voxels[2:]) + b"\0\0"


def dim_out_of_bounds(origin):
    raise nib.spatialimages.HeaderDataError("of a file that was read, and then could not be decoded")


@pytest.mark.parametrize(
    "place, name, careless", [(reading, "_read_whole", misread), (nifti, "says_orientation", dim_out_of_bounds)]
)
def test_it_finds_what_a_careless_reader_does(fuzz, tmp_path, monkeypatch, capsys, place, name, careless):
    monkeypatch.setattr(place, name, careless)
    assert fuzz.main(["--rounds", "20", "--keep", str(tmp_path / "failed")]) == 1
    assert len(list((tmp_path / "failed").iterdir())) == capsys.readouterr().out.count("the file is") > 2


def test_more_dimensions_than_there_can_be_are_a_fault_of_that_file(tmp_path):
    raw = bytearray(nib.Nifti1Image(np.zeros((4, 4, 4), np.int16), np.eye(4)).to_bytes())
    raw[41] = 38  # 9731 dimensions, of which the first seven are as before
    (tmp_path / "rat.nii").write_bytes(raw)
    with pytest.raises(ScanFaultError, match="9731 dimensions"):
        reading.read_array(tmp_path / "rat.nii", constant=True)
