"""What the augmentation does to one scan."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure

from labkit.data import augment
from labkit.data.grids import STUDY_ZOOMS, grid_affine
from labkit.figures import style
from labkit.figures.style import PLANES, WIDTH


@style.drawn
def augmentations(
    volume: torch.Tensor,
    augmentation: augment.Augmentation = augment.FULL,
    zooms: tuple[float, ...] | None = None,
    seed: int = 0,
) -> Figure:
    """One scan, then each transform of the augmentation alone at the end of its range, with what it changed.

    Parameters
    ----------
    volume : torch.Tensor
        (1, S, S, S), [-1, 1], as from :meth:`labkit.data.cohort.Cohort.volumes`.
    augmentation : labkit.data.augment.Augmentation
        Which transforms, how far.
    zooms : tuple of float, optional
        Voxel size along the cube's axes, mm. Default: the study's 0.375 x 0.375 x 0.5 at 64^3, larger on fewer voxels.
    seed : int
        Of the noise.

    Returns
    -------
    matplotlib.figure.Figure
        For each transform two axes one over the other, in mm: the coronal slice through the middle of the cube, black
        at -1 and white at the original's 99.5th percentile, and its difference from the original's.
    """
    side = volume.shape[-1]
    zooms = tuple(zoom * augment.REFERENCE_SIZE / side for zoom in STUDY_ZOOMS) if zooms is None else zooms
    affine, plane = grid_affine((side,) * 3, zooms), PLANES["coronal"]
    shown = {"original": volume} | augment.preview(volume, seed, augmentation)
    white = float(torch.quantile(volume.flatten(), 0.995))
    captions = {"original": f"−1 to {white:.2f}".replace("-", "−")} | _how_far(augmentation)
    columns = 4
    blocks = -(-len(shown) // columns)
    figure, grid = plt.subplots(
        2 * blocks, columns, figsize=(WIDTH, blocks * (2 * WIDTH / columns + 0.55)), squeeze=False, layout="compressed"
    )
    places = [(2 * (place // columns), place % columns) for place in range(len(shown))]
    reach = 0.4
    for (row, column), (name, changed) in zip(places, shown.items(), strict=True):
        upper, lower = grid[row, column], grid[row + 1, column]
        style.show_section(upper, changed[0].numpy(), affine, plane, side // 2, vmin=-1, vmax=white)
        upper.set_title(f"{name}\n{captions[name]}", fontsize=9)
        if name == "original":
            style.name_sides(upper, plane)
            style.scale_bar(upper)
            continue
        options = {"cmap": "RdBu_r", "vmin": -reach, "vmax": reach}
        image = style.show_section(lower, (changed - volume)[0].numpy(), affine, plane, side // 2, **options)
    style.bare(grid.flat)
    if len(shown) > 1:
        ticks = (-reach, 0, reach)
        bar = grid[1, 0].inset_axes((0.05, 0.62, 0.9, 0.1))
        figure.colorbar(
            image, cax=bar, orientation="horizontal", extend="both", label="changed minus\noriginal", ticks=ticks
        )
    return figure


def _how_far(augmentation: augment.Augmentation) -> dict[str, str]:
    """How far each transform goes at the upper end of its range, in a few characters."""
    degrees, shift = np.degrees(augmentation.rotation_rad), augmentation.translation_voxels
    return {
        "rotation": f"+{degrees:.3g}°, 3 axes",
        "flip": "left–right" if augmentation.flip_axis == 0 else f"axis {augmentation.flip_axis}",
        "intensity": f"× {1 + augmentation.intensity:.3g}",
        "zoom": f"× {augmentation.zoom[1]:.3g}",
        "noise": f"SD {augmentation.noise_sd:.3g} of range",
        "translation": ", ".join(f"{voxels:+.3g}" if voxels else "0" for voxels in shift) + " voxels",
    }
