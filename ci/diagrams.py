"""Diagrams of the methods page, drawn from the networks as labkit builds them, as SVG."""

from __future__ import annotations

import html
from pathlib import Path

from chapters import MODELS

import labkit
from labkit.figures import architecture

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


WIDTH = 480
"""Of a diagram: a phone's, so that words stay readable there."""

KINDS = {"transposed": "transposed conv", "upsample": "double, conv", "conv": "conv", "linear": "linear"}


def networks_svg() -> str:
    """SigmaRat2's networks as rows of boxes: what each layer with weights puts out, a larger cube as a taller box."""
    variant, size = labkit.resolve("sigmarat2", "paper")
    table = architecture.networks_table(variant, size)
    parts, y = [], 24
    for title, rows in table.groupby(level="network", sort=False):
        rows = rows.droplevel("network")
        total = int(rows.loc["in all", "parameters"])
        layers = [(str(name), row) for name, row in rows.iterrows() if name != "in all" and row["parameters"]]
        inputs = f"a code of {variant.latent_dim}" if title[0] in "GC" else f"a scan of {size.size}³"
        second = layers[1 if len(layers) > 2 else 0][0].split(", ")
        hidden = ", ".join(word for word in second if "orm" in word or "ReLU" in word)
        parts.append(_text(10, y, f"{title}: {total / 1e6:.2f} million", 14, "start", "bold"))
        parts.append(_text(10, y + 18, f"from {inputs}; hidden layers: {hidden or 'plain'}", 11, "start"))
        x, width, middle = 10, 82, y + 72
        for place, (name, row) in enumerate(layers):
            channels, *sides = str(row["output"]).split(" × ")
            height = 46 + 7 * (int(sides[0]) if sides else 1).bit_length()
            if place:
                parts.append(_arrow((x - 12, middle), (x - 1, middle)))
            parts.append(_box(x, middle - height / 2, width, height, COLOURS[title[0]]))
            kind = KINDS[name.split(" ")[0]]
            words = kind.split(" ") if name.startswith("transposed") else [kind]
            shape = f"{channels} × {sides[0]}³" if sides else channels
            for line, word in enumerate([*words, shape]):
                lift = middle + 4 + 15 * (line - len(words) / 2)
                parts.append(_text(x + width / 2, lift, word, 12, weight="bold" if word == shape else "normal"))
            x += width + 13
        y += 142
    return _svg(WIDTH + 10, y - 20, parts, "The four networks of sigmarat2")


def updates_svg() -> str:
    """One iteration: what flows where, and which update moves which network."""
    left, right, middle, plain = 90, 390, 240, "#eeeeee"
    p = []

    def thing(x: float, y: float, first: str, second: str) -> None:
        p.extend([_box(x - 60, y, 120, 44, plain), _text(x, y + 19, first), _text(x, y + 36, second)])

    def network(x: float, y: float, letter: str) -> None:
        p.extend([_box(x - 30, y, 60, 40, COLOURS[letter]), _text(x, y + 26, letter, 16, weight="bold")])

    thing(left, 20, "real scan", "x")
    thing(right, 186, "random code", "z_r ~ N(0, I)")
    network(left, 104, "E")
    thing(left, 186, "code", "z_e = E(x)")
    network(middle, 188, "C")
    network(left, 270, "G")
    network(right, 270, "G")
    thing(left, 350, "reconstruction", "G(z_e)")
    thing(right, 350, "random scan", "G(z_r)")
    network(middle, 430, "D")
    for x in (left, right):
        p += [_arrow((x, 230), (x, 268)), _arrow((x, 310), (x, 348))]
    p += [_arrow((left, 64), (left, 102)), _arrow((left, 144), (left, 184))]
    p += [_arrow((left + 60, 208), (middle - 32, 208)), _arrow((right - 60, 208), (middle + 32, 208))]
    p += [_arrow((left, 394), (left, 443), (middle - 32, 443)), _arrow((right, 394), (right, 450), (middle + 32, 450))]
    p += [
        _arrow((left - 60, 42), (12, 42), (12, 460), (middle - 32, 460)),
        _text(20, 478, "real scans for D", 12, "start"),
    ]
    p += [_arrow((left + 60, 364), (178, 364), (178, 42), (left + 62, 42), dashed=True)]
    p += [_text(186, 128, "reconstruction loss", 12, "start")]
    legend = (
        (COLOURS["G"], "1", "moves E and G: adversarial terms, C(z_e),", "reconstruction. Equations 1, 2, 5, 6"),
        (COLOURS["D"], "2", "moves D, on fresh scans and fresh codes:", "real against both kinds. Equation 4"),
        (COLOURS["C"], "3", "moves C: codes of the scans that D saw", "against fresh random codes. Equation 3"),
    )
    for place, (colour, number, first, second) in enumerate(legend):
        y = 500 + 46 * place
        p += [_box(10, y, 30, 32, colour), _text(25, y + 21, number, weight="bold")]
        p += [_text(50, y + 13, first, 13, "start"), _text(50, y + 30, second, 13, "start")]
    return _svg(WIDTH, 640, p, "One iteration of an alpha-GAN: three updates")


def models_table() -> str:
    """What tells the models apart at the paper's scale, a column a model, as Markdown."""
    networks = {"G": "generator", "D": "discriminator", "E": "encoder", "C": "code"}
    subscripts = {"lambda1": "λ₁", "lambda2": "λ₂", "lambda3": "λ₃"}
    columns = {}
    for model in (name for name in MODELS if name in labkit.VARIANTS):
        variant, scale = labkit.resolve(model, "paper")
        sums = architecture.networks_table(variant, scale)["parameters"].xs("in all", level="layer")
        terms = {term.upper(): getattr(variant, f"{term}_weight") for term in variant.reconstruction_weights}
        weights = [f"{getattr(variant, name):g}" if getattr(variant, name) else "–" for name in subscripts]
        decay = f", weight decay {variant.weight_decay:g}" if variant.weight_decay else ""
        spectral = [letter for letter, name in networks.items() if getattr(variant, f"{name}_spectral")]
        columns[model] = {
            "latent size": str(variant.latent_dim),
            "parameters of G, D, E, C, million": ", ".join(f"{value / 1e6:.2f}" for value in sums),
            "norms in G, D, E, C": ", ".join(getattr(variant, f"{name}_norm") for name in networks.values()),
            "spectral norms in": ", ".join(spectral) or "none",
            "λ₁, λ₂, λ₃": ", ".join(weights),
            "G makes": {"voxels": "every voxel", "atlas": "a warp of an atlas"}[variant.generator_head],
            "reconstruction": " + ".join(f"{subscripts[w]} {term}" for term, w in terms.items()),
            "optimiser": {"adam": "Adam", "adamw": "AdamW"}[variant.optimiser] + decay,
            "augmentation": {"full": "all six transforms", "flip": "the flip alone"}[variant.augmentation],
        }
    lines = [f"| | {' | '.join(f'`{model}`' for model in columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name in next(iter(columns.values())):
        lines.append(f"| {name} | {' | '.join(column[name] for column in columns.values())} |")
    return "\n".join(lines) + "\n"


def write(folder: Path) -> None:
    """All of them, into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "networks.svg").write_text(networks_svg(), encoding="utf-8")
    (folder / "updates.svg").write_text(updates_svg(), encoding="utf-8")
    (folder / "models.md").write_text(models_table(), encoding="utf-8")
