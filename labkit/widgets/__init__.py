"""Front ends for a live notebook: controls over the functions of labkit.figures."""

from labkit.progress import in_live_kernel
from labkit.widgets.blind_test import JudgePage, judge
from labkit.widgets.browser import NOT_LIVE, slice_browser, slice_html
from labkit.widgets.explorer import Explorer, latent_explorer, redraw_seconds

__all__ = [
    "NOT_LIVE",
    "Explorer",
    "JudgePage",
    "in_live_kernel",
    "judge",
    "latent_explorer",
    "redraw_seconds",
    "slice_browser",
    "slice_html",
]
