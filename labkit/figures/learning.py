"""Figures of a training run: losses, codes, fixed samples as they change, reconstructions."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib import ticker
from matplotlib.figure import Figure

from labkit.data.cohort import Cohort
from labkit.figures import style
from labkit.figures.interactive import Interactive
from labkit.figures.style import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION, WIDTH
from labkit.runs import Run
from labkit.samples import first_sections, middle_sections

PANELS = {
    "reconstruction: mean squared error, scans in [−1, 1]": {
        "rec_mse": "training batches",
        "held_out_mse": "held-out scans",
        "mean_scan_mse": "mean scan instead",
    },
    "Wasserstein estimates: real minus generated": {"wasserstein_D": "scans (D)", "wasserstein_C": "codes (C)"},
    "losses": {"loss_EG": "L_G", "loss_D": "L_D", "loss_C": "L_C"},
    "gradient norms": {"grad_E": "E", "grad_G": "G", "grad_D": "D", "grad_C": "C"},
    "what is minimised": {"loss": "L"},
    "priors of the warps": {"bending": "squared bending", "speed": "squared velocity"},
}
"""What `loss_curves` draws: panel, and its columns of ``losses.csv`` with their names; a model has some of them."""

COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
POSITIVE = ("reconstruction: mean squared error, scans in [−1, 1]", "gradient norms", "what is minimised")


def loss_curves(run: Run, smooth: int = 0) -> Interactive:
    """Losses of a run over iterations, a panel a kind; log scales for errors and gradient norms.

    Parameters
    ----------
    run : Run
        Trained at least as far as its first row.
    smooth : int
        Rows over which curves are averaged (centred); 0 chooses one in forty.
    """
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    losses = run.losses
    window = smooth or max(1, len(losses) // 40)
    panels = {panel: columns for panel, columns in PANELS.items() if set(columns) & set(losses.columns)}
    height = 2.25 * len(panels)
    figure = make_subplots(len(panels), 1, shared_xaxes=True, vertical_spacing=0.06, subplot_titles=list(panels))
    with plt.rc_context(style.STYLE):
        still, axes = plt.subplots(len(panels), 1, figsize=(WIDTH, height), sharex=True, layout="constrained")
    for row, (ax, (panel, columns)) in enumerate(zip(axes, panels.items(), strict=True), start=1):
        for colour, (column, name) in zip(COLOURS, columns.items(), strict=False):
            values = losses[column].dropna()
            if values.empty:
                continue
            sparse = len(values) < len(losses)
            curve = values if sparse else values.rolling(window, min_periods=1, center=True).mean()
            mode, marker = ("lines+markers", "o") if sparse else ("lines", "")
            line = go.Scatter(x=list(curve.index), y=curve.tolist(), name=name, mode=mode, line={"color": colour})
            figure.add_trace(line, row, 1)
            ax.plot(curve.index, curve, color=colour, label=name, marker=marker, markersize=3, linewidth=1)
        if panel in POSITIVE:
            figure.update_yaxes(type="log", row=row, col=1)
            ax.set_yscale("log")
        ax.set_title(panel)
        ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))  # beside the curves: within, it would cover one
    axes[-1].set_xlabel("iteration")
    figure.update_xaxes(title_text="iteration", row=len(panels), col=1)
    margin = {"l": 50, "r": 10, "t": 40, "b": 40}
    figure.update_layout(height=round(100 * height), template="plotly_white", margin=margin,
                         legend={"orientation": "h"}, hovermode="x unified")  # fmt: skip
    plt.close(still)
    return Interactive(figure, still, _losses_in_words(run, list(panels)))


def _losses_in_words(run: Run, panels: list[str]) -> str:
    last, held = run.losses.iloc[-1], run.losses["held_out_mse"].dropna()
    return (
        f"{len(panels)} panels of curves over {run.losses.index[-1]} iterations of {run.config['variant']['name']}: "
        f"mean squared reconstruction error, now {last['rec_mse']:.3g} in training"
        + (f" and {held.iloc[-1]:.3g} on held-out scans" if len(held) else "")
        + f"; {'; '.join(panels[1:])}."
    )


@style.drawn
def code_statistics(run: Run) -> Figure:
    """Mean and standard deviation (log scale) of encoded codes over iterations, beside the 0 and 1 of random codes.

    A model without an encoder to train, an atlas, has held-out scans' standard deviation alone.
    """
    losses = run.losses
    panels = 2 if "z_enc_sd" in losses else 1
    figure, axes = plt.subplots(
        panels, 1, figsize=(WIDTH, 2.1 * panels), sharex=True, layout="constrained", squeeze=False
    )
    upper = axes[0, 0]
    if panels == 2:
        upper.plot(losses.index, losses["z_enc_sd"], color=BLUE, linewidth=1, label="training batches")
        axes[1, 0].plot(losses.index, losses["z_enc_mean"], color=BLUE, linewidth=1)
        axes[1, 0].axhline(0, color=GREY, linestyle="--", linewidth=1)
        axes[1, 0].set(title="mean of encoded codes")
    held = losses["held_out_code_sd"].dropna()
    if len(held):
        upper.plot(held.index, held, "o-", color=VERMILION, markersize=3, linewidth=1, label="held-out scans")
    upper.axhline(1, color=GREY, linestyle="--", linewidth=1, label="random codes, N(0, I)")
    upper.set(yscale="log", title="standard deviation of encoded codes")
    upper.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 1.5, 2, 3, 5)))  # most often all within one decade
    upper.yaxis.set_major_formatter("{x:g}")
    upper.yaxis.set_minor_formatter(ticker.NullFormatter())
    upper.legend()
    axes[-1, 0].set(xlabel="iteration")
    return figure


@style.drawn
def samples_over_time(run: Run, codes: int = 4, moments: int = 5) -> Figure:
    """The same random codes (columns) at several moments (rows), evenly spread from the first iteration to the last.

    Coronal sections through the middle of the volume, window [-1, 1].
    """
    paths = sorted((run.path / "samples").glob("iteration-*.png"))
    chosen = [paths[index] for index in np.unique(np.linspace(0, len(paths) - 1, moments).round().astype(int))]
    figure, axes = style.picture_grid(len(chosen), codes, 0.3)
    for row, path in zip(axes, chosen, strict=True):
        for ax, section in zip(row, first_sections(plt.imread(path), run.scale.size), strict=False):
            ax.imshow(section, cmap="gray", vmin=0, vmax=1)
        row[0].set_ylabel(str(int(path.stem.removeprefix("iteration-"))))
    style.bare(axes.flat)
    figure.supylabel("iteration", size=10)
    return figure


@style.drawn
def reconstructions(run: Run, cohort: Cohort, scans: int = 3) -> Figure:
    """Scans, what comes back of them through E and G, and the difference.

    Of the first scans of a cohort; held-out ones make the honest figure. Coronal sections, window [-1, 1], difference
    in red (too bright) and blue (too dark).
    """
    shown = cohort.subset(range(min(scans, len(cohort))))
    channels = shown.volumes(run.scale.size)
    with torch.no_grad():
        back = run.generator(codes="encoded")(run.encoder()(channels))
    real = channels[:, :1]
    rows = {"scan": real, "reconstruction": back, "difference": back - real}
    figure, axes = style.picture_grid(3, len(shown))
    for row, (name, volumes) in zip(axes, rows.items(), strict=True):
        for ax, volume in zip(row, volumes[:, 0].numpy(), strict=True):
            cmap = "RdBu_r" if name == "difference" else "gray"
            ax.imshow(middle_sections(volume)[0], cmap=cmap, vmin=-1, vmax=1)
        row[0].set_ylabel(name)
    for ax, scan, volume in zip(axes[1], shown, (back - real).square().mean((1, 2, 3, 4)), strict=True):
        ax.set_title(f"{scan.subject}\nMSE {volume.item():.4f}")
    style.bare(axes.flat)
    return figure
