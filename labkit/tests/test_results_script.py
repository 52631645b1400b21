"""What the first page shows of the results is what the runs' files say."""

import base64
import importlib.util
import io
import json
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "ci" / "results.py"
if not SCRIPT.is_file():
    pytest.skip("the script is part of a checkout, not of an installed labkit", allow_module_level=True)
PARTS = ("picture", "caption", "results", "segmentation", "times", "mice")
SITTING = {"device": "x86_64", "threads": 2, "precision": "fp32", "from": 0, "to": 600, "seconds": 120.0}


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(ROOT / "ci"))
    try:
        spec = importlib.util.spec_from_file_location("ci_results", SCRIPT)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(ROOT / "ci"))


def metrics(script, left_out=()):
    rows = [f"| {metric} | {flavour} | {k} ({k} to {k}) | 7 | 8 |"
            for k, (metric, flavour) in enumerate(script.ROWS) if metric not in left_out]  # fmt: skip
    head = ["| metric | flavour | adni | mean | floor: real |", "|---|---|---|---|---|", "| PSNR | paper | 9 | 9 | 9 |"]
    return "\n".join([*head, *rows])


@pytest.fixture
def build(script, tmp_path):
    tmp_path = tmp_path / "laptop-sigma"
    for model in script.MODELS:
        folder = tmp_path / model
        folder.mkdir(parents=True)
        sittings = [SITTING, SITTING | {"from": 600, "to": 1200}]
        (folder / "provenance.json").write_text(json.dumps({"sittings": sittings}))
    shown = tmp_path / script.SHOWN
    (shown / "metrics.md").write_text(metrics(script))
    for model, size in ((script.SHOWN, 32), ("sigmarat3", 64), ("atlas", 64)):
        (tmp_path / model / "config.json").write_text(json.dumps({"scale": {"size": size}}))
    (shown / "segmentation" / "laptop-x").mkdir(parents=True)
    found = ["arm,tissue,difference,ci_low,ci_high,score", "r100+s200,whole brain,-0.00184,-0.0022,-0.0015,dice",
             "r100+s200,whole brain,9,9,9,hd95_mm", "r100+t200,whole brain,0.001,0.0,0.002,dice",
             "r5+a200,CSF,0.0845,0.0777,0.0912,dice"]  # fmt: skip
    (shown / "segmentation" / "laptop-x" / "differences.csv").write_text("\n".join(found))
    (tmp_path / "source" / "assets").mkdir(parents=True)
    Image.new("RGB", (1440, 900)).save(tmp_path / "source" / "assets" / "tour.png")
    return tmp_path


def test_the_first_page_shows_the_results_that_are_kept(script):
    readme = script.README.read_text(encoding="utf-8")
    for name in PARTS:
        kept = (script.OUT / f"{name}.md").read_text(encoding="utf-8")
        assert script.replaced(readme, name, kept) == readme
    assert "book/reference/results/tour.png" in readme and (script.OUT / "tour.png").is_file()


def test_a_build_is_put_between_the_marks(script, build, monkeypatch, tmp_path):
    marks = "".join(f"<!-- {name} -->\nold\n<!-- /{name} -->\n" for name in PARTS)
    (tmp_path / "README.md").write_text(f"before\n{marks}after\n")
    monkeypatch.setattr(script, "README", tmp_path / "README.md")
    monkeypatch.setattr(script, "OUT", tmp_path / "kept")
    monkeypatch.setattr(script, "ROOT", tmp_path)
    drawn = io.BytesIO()
    Image.new("RGB", (800, 600), "red").save(drawn, "png")
    png = {"output_type": "display_data", "data": {"image/png": base64.b64encode(drawn.getvalue()).decode()}}
    (build / "executed").mkdir()
    for stem, source in script.PICTURES.items():
        cells = [{"source": ["import labkit"], "outputs": []}, {"source": [source, "(x)"], "outputs": [png]}]
        (build / "executed" / f"{stem}.ipynb").write_text(json.dumps({"cells": cells}))
    monkeypatch.setattr(sys, "argv", ["results", str(build)])
    script.main()
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "|  | adni | other real rats |" in text and "with a synthetic one near, share | 2 | 8 |" in text
    assert "| CSF | 87 | +0.0764 | not trained |" in text
    gained = "−0.0018 (−0.0022 to −0.0015) | +0.0010 (+0.0000 to +0.0020) |"
    assert f"| whole brain | 348 | +0.0172 | {gained}" in text
    assert "| 9 real + 348 atlas | not trained | not trained | not trained | +0.0845 (+0.0777 to +0.0912) |" in text
    assert "On x86_64, 2 threads, fp32: `adni` 4.0 minutes (5.0 iterations a second), `sigmarat1` 4.0" in text
    assert 'src="kept/tour.png"' in text and "one by `atlas` after 1200 iterations (64³ voxels)" in text
    assert (tmp_path / "kept" / "metrics.md").read_text() == metrics(script)
    with Image.open(tmp_path / "kept" / "tour.png") as picture:
        assert picture.size == (400, 250)
    for stem in script.PICTURES:
        with Image.open(tmp_path / "kept" / f"{stem[:2]}.png") as picture:
            assert picture.size == (400, 300) and picture.convert("RGB").getpixel((9, 9)) == (255, 0, 0)
    with pytest.raises(SystemExit, match="has no picture by figures.three_planes in 01_explore: run ci/book"):
        script.pictures(tmp_path)


def test_what_is_missing_is_named(script, build, monkeypatch):
    with pytest.raises(SystemExit, match="no row for recall"):
        script.table(metrics(script, left_out=("recall",)))
    with pytest.raises(SystemExit, match="no marks"):
        script.replaced("text", "results", "")
    monkeypatch.setattr(sys, "argv", ["results", str(build / "nowhere")])
    with pytest.raises(SystemExit, match="run ci/book"):
        script.main()
