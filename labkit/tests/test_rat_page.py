"""The page that makes rats: in a real browser it makes the rats that Python makes, and writes them as Python does."""

import base64
import json
import zipfile

import nibabel as nib
import numpy as np
import pytest
import torch

import labkit
from labkit import warps, widgets
from labkit.atlas import AtlasGenerator
from labkit.data import nifti
from labkit.tests.brains import onions
from labkit.widgets import rat

OPEN = """async ([source, data]) => {
  window.model = new Function(source + "; return {...ratModel(), ...ratFiles()};")();
  window.made = await model.unpack(Uint8Array.from(atob(data), (c) => c.charCodeAt(0)));
}"""
VOLUME = """([code, noisy]) => {
  const one = made.rat(Float32Array.from(code), true);
  const {grey, labels} = made.volume(one, noisy ? made.noise(one.code) : null);
  return [Array.from(grey), Array.from(labels), one.smallest];
}"""
PLANE = """([code, axis, index]) => {
  const box = made.meta.shape.map((n, k) => k === axis ? [index, index + 1] : [0, n]);
  return Array.from(made.seen(made.rat(Float32Array.from(code)), box, null).grey);
}"""


@pytest.fixture(scope="module")
def atlas(tmp_path_factory):
    """Of animals with labels, with appearances and a template that is finer than scans."""
    folder = tmp_path_factory.mktemp("atlas")
    animals = onions(folder / "rats", n=10)
    finer = {"size": 32, "template_factor": 2, "appearances": 3, "iterations": 60}
    return labkit.train("atlas", animals, "smoke", folder / "atlas", n_train=8, device="cpu", **finer)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """As a smoke run has it: on a grid four times as coarse as the files'."""
    folder = tmp_path_factory.mktemp("small")
    animals = onions(folder / "rats", n=8)
    return labkit.train("atlas", animals, "smoke", folder / "atlas", n_train=6, device="cpu")


@pytest.fixture(scope="module")
def chrome(chromium):
    """An empty page with what went wrong in it."""
    page = chromium.new_page()
    page.faults = []
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    yield page
    page.close()


@pytest.fixture(scope="module")
def packed(atlas, chrome):
    """The packed atlas, open in the page, and the atlas itself."""
    data = rat.packed(atlas, atlas.generator().atlas, 40, animals=False)
    source = rat.asset("rat_model.js") + rat.asset("rat_files.js")
    chrome.evaluate(OPEN, [source, base64.b64encode(data).decode()])
    return atlas.generator().atlas


def codes(atlas, n, modes=40, seed=0):
    z = torch.randn(n, atlas.latent_dim, generator=torch.Generator().manual_seed(seed))
    z[:, modes:] = 0
    return z


@pytest.mark.parametrize("noisy", [False, True])
def test_the_same_codes_give_the_same_scans_and_labels_as_in_python(packed, chrome, noisy):
    z = codes(packed, 3)
    z[2] *= 2  # as far as the page's spread goes
    noise = AtlasGenerator(packed, 32).noise_of(z) if noisy else None
    scans, labels = packed.decode_labelled(z, noise)
    for place, code in enumerate(z):
        grey, own, smallest = chrome.evaluate(VOLUME, [code.tolist(), noisy])
        grey, own = np.reshape(grey, scans.shape[2:]), np.reshape(own, scans.shape[2:])
        assert np.abs(grey - scans[place, 0].numpy()).max() < 0.01
        assert (own != labels[place, 0].numpy()).mean() < 0.001
        assert smallest >= warps.JACOBIAN_FLOOR


def test_a_plane_is_a_plane_of_the_volume(packed, chrome):
    code = codes(packed, 1)[0]
    grey = np.reshape(chrome.evaluate(VOLUME, [code.tolist(), False])[0], packed.geometry.shape)
    for axis, index in ((0, 5), (1, 20), (2, 10)):
        plane = chrome.evaluate(PLANE, [code.tolist(), axis, index])
        assert np.allclose(np.ravel(np.take(grey, index, axis)), plane, atol=1e-5)


def test_no_code_folds_a_brain(packed, chrome):
    """Every slider at its end, one after the other and all together, with the largest spread."""
    flows = chrome.evaluate("""() => {
      const {meta, arrays} = made, found = [];
      for (const sign of [-3, 3]) for (let row = 0; row <= meta.sliders.length; row++) {
        const code = made.draw(row, 2);
        for (let k = 0; k < meta.sliders.length; k++) {
          if (row !== k && row !== meta.sliders.length) continue;
          for (let j = 0; j < meta.modes; j++) code[j] += sign * arrays.directions[k * meta.modes + j];
        }
        found.push(Array.from(made.rat(code, true).moved));
      }
      return found;
    }""")
    moved = torch.tensor(flows).view(len(flows), 3, *(len(matrix) for matrix in packed.geometry.to_flow))
    assert len(moved) > 10 and moved.abs().max() > 0.5
    assert warps.jacobian(moved / packed.geometry.cell).min() >= warps.JACOBIAN_FLOOR - 1e-4


def test_a_warp_that_would_fold_is_made_gentler_as_in_python(packed, chrome):
    code = 20 * codes(packed, 1, seed=5)[0]
    velocity = warps.separable(
        packed.geometry.split(packed.numbers(code[None]))[0], packed.geometry.to_flow
    ) / packed.geometry.cell  # fmt: skip
    assert warps.jacobian(warps.flow(velocity, packed.settings.squarings)).min() < warps.JACOBIAN_FLOOR
    _, smallest = warps.diffeomorphism(velocity, packed.settings.squarings)
    assert chrome.evaluate(VOLUME, [code.tolist(), False])[2] == pytest.approx(float(smallest), abs=0.02)


@pytest.mark.parametrize("n", [16, 20, 500, 997])
def test_random_numbers_are_torchs(packed, chrome, n):
    drawn = chrome.evaluate("([seed, n]) => Array.from(model.randn(seed, n))", [7, n])
    assert np.allclose(drawn, torch.randn(n, generator=torch.Generator().manual_seed(7)), atol=1e-6)


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """Of small scans of 64-bit integers, whose four labels reach the edges, and one animal lacks the last of them."""
    folder = tmp_path_factory.mktemp("odd")
    shape, rng = (40, 30, 20), np.random.default_rng(0)
    index = np.indices(shape) / np.reshape(shape, (3, 1, 1, 1)) - 0.5
    (folder / "rats").mkdir()
    for animal in range(6):
        radius = np.linalg.norm(index, axis=0) / rng.uniform(0.6, 0.7)
        maps = np.select([radius < 0.3, radius < 0.5, radius < 0.8, radius < 1], [1 if animal == 2 else 4, 1, 3, 2], 0)
        image = np.array([20, 900, 600, 300, 700])[maps] + rng.integers(0, 80, shape)
        for values, name in ((image.astype(np.int64), "T2w"), (maps.astype(np.uint8), "dseg")):
            made = nib.Nifti1Image(values, np.diag([0.4, 0.4, 0.6, 1]), dtype=values.dtype)
            nib.save(made, folder / "rats" / f"sub-{animal}_{name}.nii.gz")
    animals = labkit.open_cohort(folder / "rats", grid="native")
    return labkit.train("atlas", animals, "smoke", folder / "atlas", n_train=5, device="cpu")


def opened(run, chromium, folder):
    """A page of a run from the disk, with the addresses that it asked for and what failed in it."""
    path = labkit.export_page(run, folder / "deep" / "er" / "rats.js")
    (path.parent / "p.html").write_text(  # it does not say in which letters it is written
        '<!doctype html><html lang="en"><title>t</title><div data-rats></div><script src="rats.js"></script></html>'
    )
    page = chromium.new_page()
    page.asked, page.faults = [], []
    page.on("request", lambda request: page.asked.append(request.url))
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    page.goto((path.parent / "p.html").as_uri())
    page.wait_for_selector(".rats-near button")
    return page


def taken(page, folder, button, while_it_runs=lambda: None):
    """Rats that a button gives, unpacked, and the name of their file."""
    with page.expect_download() as download:
        page.get_by_role("button", name=button).click()
        while_it_runs()
    download.value.save_as(folder.with_suffix(".zip"))
    with zipfile.ZipFile(folder.with_suffix(".zip")) as archive:
        assert archive.testzip() is None
        archive.extractall(folder)
    return download.value.suggested_filename


def check_same_as_python(folder, run, few):
    """Scans and labels of a folder are those that the run makes of the codes beside them, but for `few` voxels."""
    template, generator = run.file_template, run.generator()
    made = labkit.open_cohort(folder, **template.opening)
    assert made.labelled and made.shape == template.shape
    for scan in made:
        about = nifti.sidecar(scan.origin.path)
        low, high = about["IntensityRange"]
        volume, labels = generator.labelled(torch.tensor([about["Code"]], dtype=torch.float32))
        expected = nifti.restore(volume[0], made.shape, nifti.replace(template.origin, low=low, high=high))
        file = nib.load(scan.origin.path)
        assert file.get_data_dtype() == expected.get_data_dtype() and np.allclose(file.affine, expected.affine)
        assert np.abs(np.asarray(file.dataobj) - np.asarray(expected.dataobj)).max() <= 0.01 * (high - low) + 1
        wanted = template.label_image(labels[0])
        apart = np.asarray(nib.load(scan.origin.path.replace("_T2w", "_dseg")).dataobj) != np.asarray(wanted.dataobj)
        assert apart.mean() <= few and about["Synthetic"] is True
    return made


def test_the_page_of_a_run_shows_rats_and_gives_them_as_files(small, chromium, tmp_path):
    page = opened(small, chromium, tmp_path)
    look = "() => [...document.querySelectorAll('.rats canvas')].map((canvas) => canvas.toDataURL())"

    def changed(act):
        before = page.evaluate(look)
        act()
        page.wait_for_function(f"(before) => ({look})().every((url, k) => url !== before[k])", arg=before)

    changed(lambda: page.get_by_role("button", name="New rat").click())
    changed(lambda: page.get_by_role("button", name="Mean rat").click())
    taken(page, tmp_path / "mean", "Save this rat")
    page.get_by_label("noise").uncheck()
    page.wait_for_timeout(300)
    for slider in page.get_by_label("mode 1").all():
        changed(lambda slider=slider: slider.press("End"))
    first, before = page.locator(".rats canvas").first, page.evaluate(look)
    first.focus()
    first.press("ArrowRight")  # moves the sagittal section, and the crosshair in the others
    page.wait_for_function(f"(before) => ({look})()[1] !== before[1]", arg=before)
    page.get_by_label("how many rats").fill("3")
    page.get_by_role("button", name="Save (.zip, BIDS)").click()
    assert "every rat is the mean rat" in page.inner_text(".rats-note")  # and nothing is made
    page.get_by_label("spread").fill("1")

    def meanwhile():
        page.get_by_role("button", name="Save this rat").click()  # one after the other
        page.get_by_role("button", name="New rat").click()

    assert taken(page, tmp_path / "made", "Save (.zip, BIDS)", meanwhile) == "synthetic-rats-s2-n3.zip"
    for end in "AB":
        page.get_by_role("button", name=f"Keep as {end}").click()
        changed(lambda: page.get_by_role("button", name="New rat").click())
    changed(lambda: page.get_by_label("A to B").fill("0.5"))
    taken(page, tmp_path / "between", "Save this rat")
    text = page.inner_text("body")
    page.close()
    assert page.faults == [] and [url for url in page.asked if not url.startswith(("file:", "blob:", "data:"))] == []
    assert "mm³" in text and "Â" not in text

    one_voxel = 1 / 2560  # of the model's own grid
    made = check_same_as_python(tmp_path / "made", small, 3 * one_voxel)
    assert [list(nifti.sidecar(scan.origin.path)["Moves"])[0][:6] for scan in made] == ["mode 1"] * 3
    for name in ("mean", "between"):
        assert len(check_same_as_python(tmp_path / name, small, 3 * one_voxel)) == 1
    told = json.loads((tmp_path / "made" / "dataset_description.json").read_text())
    assert told["Synthetic"] is True and told["n"] == 3
    assert "## This folder" in (tmp_path / "made" / "README.md").read_text()


def test_files_of_any_grid_type_and_coding_come_out_as_python_writes_them(odd, chromium, tmp_path):
    card = odd.path / "README.md"
    before = card.stat().st_mtime_ns
    page = opened(odd, chromium, tmp_path)
    page.get_by_label("how many rats").fill("2")
    taken(page, tmp_path / "made", "Save (.zip, BIDS)")
    assert page.faults == [] and "label 4" in page.inner_text(".rats-numbers")
    page.close()
    assert card.stat().st_mtime_ns == before  # a run is read, and may lie where nothing can be written
    check_same_as_python(tmp_path / "made", odd, 0.015)  # a voxel of the model is one of 700


def test_a_page_without_animals_holds_none_of_their_codes(small):
    page = rat.RatPage(small, animals=False)
    held = rat.RatPage(small)
    assert all(subject in rat.header(held.data)["animals"] for subject in small.config["train"]["subjects"])
    assert rat.header(page.data)["animals"] == [] and "codes" not in str(rat.header(page.data)["arrays"])


def test_what_is_no_atlas_or_no_script_is_refused(small, tmp_path):
    with pytest.raises(ValueError, match=r"name ends in \.js"):
        labkit.export_page(small, tmp_path / "rats.html")
    with pytest.raises(ValueError, match="modes=0"):
        labkit.export_page(small, tmp_path / "rats.js", modes=0)
    other = labkit.train("sigmarat2", small.cohort(), "smoke", tmp_path / "gan", n_train=6, iterations=1)
    with pytest.raises(ValueError, match="only an atlas"):
        labkit.export_page(other, tmp_path / "rats.js")
    assert list(tmp_path.glob("*.js")) == []


def test_a_notebook_gets_a_page_or_a_widget_that_tells_the_kernel_its_code(small, chrome):
    page, live = widgets.rats(small, live=False), widgets.rats(small, live=True)
    assert live.data == page.data and "data-rats" in page.html() and "export default" not in page.html()
    code = chrome.evaluate("""async ([source, data]) => {
      const module = await import(URL.createObjectURL(new Blob([source], {type: "text/javascript"})));
      const kept = {}, whole = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
      const shifted = new Uint8Array(whole.length + 8);
      shifted.set(whole, 8);
      const el = document.body.appendChild(document.createElement("div"));
      return new Promise((done) => module.default.render({el, model: {
        get: () => new DataView(shifted.buffer, 8), // as a kernel's message has it, somewhere in a buffer
        set: (name, value) => { kept[name] = value; }, save_changes: () => done(kept.code),
      }}));
    }""", [live._esm, base64.b64encode(live.data).decode()])  # fmt: skip
    assert len(code) == small.variant.latent_dim and np.std(code) > 0
    live.code = code
    assert labkit.decode(small, torch.tensor([live.code])).shape[1:] == (1, 16, 16, 16)
