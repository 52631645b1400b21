"""Figures one can hover over and zoom, with a picture in their place wherever scripts do not run."""

from __future__ import annotations

import io
import json
import zlib
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

from labkit.figures.frames import image_html
from labkit.files import in_live_kernel
from labkit.markup import script_json

if TYPE_CHECKING:
    import plotly.graph_objects as go

_DRAW = """
(function () {
  var place = document.getElementById("%(id)s"), content = JSON.parse(place.querySelector("script").textContent);
  function draw() {
    if (!window.Plotly) { return; }
    var still = place.querySelector("img");
    content.layout.width = undefined;
    var options = {responsive: true, displaylogo: false};
    window.Plotly.newPlot(place.querySelector("div"), content.data, content.layout, options)
      .then(function () { still.style.display = "none"; });
  }
  if (window.Plotly) { draw(); } else { window.addEventListener("load", draw); }
})();
"""


class Interactive:
    """A plotly figure, and `still`, a picture of the same for every other reader, with `alt`, words for it.

    A live notebook draws the plotly figure. A built page shows the picture at once, and the plotly figure in its place
    if the page carries plotly's script; nothing is fetched from anywhere.
    """

    def __init__(self, figure: go.Figure, still: Figure, alt: str) -> None:
        self.figure, self.still, self.alt = figure, still, alt

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        content = json.loads(self.figure.to_json())
        bundle = {"text/html": self._html(content), "text/plain": self.alt}
        # pages built from executed notebooks do not know plotly's own kind of output, and warn of it
        return {"application/vnd.plotly.v1+json": content, **bundle} if in_live_kernel() else bundle

    def _html(self, content: dict[str, Any]) -> str:
        picture = io.BytesIO()
        self.still.savefig(picture, format="png", dpi=130, bbox_inches="tight")
        # the same figure has the same name in every build, and two on a page differ
        name = f"interactive-{zlib.crc32(picture.getvalue()):08x}"
        carried = script_json({"data": content["data"], "layout": content["layout"]})
        return (
            f'<div id="{name}" class="interactive-figure"><div></div>'
            f"{image_html(picture.getvalue(), self.alt, 'max-width:100%')}"
            f'<script type="application/json">{carried}</script></div>'
            f"<script>{_DRAW % {'id': name}}</script>"
        )
