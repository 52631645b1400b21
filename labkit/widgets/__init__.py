"""Front ends for a live notebook: controls over the functions of labkit.figures."""

from labkit.files import in_live_kernel
from labkit.widgets.browser import slice_browser, slice_html
from labkit.widgets.explorer import Explorer, latent_explorer, redraw_seconds
from labkit.widgets.judge import JudgePage, judge

__all__ = [
    "Explorer",
    "JudgePage",
    "in_live_kernel",
    "judge",
    "latent_explorer",
    "redraw_seconds",
    "slice_browser",
    "slice_html",
]
