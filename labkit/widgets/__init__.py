"""Front ends: controls over the functions of labkit.figures in a live notebook, and pages that need none."""

from labkit.files import in_live_kernel
from labkit.widgets.browser import slice_browser, slice_html
from labkit.widgets.explorer import Explorer, latent_explorer, redraw_seconds
from labkit.widgets.judge import JudgePage, judge
from labkit.widgets.rat import RatPage, export_page, rats

__all__ = [
    "Explorer",
    "JudgePage",
    "RatPage",
    "export_page",
    "in_live_kernel",
    "judge",
    "latent_explorer",
    "rats",
    "redraw_seconds",
    "slice_browser",
    "slice_html",
]
