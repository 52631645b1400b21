"""Move through the latent space: sliders over `labkit.figures.traversals.view`, in a live kernel."""

from __future__ import annotations

import asyncio
import html
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from labkit.evidence import describe
from labkit.evidence.latent import LatentSpace
from labkit.figures import frames
from labkit.figures.traversals import REACH, View, view
from labkit.generation import save_volume, slerp
from labkit.widgets.browser import is_live

if TYPE_CHECKING:
    import ipywidgets

STARTS = {"a random animal": "random", "between two random animals": "random", "a scan, encoded": "encoded"}
"""Where a walk begins, and the kind of code that is."""

DEBOUNCE_S = 0.03
"""Controls that move within this time, seconds, are drawn once, as they stand at its end."""


class Explorer:
    """Controls, the scan they stand for, its picture; saved ones go to `folder`, default ``explored`` in the run."""

    def __init__(self, space: LatentSpace, folder: Path | None = None) -> None:
        import ipywidgets

        self.space, self.folder = space, folder or space.run.path / "explored"
        self.redraws = 0
        style, wide = {"description_width": "9rem"}, {"width": "auto", "max_width": "40rem"}

        def slider(low: float, high: float, value: float, step: float, name: str) -> ipywidgets.FloatSlider:
            return ipywidgets.FloatSlider(
                value, min=low, max=high, step=step, description=name, style=style, layout=wide, readout_format=".2f"
            )

        def whole(name: str, value: int) -> ipywidgets.BoundedIntText:
            return ipywidgets.BoundedIntText(value, min=0, max=9_999, description=name, style=style, layout=wide)

        self.start = ipywidgets.Dropdown(options=list(STARTS), description="begin with", style=style, layout=wide)
        self.seed, self.second = whole("random animal", 0), whole("other random animal", 1)
        self.truncation = slider(0, 1.5, 1, 0.05, "truncation")
        if not space.run.variant.feels_length:  # a control that does nothing is none
            self.truncation.layout.display = "none"
        self.mix = slider(0, 1, 0.5, 0.02, "way to the other")
        rats = [(f"{describe.scan_name(scan)} ({space.judges})", index) for index, scan in enumerate(space.held_out)]
        self.rat = ipywidgets.Dropdown(options=rats, description="scan", style=style, layout=wide)
        names = space.directions["random"].names
        self.moves = {name: slider(-REACH, REACH, 0, 0.1, name.split(",")[0] + ", SD") for name in names}
        sides = {"left to right": 0.5, "base to top": 0.55, "caudal to rostral": 0.5}
        self.at = [slider(0, 0.999, value, 0.01, name) for name, value in sides.items()]
        self.cross = ipywidgets.Checkbox(True, description="crosshair", indent=False)
        self.reset = ipywidgets.Button(description="all directions to 0", layout={"width": "12rem"})
        self.save = ipywidgets.Button(description="save as NIfTI", layout={"width": "12rem"})
        self.picture, self.words, self.saved = ipywidgets.HTML(), ipywidgets.HTML(), ipywidgets.HTML()
        for control in (self.start, self.seed, self.second, self.truncation, self.mix, self.rat, self.cross,
                        *self.moves.values(), *self.at):  # fmt: skip
            control.observe(lambda _: self._soon(), "value")
        self.reset.on_click(lambda _: self._to_zero())
        self.save.on_click(lambda _: self._save())
        self._timer: asyncio.TimerHandle | None = None
        self.draw()
        columns = {"grid_template_columns": "repeat(auto-fit, minmax(20rem, 1fr))", "grid_gap": "0 1rem"}
        # the picture first, so that it is in sight whichever control moves
        self.box = ipywidgets.VBox([
            self.picture, self.words,
            ipywidgets.GridBox([self.start, self.seed, self.second, self.mix, self.rat, self.truncation,
                                *self.moves.values(), *self.at], layout=columns),
            ipywidgets.HBox([self.cross, self.reset, self.save]), self.saved,
        ])  # fmt: skip

    @property
    def kind(self) -> str:
        """Kind of code that is shown."""
        return STARTS[self.start.value]

    def code(self) -> Tensor:
        """The code that the controls stand for, (Z,)."""
        space = self.space
        if self.kind == "encoded":
            base = space.held_out_codes[self.rat.value]
        else:
            base = space.random(self.seed.value, self.truncation.value)
            if self.start.value == "between two random animals":
                other = space.random(self.second.value, self.truncation.value)
                base = slerp(base, other, base.new_tensor([self.mix.value]))[0] if self.truncation.value else base
        return space.directions[self.kind].move(base, {name: one.value for name, one in self.moves.items()})

    def draw(self) -> None:
        """Show the animal that the controls stand for."""
        self._timer = None
        shown = view(self.space, self.code(), self.kind, [one.value for one in self.at], self.cross.value)
        self.picture.value, self.words.value = picture_html(shown), html.escape(shown.words)
        self.redraws += 1
        for control, when in ((self.seed, "random"), (self.truncation, "random"), (self.rat, "encoded")):
            control.disabled = self.kind != when
        self.second.disabled = self.mix.disabled = self.start.value != "between two random animals"

    def _soon(self) -> None:
        """Draw in a moment, once, however many controls moved: nothing stale waits in a queue."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # no front end that sends bursts
            self.draw()
            return
        if self._timer is None:  # one that waits already will draw what is newest then, also in the midst of a drag
            self._timer = loop.call_later(DEBOUNCE_S, self.draw)

    def _to_zero(self) -> None:
        for one in self.moves.values():
            one.value = 0

    def _save(self) -> None:
        volume = self.space.volume(self.code(), self.kind)
        suffix, number = self.space.run.file_template.suffix or "T2w", 0
        while (path := self.folder / f"sub-explored{number:03d}_desc-synthetic_{suffix}.nii.gz").exists():
            number += 1
        self.saved.value = ""
        try:
            save_volume(self.space.run, volume, path)
        except OSError as error:
            self.saved.value = f"not saved: {html.escape(str(error))}"
            return
        self.saved.value = f"saved as {html.escape(path.name)} in {html.escape(str(path.parent))}"


def picture_html(shown: View) -> str:
    """A view's picture as an HTML image that says in words what it shows."""
    words = "; ".join([*frames.PLANE_TITLES, shown.words])
    return frames.image_html(frames.png(shown.picture), words, "width: 100%; max-width: 48rem")


def latent_explorer(space: LatentSpace, live: bool | None = None) -> ipywidgets.VBox | None:
    """Sliders for directions, random animals, the way between two, and encode - edit - decode of a scan.

    None, after a printed hint, where no kernel is :func:`live <labkit.files.in_live_kernel>`, unless `live` overrules.
    """
    return Explorer(space).box if is_live("explorer", live) else None


def redraw_seconds(space: LatentSpace, times: int = 15) -> float:
    """Median time from a moved slider to a new picture with its nearest scan and readings, in seconds."""
    code = space.random(0)
    name = space.directions["random"].names[0]

    def one(step: int) -> float:
        began = time.perf_counter()
        picture_html(view(space, space.directions["random"].move(code, {name: step / times}), "random", cross=True))
        return time.perf_counter() - began

    one(0)  # the first decodes with cold caches, and computes what is kept
    return statistics.median(map(one, range(times)))
