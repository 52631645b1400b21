import numpy as np
import pytest

from labkit.data import store
from labkit.data.grids import grid_affine
from labkit.data.nifti import Origin
from labkit.data.store import Record, Store

AFFINE = tuple(map(tuple, grid_affine((4, 4, 4))))
ORIGIN = Origin("a.nii", (4, 4, 4), "RSA", AFFINE, "", AFFINE, False, 0.0, 1.0)


def one_scan() -> Store:
    return Store(np.ones((1, 4, 4, 4), np.float32), None, (Record("a", "", "", False, AFFINE, "0", ORIGIN),), {})


def test_a_store_that_another_process_finished_first_is_used_without_a_word(tmp_path, recwarn):
    def build_while_another_does() -> Store:
        store.open_store(tmp_path, {"folder": "x"}, [["a.nii", 1, 1]], 1, one_scan)
        return one_scan()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store.Path, "exists", lambda path: False)  # it was not there yet when this process looked
        opened = store.open_store(tmp_path, {"folder": "x"}, [["a.nii", 1, 1]], 1, build_while_another_does)
    assert isinstance(opened.images, np.memmap) and len(recwarn) == 0


@pytest.mark.parametrize("damaged", ["index.json", "images.npy"])
def test_a_damaged_store_is_made_again(tmp_path, damaged):
    def fail() -> Store:
        pytest.fail("built again although it is whole")

    arguments = (tmp_path, {"folder": "x"}, [["a.nii", 1, 1]], 1)
    store.open_store(*arguments, one_scan)
    assert store.open_store(*arguments, fail).records == one_scan().records
    (piece,) = tmp_path.glob(f"*/{damaged}")
    piece.write_bytes(piece.read_bytes()[:50])
    assert np.array_equal(store.open_store(*arguments, one_scan).images, one_scan().images)
    assert store.open_store(*arguments, fail).records == one_scan().records


def test_a_content_hash_survives_the_precision_of_a_nifti_header():
    affine = grid_affine(centre_mm=(0.0, 0.0, 0.0))
    affine[0, 3] = 2.0015  # 2.002 to three places, but 2.001 in single precision
    image = np.zeros((4, 4, 4), np.float32)
    stored = affine.astype(np.float32).astype(np.float64)
    assert np.round(affine[0, 3], 3) != np.round(stored[0, 3], 3)
    assert store.scan_digest(image, None, affine) == store.scan_digest(image, None, stored)
