"""Every slice of every scan of a cohort, and of another cohort beside it."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from labkit import figures
from labkit.data.cohort import Cohort, Scan
from labkit.evidence import describe
from labkit.figures.frames import image_html
from labkit.files import in_live_kernel

if TYPE_CHECKING:
    import ipywidgets


def is_live(what: str, live: bool | None = None) -> bool:
    """Whether controls would do something; says how to get `what` if not. `live` overrules what is found."""
    live = in_live_kernel() if live is None else live
    if not live:
        print(f"The {what} appears in a live kernel.\nOpen this notebook in Jupyter or VS Code and run its cells.")
    return live


def slice_browser(cohort: Cohort, live: bool | None = None, beside: Cohort | None = None) -> ipywidgets.VBox | None:
    """Browse every slice of every scan of a cohort.

    Parameters
    ----------
    cohort : Cohort
    live : bool, optional
        Make the sliders, or only say how to get them; default: as :func:`labkit.files.in_live_kernel` finds. A page
        built from an executed notebook would otherwise hold sliders that do nothing.
    beside : Cohort, optional
        Scans on the same grid, one of which is shown at the right at the same place in the same window.

    Returns
    -------
    ipywidgets.VBox or None
        Animal, plane, slice (as a number and as a slider) and, where there are labels, a tick box, above the picture;
        shown as a cell's value. None where no kernel is live, after a printed hint.
    """
    if not is_live("slice browser", live):
        return None
    import ipywidgets

    style, wide = {"description_width": "3rem"}, {"width": "auto", "max_width": "30rem"}
    rats = [(describe.scan_name(scan), index) for index, scan in enumerate(cohort)]
    rat = ipywidgets.Dropdown(options=rats, description="animal", style=style, layout=wide)
    others = [(describe.scan_name(scan), index) for index, scan in enumerate(beside or ())]
    other = ipywidgets.Dropdown(options=others, description="beside", style=style, layout=wide)
    plane = ipywidgets.ToggleButtons(options=list(figures.PLANES), description="plane", style=style)
    plane.style.button_width = "7rem"
    # Slices are counted from 1 on screen. A screen reader gets the name of the number box, which a slider lacks. While
    # it is dragged the front end waits for the kernel and sends only the latest position, so drawing does not pile up.
    depth = cohort.shape[2]
    middle = (depth + 1) // 2
    number = ipywidgets.BoundedIntText(middle, min=1, max=depth, description="slice", style=style, layout=wide)
    slider = ipywidgets.IntSlider(middle, min=1, max=depth, readout=False, layout=wide)
    ipywidgets.link((number, "value"), (slider, "value"))
    labels = ipywidgets.Checkbox(False, description="labels", indent=False)
    picture = ipywidgets.HTML()
    shown: list[tuple] = []

    def draw(*_: object) -> None:
        chosen = (rat.value, other.value, plane.value, number.value - 1, labels.value)
        if shown != [chosen]:  # a change of plane moves the slice as well, and both report
            shown[:] = [chosen]
            scans = [cohort[rat.value]] + ([beside[other.value]] if beside else [])
            window = figures.intensity_window(scans)
            picture.value = "".join(slice_html(scan, *chosen[2:], window, 96 // len(scans)) for scan in scans)

    def turn(*_: object) -> None:
        depth = cohort.shape[figures.PLANES[plane.value].axis]
        number.max = slider.max = depth
        number.value = (depth + 1) // 2

    plane.observe(turn, "value")  # before draw, which then finds a slice that exists
    for control in (rat, other, plane, number, labels):
        control.observe(draw, "value")
    draw()
    any_labels = any(scan.labels is not None for scan in cohort)
    chosen = [rat, other] if beside else [rat]
    return ipywidgets.VBox([*chosen, plane, number, slider, *([labels] if any_labels else []), picture])


def slice_html(
    scan: Scan,
    plane: str,
    index: int,
    labels: bool = False,
    window: tuple[float, float] | None = None,
    percent: int = 100,
) -> str:
    """One slice as an HTML image that says in words what it shows, at most `percent` of the width.

    Other arguments as :func:`labkit.figures.one_slice`.
    """
    figure = figures.one_slice(scan, plane, index, labels, window)
    depth = scan.image.shape[figures.PLANES[plane].axis]
    words = f"Animal {describe.scan_name(scan)}, {plane} slice {index + 1} of {depth}, {figure.axes[0].get_title()}"
    return figure_html(figure, words, percent)


def figure_html(figure: Figure, words: str, percent: int = 100) -> str:
    """A figure as an HTML image with `words` for those who do not see it, at most `percent` of the width."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return image_html(buffer.getvalue(), words, f"max-width: {percent}%")
