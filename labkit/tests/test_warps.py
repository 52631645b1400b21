"""Warps: the flow is invertible, folds nowhere, and matrices resample as they say."""

import torch
import torch.nn.functional as F

from labkit.data.simulate.individual import smooth_noise
from labkit.warps import (
    JACOBIAN_FLOOR,
    affine_matrix,
    coarse_shape,
    diffeomorphism,
    flow,
    index_grid,
    jacobian,
    sample,
    separable,
    spline_matrix,
    spline_resampling,
)


def test_the_flow_of_the_opposite_velocity_leads_back():
    velocity = 0.8 * smooth_noise((16, 16, 16), 2.5, torch.Generator().manual_seed(0))[None]
    there, back = flow(velocity), flow(-velocity)
    returned = there + sample(back, index_grid(there) + there)
    inside = (slice(None), slice(None), *[slice(4, -4)] * 3)
    assert returned[inside].abs().max() < 0.1 < 1 < there[inside].abs().max()


def test_the_jacobian_is_the_growth_of_volume():
    grid = index_grid(torch.empty(5, 6, 7))
    matrix = torch.tensor([[1.2, 0.1, 0.0], [0.0, 0.9, 0.3], [0.2, 0.0, 1.1]])
    displacement = torch.einsum("ij,bjxyz->bixyz", matrix, grid) - grid
    assert torch.allclose(jacobian(displacement), torch.linalg.det(matrix), atol=1e-4)


def test_a_velocity_that_would_fold_is_weakened_and_only_that_one():
    wild, mild = smooth_noise((14, 14, 14), 1.0, torch.Generator().manual_seed(0))[None], torch.zeros(1, 3, 14, 14, 14)
    mild[:, 0, 7] = 0.1
    assert jacobian(flow(3 * wild)).min() < JACOBIAN_FLOOR
    displacement, smallest = diffeomorphism(torch.cat([3 * wild, mild]))
    assert smallest.min() >= JACOBIAN_FLOOR
    assert torch.equal(displacement[1:], flow(mild))


def linear_matrix(n_out: int, n_in: int) -> torch.Tensor:
    return F.interpolate(torch.eye(n_in)[None], size=n_out, mode="linear", align_corners=False)[0].T


def test_linear_matrices_along_the_axes_are_trilinear_interpolation():
    values, shape = torch.randn(2, 3, 5, 6, 4, generator=torch.Generator().manual_seed(0)), (11, 12, 3)
    matrices = [linear_matrix(n, m) for n, m in zip(shape, values.shape[2:], strict=True)]
    wanted = F.interpolate(values, size=shape, mode="trilinear", align_corners=False)
    assert torch.allclose(separable(values, matrices), wanted, atol=1e-6)


def test_a_spline_keeps_constants_and_goes_through_the_values_it_interpolates():
    assert torch.allclose(spline_matrix(17, 6).sum(1), torch.ones(17, dtype=torch.float64))
    assert torch.allclose(spline_resampling(6, 6), torch.eye(6, dtype=torch.float64))
    finer = spline_resampling(18, 6) @ torch.tensor([0.0, 1, 3, 2, 5, 4], dtype=torch.float64)
    assert torch.allclose(finer[1::3], torch.tensor([0.0, 1, 3, 2, 5, 4], dtype=torch.float64))


def test_a_spline_on_knots_bends_less_than_a_line():
    knots = torch.randn(8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    smooth, kinked = spline_resampling(32, 8) @ knots, linear_matrix(32, 8).double() @ knots
    assert smooth.diff(n=2).abs().max() < kinked.diff(n=2).abs().max()


def test_affine_numbers_shift_by_voxels_and_their_opposites_undo_them():
    shape, numbers = (16, 20, 12), torch.zeros(1, 12)
    numbers[0, 1] = 2.0
    moved = affine_matrix(numbers, shape)[0] - torch.eye(3, 4)
    assert moved[1, 3] == 2 and moved.count_nonzero() == 1
    numbers = torch.randn(1, 12, generator=torch.Generator().manual_seed(0))
    there, back = (F.pad(affine_matrix(n, shape), (0, 0, 0, 1))[0] for n in (numbers, -numbers))
    there[3, 3] = back[3, 3] = 1
    assert torch.allclose(there @ back, torch.eye(4), atol=1e-5) and torch.linalg.det(there) > 0


def test_a_coarse_grid_has_four_points_at_least_and_no_more_than_voxels():
    assert coarse_shape((64, 64, 40), 4) == (16, 16, 10) and coarse_shape((9, 3, 1), 4) == (4, 3, 1)
