"""Pictures of volumes as plain arrays: what a slider shows, live or on a page without a kernel.

:func:`three_linked_planes` makes the array for both, so that they cannot disagree; a :class:`Card` puts a row of such
arrays into a page with a slider that needs nothing but the page.
"""

from __future__ import annotations

import base64
import html
import io
import zlib
from collections.abc import Sequence

import numpy as np

from labkit.data.grids import STUDY_SHAPE, STUDY_ZOOMS
from labkit.data.volumes import cube_side, cube_zooms, padding
from labkit.figures.style import PLANES, section
from labkit.markup import script_json

PIXELS_PER_MM = 7
GAP = 4  # pixels between planes
CROSS = 110  # added to the grey of voxels under the crosshair
BAR_MM = 5
NARROWEST = 480  # pixels of a card, where the page has them


def crop(
    volume: np.ndarray, shape: Sequence[int] = STUDY_SHAPE, zooms: Sequence[float] = STUDY_ZOOMS
) -> tuple[np.ndarray, tuple[float, ...]]:
    """The part of a cube (S, S, S), any S, that was scanned, without the padding, and its voxel size, mm.

    `shape` and `zooms` are of the scans that the cube stands for, voxels and mm.
    """
    side, size = cube_side(tuple(shape)), volume.shape[0]
    slices = []
    for (before, _), extent in zip(padding(tuple(shape), side), shape, strict=True):
        first, last = round(before * size / side), round((before + extent) * size / side)
        slices.append(slice(first, max(first + 1, last)))
    return volume[tuple(slices)], cube_zooms(shape, zooms, size)


def grey(values: np.ndarray, low: float = -1.0, high: float = 1.0) -> np.ndarray:
    """Values as uint8, `low` black and `high` white."""
    return np.round(np.clip((values - low) / (high - low), 0, 1) * 255).astype(np.uint8)


def three_linked_planes(
    volume: np.ndarray,
    at: Sequence[float] = (0.5, 0.5, 0.5),
    shape: Sequence[int] = STUDY_SHAPE,
    zooms: Sequence[float] = STUDY_ZOOMS,
    cross: bool = True,
) -> np.ndarray:
    """Coronal, sagittal and horizontal section through one point, side by side, true to scale.

    Of a volume (S, S, S) in [-1, 1], axes right, superior, anterior, which stands for scans of `shape` and `zooms`;
    `at` is the point, as parts of the field of view from left, base and caudal end, [0, 1], and `cross` marks it by
    lines. The picture is uint8 (rows, columns), black -1 and white 1, with a bar of 5 mm.
    """
    from PIL import Image

    part, voxel = crop(volume, shape, zooms)
    part = grey(part)
    index = [min(int(share * extent), extent - 1) for share, extent in zip(at, part.shape, strict=True)]
    pixels = [max(1, round(n * size * PIXELS_PER_MM)) for n, size in zip(part.shape, voxel, strict=True)]
    pictures = []
    for plane in PLANES.values():
        cut = Image.fromarray(section(part, plane, index[plane.axis])[::-1])
        picture = np.array(cut.resize((pixels[plane.across], pixels[plane.up]), Image.Resampling.BILINEAR))
        if cross:
            row = int((1 - (index[plane.up] + 0.5) / part.shape[plane.up]) * picture.shape[0])
            column = int((index[plane.across] + 0.5) / part.shape[plane.across] * picture.shape[1])
            for line in (picture[row], picture[:, column]):
                line[:] = np.minimum(line.astype(int) + CROSS, 255)
        pictures.append(picture)
    height = max(picture.shape[0] for picture in pictures)
    whole = np.hstack([np.pad(p, ((0, height - p.shape[0]), (0, GAP))) for p in pictures])
    length = round(BAR_MM * PIXELS_PER_MM)
    whole[-8:-5, whole.shape[1] - GAP - 6 - length : whole.shape[1] - GAP - 6] = 255
    return whole


PLANE_TITLES = ("coronal: left on the left", "sagittal: rostral on the right", "horizontal: rostral on top")
"""What the three pictures of `three_linked_planes` are, in order."""


def png(picture: np.ndarray) -> bytes:
    """A uint8 picture, (rows, columns) or with colours (rows, columns, 3), as a PNG file; 96 colours at most."""
    from PIL import Image

    buffer = io.BytesIO()
    image = Image.fromarray(picture)
    if picture.ndim == 3:  # drawings have few colours, and take a third of the space
        image = image.quantize(96, dither=Image.Dither.NONE)
    image.save(buffer, format="png", compress_level=6)
    return buffer.getvalue()


def data_url(png: bytes) -> str:
    """A PNG file as the address of a picture in a page."""
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"


def image_html(png: bytes, words: str, style: str) -> str:
    """A PNG file as an HTML image with `words` for those who do not see it."""
    return f'<img alt="{html.escape(words, quote=True)}" style="{style}" src="{data_url(png)}">'


_STEP = """
(function () {
  var card = document.getElementById("%s"), words = JSON.parse(card.querySelector("script").textContent);
  var input = card.querySelector("input"), picture = card.querySelector("[role=img]");
  var output = card.querySelector("output");
  function show() {
    var i = +input.value;
    picture.style.backgroundPosition = "0 " + (100 * i / Math.max(1, words.length - 1)) + "%%";
    picture.setAttribute("aria-label", words[i]);
    input.setAttribute("aria-valuetext", words[i]);
    output.textContent = words[i];
  }
  input.addEventListener("input", show);
  show();
})();
"""


class Card:
    """Pictures under a slider, in one piece of HTML that works from a file, without a kernel and without a network.

    Pictures are uint8 (rows, columns), or (rows, columns, 3) in colour, all of one shape; `words` say what each shows,
    `label` what the slider moves. The middle one is shown first unless `start` says another. `size_mm` is the height
    and width that a picture stands for, where its pixels are not square.
    """

    def __init__(
        self,
        pictures: Sequence[np.ndarray],
        words: Sequence[str],
        label: str,
        start: int | None = None,
        size_mm: tuple[float, float] | None = None,
    ) -> None:
        if not pictures or len(pictures) != len(words) or len({picture.shape for picture in pictures}) != 1:
            raise ValueError("a card needs pictures of one shape, and words for each")
        self.pictures, self.words, self.label = [np.asarray(p) for p in pictures], list(words), label
        self.start = len(words) // 2 if start is None else start
        self.size = size_mm or self.pictures[0].shape[:2]

    def html(self) -> str:
        """The card."""
        sheet = png(np.vstack(self.pictures))
        name = f"card-{zlib.crc32(sheet + self.label.encode()):08x}"
        height, width = self.size
        words = script_json(self.words)
        label, first = html.escape(self.label), html.escape(self.words[self.start], quote=True)
        place = 100 * self.start / max(1, len(self.words) - 1)
        return (
            f'<div id="{name}" class="card-frames" style="max-width:{max(NARROWEST, self.pictures[0].shape[1])}px">'
            f'<div role="img" aria-label="{first}" style="width:100%;aspect-ratio:{width:.4g}/{height:.4g};'
            f'background:#000 url({data_url(sheet)}) 0 {place:.4f}%/100% {100 * len(self.words)}%"></div>'
            f'<label style="display:block">{label} <input type="range" min="0" max="{len(self.words) - 1}" '
            f'value="{self.start}" style="width:100%"></label><output>{first}</output>'
            f'<script type="application/json">{words}</script></div><script>{_STEP % name}</script>'
        )

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        return {"text/html": self.html(), "text/plain": f"{self.label}: {len(self.words)} pictures under a slider"}


_CHOOSE = """
(function () {
  var cards = document.getElementById("%s"), select = cards.querySelector("select");
  function show() {
    cards.querySelectorAll(":scope > div").forEach(function (card, i) { card.hidden = i !== select.selectedIndex; });
  }
  select.addEventListener("change", show);
  show();
})();
"""


class Cards:
    """Several cards, of which a list above them chooses one, as one output of a cell; `what` says what is chosen.

    Where no script runs, they stand one under the other.
    """

    def __init__(self, cards: Sequence[Card], what: str) -> None:
        self.cards, self.what = list(cards), what

    def html(self) -> str:
        """List and cards."""
        cards = "".join(f"<div>{card.html()}</div>" for card in self.cards)
        name = f"cards-{zlib.crc32(cards.encode()):08x}"
        options = "".join(f"<option>{html.escape(card.label)}</option>" for card in self.cards)
        choice = f'<label>{html.escape(self.what)} <select autocomplete="off">{options}</select></label>'
        return f'<div id="{name}" class="cards">{choice}{cards}</div><script>{_CHOOSE % name}</script>'

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        text = "\n".join(f"{card.label}: {len(card.words)} pictures" for card in self.cards)
        return {"text/html": self.html(), "text/plain": text}
