"""The release's evaluation, written plainly from its notebook's procedure, beside what computes it quickly."""

from itertools import combinations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from labkit.evidence.metrics import measures, released
from labkit.evidence.sample import Sample, of_pairs

SHAPE = (64, 64, 40)  # in cubes of 16: ten slices with three of padding on either side


def to_unit_range(volume):
    return (volume - volume.min()) / (volume.max() - volume.min())


@pytest.fixture(scope="module")
def scans():
    """Real scans, padded with zeros, and what a generator makes, of other ranges and not quite black in the padding."""
    g = torch.Generator().manual_seed(0)
    coarse = torch.rand(13, 1, 4, 4, 4, generator=g)
    smooth = torch.nn.functional.interpolate(coarse, size=(16,) * 3, mode="trilinear") * torch.rand(13, 1, 1, 1, 1)
    real = torch.zeros(7, 1, 16, 16, 16)
    real[..., 3:13] = smooth[:7, ..., 3:13]
    return Sample(real, SHAPE), Sample(0.05 + 0.9 * smooth[7:], SHAPE)


def by_the_notebook(name, real, other, i, j):
    """One batch: the two real scans `i`, loaded, and what the generator made for it."""
    loaded = torch.zeros(2, 1, 16, 16, 16)
    loaded[..., 3:13] = torch.stack([to_unit_range(real.scanned[k]) for k in i])
    made = other.cubes[[j[0]]] if name in ("RMSE", "MAE") else other.cubes[[*j]]
    if name in ("PSNR", "RMSE"):
        y, x = to_unit_range(loaded[..., 3:13]), to_unit_range(made[..., 3:13])
        mse = ((x - y) ** 2).mean()
        return -10 * torch.log10(mse) if name == "PSNR" else mse.sqrt()
    y, x = to_unit_range(loaded), to_unit_range(made)
    if name == "MAE":
        return (x - y).abs().mean()
    if name == "NCC":
        return np.mean([np.corrcoef(a.flatten(), b.flatten())[0, 1] for a, b in zip(x, y, strict=True)])
    x, y = x[..., 3:13].reshape(2, -1).double(), y[..., 3:13].reshape(2, -1).double()
    return ((x @ x.T).sum() + (y @ y.T).sum()) / 4 - (x @ y.T).sum() * 2 / 4


@pytest.mark.parametrize("name", ["PSNR", "RMSE", "MAE", "NCC", "MMD"])
def test_measures_of_batches_are_those_of_the_releases_procedure(scans, name):
    real, other = scans
    i, j = released.batches(np.arange(7), np.arange(6), np.random.default_rng(3))
    assert i.shape == j.shape == (3, 2) and len(set(i.flat)) == 6 and len(set(j.flat)) == 6
    measure = {row[0]: row[1] for row in released.MEASURES}[name]
    found = measure(released.Tables(real, other), i, j)
    expected = [float(by_the_notebook(name, real, other, *batch)) for batch in zip(i, j, strict=True)]
    assert found == pytest.approx(expected, rel=1e-4)


def test_parts_of_samples_share_what_is_computed_of_their_pairs(scans):
    real, other = scans
    i, j = np.array([5, 0, 3, 6]), np.array([2, 1, 5, 0])
    shared = released.Tables.of(real.take(i), other.take(j))
    alone = released.Tables(Sample(real.cubes[i], real.shape), Sample(other.cubes[j], other.shape))
    batch = np.array([[0, 3], [2, 1]]), np.array([[1, 2], [3, 3]])
    for name, measure, *_ in released.MEASURES:
        assert measure(shared, *batch) == pytest.approx(measure(alone, *batch), rel=1e-5), name
    asked = []

    def sums(x, y, a, b):
        asked.extend(zip(a.tolist(), b.tolist(), strict=True))
        return x.cubes[a].flatten(1).sum(1) + y.cubes[b].flatten(1).sum(1)

    part, first, second = other.take(j), np.array([0, 1, 0]), np.array([2, 3, 2])
    found = of_pairs("sums", real.take(i), part, first, second, sums, most=1)
    assert found == pytest.approx(sums(real.take(i), part, first, second).double().numpy())
    assert asked[:2] == [(0, 0), (5, 5)] and len(asked) == 5  # those of the whole, a pair once
    asked.clear()
    assert of_pairs("sums", real, other, np.array([5]), np.array([5]), sums) == pytest.approx(found[:1])
    assert not asked


def test_a_row_is_the_mean_over_rounds_of_batches(scans):
    real, other = scans
    effort = measures.Effort(pairs=4, repeats=3, halves=0, resamples=0)
    rows = {row.metric: row for row in released.released(real, other, np.random.default_rng(0), effort)}
    assert list(rows) == ["PSNR", "RMSE", "MAE", "NCC", "MMD"]  # five scales of MS-SSIM do not fit ten slices
    rng, psnr = np.random.default_rng(0), []
    for _ in range(3):
        i, j = released.batches(np.arange(7), np.arange(6), rng)
        psnr += [float(by_the_notebook("PSNR", real, other, *batch)) for batch in zip(i, j, strict=True)]
    assert rows["PSNR"].value == pytest.approx(np.mean(psnr), rel=1e-4)
    assert "batches of 2" in rows["MMD"].how and "padded cube" in rows["NCC"].how


def plain_ms_ssim(x, y, last_counts):
    """Of two scans, (1, X, Y, Z): the window acts on arrays whose first axis has one place."""
    contrasts, similarities = [], []
    for scale in range(5):
        if scale:
            x, y = (torch.nn.functional.avg_pool3d(v, 2) for v in (x, y))
        a, b = x.numpy().astype(float), y.numpy().astype(float)
        mean_a, mean_b = gaussian_filter(a, 1.5), gaussian_filter(b, 1.5)
        var_a, var_b = gaussian_filter(a * a, 1.5) - mean_a**2, gaussian_filter(b * b, 1.5) - mean_b**2
        contrast = (2 * (gaussian_filter(a * b, 1.5) - mean_a * mean_b) + 0.03**2) / (var_a + var_b + 0.03**2)
        contrasts.append(contrast.mean())
        similarities.append((contrast * (2 * mean_a * mean_b + 0.01**2) / (mean_a**2 + mean_b**2 + 0.01**2)).mean())
    weights = np.array([0.0448, 0.2856, 0.3001, 0.2363, 0.1333])
    return np.prod(np.array(contrasts[:4]) ** weights[:4]) * similarities[4] ** (weights[4] * last_counts)


def test_ms_ssim_has_five_scales_and_the_last_one_counts_four_times():
    g = torch.Generator().manual_seed(1)
    scans = torch.nn.functional.interpolate(torch.rand(6, 1, 8, 8, 5, generator=g), size=(32, 32, 20), mode="trilinear")
    scans = scans + 0.05 * torch.randn(scans.shape, generator=g)
    x, y = scans[:3].clamp(0, 1), (0.6 * scans[:3] + 0.4 * scans[3:]).clamp(0, 1)
    for times in (4, 1):
        expected = [plain_ms_ssim(a, b, times) for a, b in zip(x, y, strict=True)]
        assert released.ms_ssim(x, y, times).tolist() == pytest.approx(expected, abs=1e-4)
    assert (released.ms_ssim(x, y) < released.ms_ssim(x, y, 1)).all()
    assert torch.allclose(released.ms_ssim(x, x), torch.ones(3), atol=1e-5)


def test_pairs_of_one_source_are_scaled_scan_by_scan_and_then_cropped():
    gains = torch.tensor([0.3, 0.5, 0.7, 1]).view(4, 1, 1, 1, 1)
    cubes = torch.rand(4, 1, 32, 32, 32, generator=torch.Generator().manual_seed(2)) * gains
    sample = Sample(cubes, (64, 64, 40))
    rows = list(released.released(sample, sample, np.random.default_rng(0), measures.Effort(pairs=9, halves=0)))
    scaled = [to_unit_range(cube)[:, :, :, 6:26] for cube in cubes]
    expected = np.mean([plain_ms_ssim(scaled[a], scaled[b], 4) for a, b in combinations(range(4), 2)])
    assert rows[-1].metric == "MS-SSIM" and rows[-1].value == pytest.approx(expected, abs=1e-4)
    assert rows[-1].direction == "floor" and rows[-1].ci_low <= rows[-1].value <= rows[-1].ci_high


def test_a_constant_scan_gives_numbers_where_the_release_has_some(scans):
    real, _ = scans
    black = Sample(torch.zeros(6, 1, 16, 16, 16), SHAPE)
    rows = {row.metric: row.value for row in released.released(real, black, np.random.default_rng(0))}
    assert rows["NCC"] == 0 and np.isfinite(list(rows.values())).all()
