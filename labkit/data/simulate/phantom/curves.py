"""Coronal outlines: read from tables, lofted between levels, and measured distances to."""

from __future__ import annotations

import numpy as np


def sections(text: str, columns: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Read an outline table: one line a coronal level, ``y | x z x z ...`` in mm, caudal levels last.

    With three columns every point is ``x z h``, `h` being half the thickness of a ribbon. Gives the levels (L,),
    ascending, and their points (L, K, columns); ValueError if levels differ in the number of points.
    """
    rows = [line.split("|") for line in text.strip().splitlines()]
    values = [np.array(points.split(), float) for _, points in rows]
    sizes = {len(v) for v in values}
    if len(sizes) != 1 or sizes.pop() % columns:
        raise ValueError(
            f"an outline table needs the same number of {columns}-number points on every level; the lines "
            f"have {[len(v) for v in values]} numbers: make them equal multiples of {columns}"
        )
    y = np.array([float(level) for level, _ in rows])
    order = np.argsort(y)
    return y[order], np.stack(values)[order].reshape(len(y), -1, columns)


def monotone_cubic(knots: np.ndarray, values: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Interpolate (L, ...) along the first axis without overshoot (Fritsch & Carlson 1980, SIAM J Numer Anal 17:238).

    `knots` (L,) ascend; the result is (len(at), ...), held constant beyond the first and last knot.
    """
    shape = (-1,) + (1,) * (values.ndim - 1)
    step = np.diff(knots).reshape(shape)
    slope = np.diff(values, axis=0) / step
    tangent = np.zeros_like(values)
    tangent[0], tangent[-1] = slope[0], slope[-1]
    if len(knots) > 2:
        before, after = slope[:-1], slope[1:]
        both = before * after
        tangent[1:-1] = np.where(both > 0, 2 * both / np.where(both > 0, before + after, 1), 0)
    at = np.clip(at, knots[0], knots[-1])
    i = np.clip(np.searchsorted(knots, at, side="right") - 1, 0, len(knots) - 2)
    h = step[i]
    t = ((at - knots[i]).reshape(shape)) / h
    return (
        (1 + 2 * t) * (1 - t) ** 2 * values[i]
        + t * (1 - t) ** 2 * h * tangent[i]
        + t**2 * (3 - 2 * t) * values[i + 1]
        + t**2 * (t - 1) * h * tangent[i + 1]
    )


def smooth_curve(points: np.ndarray, closed: bool, midline: bool, pieces: int = 3) -> np.ndarray:
    """Catmull-Rom curve through the points (N, K, C) of every level, a polyline (N, M, C); C begins with x and z.

    A `closed` curve joins its last point to its first. A `midline` one begins and ends on the midline and crosses it at
    a right angle, as its mirror image does; closed, it is closed well beyond the midline, so that no edge lies on it.
    `pieces` are the straight ones between two control points.
    """
    if closed and not midline:
        padded = np.concatenate([points[:, -1:], points, points[:, :2]], 1)
    elif midline:
        mirror = np.ones(points.shape[-1])
        mirror[0] = -1
        padded = np.concatenate([points[:, 1:2] * mirror, points, points[:, -2:-1] * mirror], 1)
    else:
        padded = np.concatenate([points[:, :1], points, points[:, -1:]], 1)
    a, b, c, d = padded[:, :-3], padded[:, 1:-2], padded[:, 2:-1], padded[:, 3:]
    t = (np.arange(pieces) / pieces)[:, None]
    curve = 0.5 * (
        2 * b[:, :, None]
        + (c - a)[:, :, None] * t
        + (2 * a - 5 * b + 4 * c - d)[:, :, None] * t**2
        + (3 * b - a - 3 * c + d)[:, :, None] * t**3
    )
    curve = curve.reshape(len(points), -1, points.shape[-1])
    last = padded[:, -2:-1]
    if not closed:
        return np.concatenate([curve, last], 1)
    if midline:
        away = np.zeros(points.shape[-1])
        away[0] = 4.0
        return np.concatenate([curve, last, last - away, curve[:, :1] - away, curve[:, :1]], 1)
    return np.concatenate([curve, curve[:, :1]], 1)


def _segments(curve: np.ndarray, x: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, ...]:
    """Position along, and squared distance to, each straight piece of a polyline: (M, R, S); and its ends."""
    a, b = curve[:-1], curve[1:]
    e = b - a
    ex, ez = e[:, :1, None], e[:, 1:2, None]
    dx, dz = (x[None] - a[:, :1])[:, :, None], (z[None] - a[:, 1:2])[:, None]
    length2 = np.maximum(ex**2 + ez**2, 1e-8)
    t = np.clip(dx * (ex / length2) + dz * (ez / length2), 0, 1)
    return t, (dx - t * ex) ** 2 + (dz - t * ez) ** 2, a, b


def outline_distance(curve: np.ndarray, x: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Signed distance (R, S) of the grid `x`, `z` to a closed polyline (M, 2), mm, positive inside (even-odd rule)."""
    _, off2, a, b = _segments(curve, x, z)
    run, rise = b[:, :1] - a[:, :1], b[:, 1:2] - a[:, 1:2]
    crossed = (a[:, 1:2] > z[None]) != (b[:, 1:2] > z[None])
    where = np.where(crossed, a[:, :1] + (z[None] - a[:, 1:2]) * run / np.where(rise == 0, 1, rise), -np.inf)
    inside = np.count_nonzero(x[None, :, None] < where[:, None], axis=0) % 2 == 1
    d = np.sqrt(off2.min(0))
    return np.where(inside, d, -d)


def ribbon_distance(curve: np.ndarray, x: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Signed distance of the grid `x`, `z` to a band round an open polyline, and the band's half thickness there.

    The polyline is (M, 3), mm: points and the half thickness at each. Both results are (R, S), mm, positive inside.
    """
    t, off2, a, b = _segments(curve, x, z)
    half = a[:, 2, None, None] + t * (b[:, 2] - a[:, 2])[:, None, None]
    d = half - np.sqrt(off2)
    nearest = d.argmax(0)[None]
    return np.take_along_axis(d, nearest, 0)[0], np.take_along_axis(half, nearest, 0)[0]
