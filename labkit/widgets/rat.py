"""The page that makes rats: an atlas packed for a browser, which needs no kernel, no server and no network.

What a page holds is the model itself, rounded finely enough that the same code gives the same scan: within a hundredth
of the intensity range, labels in 999 of 1000 voxels. ``rat_model.js`` has the formula, ``rat_files.js`` writes the
files, ``rat.js`` is what a reader sees.
"""

from __future__ import annotations

import base64
import functools
import json
import os
import zlib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import colormaps
from matplotlib.colors import to_hex
from torch import Tensor

from labkit import warps
from labkit.atlas import Atlas
from labkit.cards import card_text
from labkit.data import bids, volumes
from labkit.data.cohort import Cohort, Scan
from labkit.data.file_template import SYNTHETIC
from labkit.data.grids import STUDY_AXES, axis_change
from labkit.data.labels import LABEL_NAMES, TISSUE_NAMES
from labkit.evidence import attributes, describe
from labkit.figures import frames
from labkit.figures.style import PLANES, TISSUE_COLOURS
from labkit.files import in_live_kernel, located, write_text
from labkit.generation import air_field, decode, encode, generated_by, labelled_batches
from labkit.runs import Run, load_run

if TYPE_CHECKING:
    import anywidget

ESM = """
export default {
  render({ model, el }) {
    const code = (values) => { model.set("code", Array.from(values)); model.save_changes(); };
    const data = model.get("data");
    return rats(el, new Uint8Array(data.buffer, data.byteOffset, data.byteLength), { code });
  },
};
"""
"""What makes a widget of the page's controls."""

MARK = "data-rats"
"""Attribute of the place for the controls, and of the script that fills it."""

MOST = 2**15 - 1
"""Steps that a number may be away from zero."""

TINTS = colormaps["tab20"].colors
"""Of labels that are not the study's tissues."""

PLAINER = {"to the right": "position, right", "dorsal": "position, dorsal", "dorsal / ventral": "brightness, dorsal",
           "pitch": "pitch, nose up"}  # fmt: skip
"""What sliders call attributes whose names say too little beside one."""

STEPS = {"template": 0.004, "appearances": 0.002, "spread": 0.0005}
"""Grey values of [0, 1] that a volume's are rounded to."""

FINER = 4
"""How much more finely of scans that were cut out of their heads, where rounding could make a voxel black."""

LOG_STEP, LEAST_LIKELY = 0.125, 15.0
"""What natural logarithms of probabilities are rounded to, and how far below the largest they are told apart."""

GREY = 0.0005
"""Grey values, moved, that a mode's numbers are rounded to."""

CODE_STEP = 1 / 32
"""Standard deviations that training animals' codes are rounded to."""

NAMED = 24
"""Modes among which the direction of an attribute is looked for; later ones hardly move anything that has a name."""

FIRST_MODES = 4
"""Modes with a slider of their own, beside the attributes."""

SWING = 1.5
"""Standard deviations to either side over which a mode's effect on attributes is measured."""

MOSTLY = 0.3
"""Share of an attribute's variance from which a mode is called by it."""


def export_page(run: Run | str | os.PathLike, path: str | os.PathLike, modes: int = 100, animals: bool = True) -> Path:
    """Write an atlas as one ``.js`` file that draws rats in any web page, from a server or from a disk.

    The same code gives the same scan as in Python, within a hundredth of the intensity range, and the same labels in
    999 of 1000 voxels; of scans that were cut out of their heads a voxel at the rim may be black in one of the two.

    A page needs ``<div data-rats></div>`` where the controls shall stand, and ``<script src="rats.js"></script>``
    anywhere; what stands in the ``div`` is what a reader sees where no script runs. The file asks no other file or
    host for anything.

    Parameters
    ----------
    run : Run or path
        An atlas, trained (``labkit.train("atlas", cohort)``).
    path : path
        ``.js``; it is replaced if it is there.
    modes : int
        How many of the atlas's modes the page holds, those that move most first; codes are 0 in all others. The
        published atlas's first 100 of 500 make 90 % of the variance, in 4 MB.
    animals : bool
        Whether the page has the codes of the training animals, to tell how near a rat is to the nearest of them.
        From an animal's code its scan can be made again, roughly: False for scans that are not to be given away.

    Returns
    -------
    Path

    Raises
    ------
    ValueError
        The run is not an atlas's, or `modes` is not 1 or more.
    RunError
        It has no weights, or its training scans cannot be opened.

    Examples
    --------
    >>> path = labkit.export_page(atlas, folder / "rats.js")
    >>> path.stat().st_size > 10_000
    True
    """
    target = located(path)
    if target.suffix != ".js":
        raise ValueError(f"path={str(path)!r}: a page's script, so that its name ends in .js")
    write_text(target, RatPage(run, modes, animals).script())
    return target


class RatPage:
    """An atlas as HTML that makes rats in the browser; a notebook shows it as a cell's value.

    Parameters are those of :func:`export_page`.
    """

    def __init__(self, run: Run | str | os.PathLike, modes: int = 100, animals: bool = True) -> None:
        self.run = run if isinstance(run, Run) else load_run(run)
        if self.run.variant.name != "atlas":
            raise ValueError(f"{self.run.path.name} is of {self.run.variant.name}: only an atlas fits into a page")
        atlas = self.run.generator("cpu").atlas
        if isinstance(modes, bool) or not isinstance(modes, int) or modes < 1:
            raise ValueError(f"modes={modes!r}: how many of the {atlas.latent_dim} modes, 1 or more")
        self.modes = min(modes, atlas.latent_dim)
        self.data = packed(self.run, atlas, self.modes, animals)

    def script(self) -> str:
        """What :func:`export_page` writes."""
        data = base64.b64encode(self.data).decode("ascii")
        code = "\n".join(map(asset, ("rat_model.js", "rat_files.js", "rat.js")))
        # a page may not say in which letters it is written
        code = "".join(letter if ord(letter) < 128 else f"\\u{ord(letter):04x}" for letter in code)
        return f"(function () {{\n{code}\nratsInPage({json.dumps(asset('rat.css'))}, {json.dumps(data)});\n}})();\n"

    def html(self) -> str:
        """The part of a page, script included."""
        return f"{self.place()}<script {MARK}>{self.script()}</script>"

    def place(self) -> str:
        """Where a page has the controls, with a picture until they are there."""
        words = f"The mean rat in three planes; {'; '.join(frames.PLANE_TITLES)}"
        return f'<div {MARK} class="rats">{frames.image_html(self.still(), words, "max-width: 100%")}</div>'

    def still(self) -> bytes:
        """The mean rat as a PNG, for readers whose browser runs no scripts."""
        run = self.run
        volume = decode(run, torch.zeros(1, run.variant.latent_dim), "random", "cpu", noise=False)[0, 0].numpy()
        template = run.file_template
        return frames.png(frames.three_linked_planes(volume, (0.5,) * 3, template.shape, template.zooms))

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        return {"text/html": self.html(), "text/plain": f"rats by {self.run.path.name}, drawn in a browser"}


def rats(run: Run | str | os.PathLike, live: bool | None = None) -> anywidget.AnyWidget | RatPage:
    """The controls of :func:`export_page` in a notebook: a widget in a live kernel, otherwise a part of the page.

    The widget's ``code`` is the code that the controls stand for, as a list of numbers: ``labkit.decode(run,
    torch.tensor([widget.code]))`` is the scan that is seen.
    """
    page = RatPage(run)
    return _widget_class()(data=page.data) if (in_live_kernel() if live is None else live) else page


class Part(NamedTuple):
    """An array as a page holds it: numbers are whole multiples of `step`, or kept as they are where that is None.

    With a step of 0 the page keeps them whole. What is kept is their difference, flattened, from the number so many
    places before, for each of `delta` in turn: neighbours are alike.
    """

    name: str
    values: Tensor
    step: float | None
    delta: tuple[int, ...] = ()

    def content(self) -> tuple[dict[str, Any], bytes]:
        """What the header says of it, and its bytes: all lower ones, then, if there are any, all higher ones."""
        about = {"name": self.name, "size": self.values.numel(), "step": self.step, "delta": list(self.delta)}
        flat = self.values.detach().cpu().flatten().numpy()
        if self.step is None:
            return about | {"width": 4}, flat.astype("<f4").tobytes()
        whole = np.round(flat.astype(np.float64) / (self.step or 1))
        if np.abs(whole).max(initial=0) > MOST:
            raise ValueError(f"{self.name} is too large for a page: {np.abs(flat).max():.3g} in steps of {self.step:g}")
        whole = whole.astype(np.int16)
        for stride in self.delta:
            whole[stride:] -= whole[:-stride].copy()  # modulo 2^16, as the page adds them up
        small = np.abs(whole.astype(np.int32)).max(initial=0) < 128
        planes = whole.astype("<i2").view(np.uint8).reshape(-1, 2).T
        return about | {"width": 1 if small else 2}, planes[: 1 if small else 2].tobytes()


def packed(run: Run, atlas: Atlas, modes: int, animals: bool = True) -> bytes:
    """All that a page knows of an atlas: a header in JSON, then its arrays, deflated together."""
    state, geometry, scans = atlas.state, atlas.geometry, run.cohort()
    train, held_out = run.train_part(scans), run.held_out(scans)
    basis, centre = state["basis"][:modes], state["centre"]
    grain = {name: step / FINER if atlas.black else step for name, step in STEPS.items()}
    most = torch.maximum(basis.abs().amax(0), centre.abs()) / MOST
    # powers of the root of 2, so that the steps themselves are small whole numbers
    exponents = (2 * torch.log2(GREY / state["weights"].clamp_min(0.1))).floor().maximum((2 * torch.log2(most)).ceil())
    steps = 2 ** (exponents / 2)
    parts = [
        Part("template", state["template"], grain["template"], (1, geometry.template_shape[2])),
        *(Part(name, state[name], grain[name]) for name in ("appearances", "spread")),
        Part("exponents", exponents, 0.0), Part("basis", basis / steps, 1.0), Part("centre", centre / steps, 1.0),
        *(Part(f"{name}_{axis}", matrix, None) for name, matrices in (
            ("to_flow", geometry.to_flow), ("to_voxels", geometry.to_voxels), ("to_bright", geometry.to_bright),
            ("filter", [state[f"filter_{axis}"] for axis in "xyz"]),
        ) for axis, matrix in zip("xyz", matrices, strict=True)),
    ]  # fmt: skip
    labels = [] if "label_logits" not in state else _labels(run, state["label_values"].tolist(), train)
    if labels:
        parts.append(Part("logits", only_edges(state["label_logits"]) / LOG_STEP, 0.0))
    if geometry.shape != run.file_template.shape:
        parts += [Part(f"to_file_{'xyz'[axis]}", _resizing(run, atlas, axis), None) for axis in range(3)]
    sliders, directions = _sliders(run, atlas, train[0], modes)
    parts.append(Part("directions", directions, None))
    near: dict[str, Any] = {"animals": [], "usual": None}
    if animals:
        codes = encode(run, train, "cpu")[:, :modes]
        parts.append(Part("codes", codes, CODE_STEP))
        near["animals"] = train.subjects
        if len(held_out):
            apart = torch.cdist(encode(run, held_out, "cpu")[:, :modes], codes).amin(1)
            near["usual"] = float(apart.median())
    sides = zip(run.file_template.zooms, run.file_template.shape, geometry.shape, strict=True)
    zooms = [mm * n / own for mm, n, own in sides]
    header = {
        "latent": atlas.latent_dim, "modes": modes, "share": float(atlas.modes["share"][:modes].sum()),
        "shape": geometry.shape, "zooms": zooms, "factor": geometry.factor,
        "knots": geometry.knots, "coarse": [len(matrix) for matrix in geometry.to_flow], "bright": geometry.bright,
        "sizes": list(geometry.sizes.values()), "squarings": geometry.squarings, "floor": warps.JACOBIAN_FLOOR,
        "noise": atlas.noise, "black": atlas.black, "labels": labels, "sliders": sliders, **near,
        "planes": [plane._asdict() for plane in PLANES.values()], "files": _files(run),
    }  # fmt: skip
    contents = [part.content() for part in parts]
    text = json.dumps(header | {"arrays": [about for about, _ in contents]}).encode("ascii")
    return zlib.compress(b"".join([len(text).to_bytes(4, "little"), text, *(content for _, content in contents)]), 9)


def only_edges(logits: Tensor) -> Tensor:
    """Log-probabilities (1, K, X, Y, Z), their largest 0, which give the same labels between voxels, and pack well.

    Where a voxel and all its neighbours have one label, no point between them has another, however sure it is.
    """
    relative = (logits - logits.amax(1, keepdim=True)).clamp_min(-LEAST_LIKELY)
    first = logits.argmax(1, keepdim=True)
    place = first.float()
    inside = F.max_pool3d(place, 3, 1, 1) == -F.max_pool3d(-place, 3, 1, 1)
    sure = torch.full_like(logits, -1).scatter_(1, first, 0)
    return torch.where(inside, sure, relative)


def _labels(run: Run, values: Iterable[int], train: Cohort) -> list[dict[str, Any]]:
    """Each label's name, colour, and volume in real animals: 5th, 50th and 95th percentile, mm³."""
    mm3 = [
        np.bincount(scan.labels.ravel(), minlength=256) * describe.voxel_mm3(scan)
        for scan in train if scan.labels is not None
    ]  # fmt: skip
    values, found, own = list(values), [], run.file_template.label_names
    study = {label: name for label, name in LABEL_NAMES.items() if label}
    tissues = set(values) - {0} == set(TISSUE_NAMES) and own in ({}, study)
    names = TISSUE_NAMES if tissues else own
    for value in values:
        tint = TISSUE_COLOURS[names[value]] if tissues and value else to_hex(TINTS[(value - 1) % len(TINTS)])
        usual = np.percentile([own[value] for own in mm3], (5, 50, 95)).tolist() if mm3 else None
        name = names.get(value, f"label {value}") if value else "background"
        found.append({"value": value, "name": name, "colour": tint if value else None, "usual": usual})
    return found


def _resizing(run: Run, atlas: Atlas, axis: int) -> Tensor:
    """The matrix along an axis that brings an atlas's own grid to that of its files, which is finer or coarser."""
    shape, size, n = run.file_template.shape, run.scale.size, atlas.geometry.full[axis]
    lines = []
    for place in range(atlas.place[axis], atlas.place[axis] + n):
        cube = torch.zeros(1, 1, *(size,) * 3)
        cube.select(2 + axis, place).fill_(1)
        whole = volumes.crop_from_cube(volumes.resize(cube, volumes.cube_side(shape)), shape)[0]
        lines.append(whole.movedim(axis, 0)[:, 0, 0])  # the same on every line along the axis
    return torch.stack(lines, 1)


def _sliders(run: Run, atlas: Atlas, like: Scan, modes: int) -> tuple[list[dict[str, str]], Tensor]:
    """Names of directions, and the directions, (n, modes), of length 1: of attributes, then the first modes.

    How each of the first modes moves the mean animal's attributes is measured; an attribute changes fastest along the
    vector of these slopes.
    """
    count = min(NAMED, modes)
    ends = SWING * torch.eye(atlas.latent_dim)[:count]
    shape, scans = run.file_template.shape, []
    side = volumes.cube_side(shape)
    for cubes, maps in labelled_batches(run.generator("cpu", noise=False), torch.cat([ends, -ends])):
        images = volumes.crop_from_cube((volumes.resize(cubes, side) + 1) / 2, shape).numpy()
        labels = [None] * len(images)
        if maps is not None:
            labels = list(volumes.crop_from_cube(volumes.resize_labels(maps, side), shape).numpy())
        scans += [replace(like, image=one, labels=own) for one, own in zip(images, labels, strict=True)]
    table = attributes.measure(scans)
    slopes = torch.from_numpy((table.iloc[:count].to_numpy() - table.iloc[count:].to_numpy()) / (2 * SWING)).float()
    swing = slopes.norm(dim=0)
    moved = [k for k, name in enumerate(table) if swing[k] > 1e-4 * abs(table[name]).mean()]
    sliders, rows = [], torch.zeros(len(moved) + min(FIRST_MODES, count), modes)
    for row, k in enumerate(moved):
        name, _, unit = table.columns[k].partition(", ")
        amount = f"{swing[k]:.2g} {unit}".strip()
        sliders.append({"name": PLAINER.get(name, name), "words": f"a standard deviation is {amount}"})
        rows[row, :count] = slopes[:, k] / swing[k]
    for mode in range(min(FIRST_MODES, count)):
        shares = {table.columns[k].partition(", ")[0]: float((slopes[mode, k] / swing[k]) ** 2) for k in moved}
        best = max(shares, key=lambda name: shares[name], default="")
        said = f": {PLAINER.get(best, best)}" if shares.get(best, 0) > MOSTLY else ""
        words = f"{100 * float(atlas.modes['share'][mode]):.0f} % of the variance of grey values"
        sliders.append({"name": f"mode {mode + 1}{said}", "words": words})
        rows[len(moved) + mode, mode] = 1
    return sliders, rows


def _files(run: Run) -> dict[str, Any]:
    """What the page has to know to write scans and label maps as :func:`labkit.generate` does."""
    template, name = run.file_template, "synthetic%05d"
    cube = torch.zeros(1, *(max(template.shape),) * 3)
    scan = bids.scan_path("NAME", suffix=template.suffix, description="synthetic")
    about = {
        "Synthetic": True, "Description": SYNTHETIC, "Model": run.variant.name, "RunFingerprint": run.fingerprint,
    }  # fmt: skip
    made = {"run": run.path.name, "model": run.variant.name, "scale": run.scale.name,
            "run_fingerprint": run.fingerprint, "training_fingerprint": run.config["train"]["fingerprint"]}  # fmt: skip
    texts = {
        "dataset_description.json": json.dumps(
            bids.dataset_description(f"Synthetic brain scans by {run.path.name}", "derivative", Synthetic=True,
                             **generated_by(run), **made), indent=2) + "\n",
        "README.md": card_text(run, run.fingerprint),
    }  # fmt: skip
    if template.label_names:
        rows = {0: "background", **template.label_names}.items()
        texts["dseg.tsv"] = bids.table_text({"index": index, "name": label} for index, label in rows)
    return {
        "name": name, "path": scan.as_posix(), "shape": template.shape,
        "scan": _like(template.image(cube, np.random.default_rng(0))),
        "labels": _like(template.label_image(cube.to(torch.uint8))),
        "turn": axis_change("".join(STUDY_AXES), template.origin.axes).astype(int).tolist(),
        "air": template.origin.air, "ranges": template.ranges, "texts": texts,
        "sidecar": about | air_field(template.origin),
    }  # fmt: skip


def _like(image: nib.Nifti1Image) -> dict[str, Any]:
    """What stands before the voxels of a file like an image, with their type; lowest bytes first."""
    content = type(image)(np.asarray(image.dataobj), image.affine, image.header.as_byteswapped("<")).to_bytes()
    voxels = image.dataobj.size * image.get_data_dtype().itemsize
    return {"type": image.get_data_dtype().name, "before": base64.b64encode(content[:-voxels]).decode("ascii")}


def header(data: bytes) -> dict[str, Any]:
    """What a page knows of an atlas but for its arrays."""
    content = zlib.decompress(data)
    return json.loads(content[4 : 4 + int.from_bytes(content[:4], "little")])


def asset(name: str) -> str:
    """The text of a file beside this one."""
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


@functools.cache
def _widget_class() -> type:
    import anywidget
    import traitlets

    class Rats(anywidget.AnyWidget):
        """Draws rats in the front end; the kernel only hears of the code that is shown."""

        _esm = "\n".join(map(asset, ("rat_model.js", "rat_files.js", "rat.js"))) + ESM
        _css = asset("rat.css")
        data = traitlets.Bytes().tag(sync=True)
        code = traitlets.List(traitlets.Float()).tag(sync=True)

    return Rats
