"""Diagrams of the methods page, drawn from the networks as labkit builds them, as SVG."""

from __future__ import annotations

import html
from pathlib import Path

import labkit
from labkit import architecture

INK, PAPER = "#1b1b1b", "#ffffff"
COLOURS = {"G": "#b9d7ea", "D": "#f3d3a4", "E": "#b8e0d2", "C": "#e6c9dc"}
NAMES = architecture.NAMES


def _svg(width: int, height: int, parts: list[str], title: str) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'font-family="sans-serif" font-size="13"><title>{html.escape(title)}</title>'
        '<defs><marker id="tip" markerWidth="9" markerHeight="9" refX="7" refY="4" orient="auto">'
        f'<path d="M0,0 L8,4 L0,8 z" fill="{INK}"/></marker></defs>'
        f'<rect width="{width}" height="{height}" fill="{PAPER}"/>'
    )
    return head + "".join(parts) + "</svg>\n"


def _text(x: float, y: float, words: str, size: int = 13, anchor: str = "middle", weight: str = "normal") -> str:
    return (
        f'<text x="{x}" y="{y}" text-anchor="{anchor}" font-size="{size}" font-weight="{weight}" fill="{INK}">'
        f"{html.escape(words)}</text>"
    )


def _box(x: float, y: float, width: float, height: float, colour: str) -> str:
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="6" fill="{colour}" stroke="{INK}"/>'


def _arrow(*points: tuple[float, float], dashed: bool = False) -> str:
    path = " ".join(f"{x},{y}" for x, y in points)
    dash = ' stroke-dasharray="5 4"' if dashed else ""
    return f'<polyline points="{path}" fill="none" stroke="{INK}" stroke-width="1.5"{dash} marker-end="url(#tip)"/>'


def networks_svg(model: str = "sigmarat2", scale: str = "paper") -> str:
    """The four networks as rows of boxes: what each layer with weights puts out."""
    variant, size = labkit.resolve(model, scale)
    table = architecture.networks_table(variant, size)
    parts, y = [], 30
    for title, rows in table.groupby(level="network", sort=False):
        letter = title[0]
        rows = rows.droplevel("network")
        total = int(rows.loc["in all", "parameters"])
        layers = [(name, row) for name, row in rows.iterrows() if name != "in all" and row["parameters"]]
        parts.append(_text(20, y, f"{title}: {total / 1e6:.2f} million parameters", 15, "start", "bold"))
        inputs = f"code, {variant.latent_dim}" if letter in "GC" else "scan, 1 × " + " × ".join([str(size.size)] * 3)
        parts.append(_text(20, y + 48, inputs, 13, "start"))
        x, width = 190, 118
        for place, (name, row) in enumerate(layers):
            if place:
                parts.append(_arrow((x - 14, y + 42), (x - 2, y + 42)))
            else:
                parts.append(_arrow((x - 24, y + 42), (x - 2, y + 42)))
            parts.append(_box(x, y + 14, width, 56, COLOURS[letter]))
            kind = str(name).split(" ")[0]
            parts.append(_text(x + width / 2, y + 37, kind if len(kind) < 18 else kind[:17], 11))
            parts.append(_text(x + width / 2, y + 58, str(row["output"]), 11, weight="bold"))
            x += width + 16
        y += 110
    return _svg(900, y - 10, parts, f"The four networks of {model}")


def updates_svg() -> str:
    """One iteration: what flows where, and which update moves which network."""
    p = []
    p += [_box(20, 60, 100, 44, "#eeeeee"), _text(70, 80, "real scan"), _text(70, 96, "x")]
    p += [_box(20, 190, 100, 44, "#eeeeee"), _text(70, 210, "random code"), _text(70, 226, "z_r ~ N(0, I)")]
    p += [_box(180, 60, 60, 44, COLOURS["E"]), _text(210, 87, "E", 16, weight="bold")]
    p += [_box(300, 60, 90, 44, "#eeeeee"), _text(345, 80, "code"), _text(345, 96, "z_e = E(x)")]
    p += [_box(450, 60, 60, 44, COLOURS["G"]), _text(480, 87, "G", 16, weight="bold")]
    p += [_box(450, 190, 60, 44, COLOURS["G"]), _text(480, 217, "G", 16, weight="bold")]
    p += [_box(570, 60, 120, 44, "#eeeeee"), _text(630, 80, "reconstruction"), _text(630, 96, "G(z_e)")]
    p += [_box(570, 190, 120, 44, "#eeeeee"), _text(630, 210, "random scan"), _text(630, 226, "G(z_r)")]
    p += [_box(770, 125, 60, 44, COLOURS["D"]), _text(800, 152, "D", 16, weight="bold")]
    p += [_box(315, 125, 60, 44, COLOURS["C"]), _text(345, 152, "C", 16, weight="bold")]
    p += [_arrow((120, 82), (178, 82)), _arrow((240, 82), (298, 82)), _arrow((390, 82), (448, 82))]
    p += [_arrow((510, 82), (568, 82)), _arrow((120, 212), (448, 212)), _arrow((510, 212), (568, 212))]
    p += [_arrow((690, 82), (730, 82), (785, 123)), _arrow((690, 212), (730, 212), (785, 171))]
    p += [_arrow((345, 104), (345, 123)), _arrow((240, 212), (240, 147), (313, 147))]
    p += [_arrow((70, 60), (70, 30), (800, 30), (800, 123)), _text(430, 24, "real scans for D", 12)]
    p += [_arrow((630, 60), (630, 42), (70, 42), (70, 58), dashed=True), _text(270, 55, "reconstruction loss", 12)]
    legend = (
        (COLOURS["G"], "1", "moves E and G: adversarial terms, C(z_e), reconstruction. Equations 1, 2, 5, 6"),
        (COLOURS["D"], "2", "moves D: real against both kinds of synthetic, two gradient penalties. Equation 4"),
        (COLOURS["C"], "3", "moves C: encoded against random codes, one gradient penalty. Equation 3"),
    )
    for place, (colour, number, words) in enumerate(legend):
        y = 275 + 34 * place
        p += [
            _box(20, y, 30, 24, colour),
            _text(35, y + 17, number, weight="bold"),
            _text(62, y + 17, words, 13, "start"),
        ]
    return _svg(860, 385, p, "One iteration of an alpha-GAN: three updates")


def parameters_table() -> str:
    """Parameters of each network of each model at the paper's scale, as Markdown."""
    lines = ["| model | latent size | " + " | ".join(f"{k}, million" for k in "GDEC") + " |", "|---" * 6 + "|"]
    for model in ("adni", "sigmarat1", "sigmarat2"):
        variant, scale = labkit.resolve(model, "paper")
        sums = architecture.networks_table(variant, scale)["parameters"].xs("in all", level="layer")
        cells = " | ".join(f"{value / 1e6:.2f}" for value in sums)
        lines.append(f"| `{model}` | {variant.latent_dim} | {cells} |")
    return "\n".join(lines) + "\n"


def write(folder: Path) -> None:
    """All of them, into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "networks.svg").write_text(networks_svg(), encoding="utf-8")
    (folder / "updates.svg").write_text(updates_svg(), encoding="utf-8")
    (folder / "parameters.md").write_text(parameters_table(), encoding="utf-8")
