import re
import shutil
import warnings

import numpy as np
import pytest
import torch

import labkit
from labkit import figures, generation, widgets
from labkit.evidence.attributes import Gauge
from labkit.evidence.latent import Directions, LatentSpace
from labkit.figures import frames
from labkit.figures.traversals import view
from labkit.runs import RunError
from labkit.tests.rats import ellipsoids
from labkit.tests.test_training import FAST
from labkit.training import train
from labkit.widgets import explorer


@pytest.fixture(scope="module")
def rats(tmp_path_factory):
    return ellipsoids(tmp_path_factory.mktemp("cohort") / "rats", n=12)


@pytest.fixture(scope="module")
def space(rats, tmp_path_factory):
    run = train("sigmarat2", rats, "smoke", tmp_path_factory.mktemp("runs") / "run", **FAST | {"latent_dim": 20})
    return LatentSpace(run, rats, n_codes=16)


class Sphere(torch.nn.Module):
    """A generator whose first code number is the size of a ball, the second its place, and the rest nothing."""

    def forward(self, z):
        line = torch.linspace(-1, 1, 16)
        x, y, w = torch.meshgrid(line, line, line, indexing="ij")
        radius = 0.55 + 0.05 * z[:, 0].view(-1, 1, 1, 1)
        distance = ((x - 0.05 * z[:, 1].view(-1, 1, 1, 1)) ** 2 + y**2 + w**2).sqrt()
        return torch.tanh(8 * (radius - distance))[:, None]


@pytest.fixture
def known(space):
    """The same space with a generator of which it is known what each number does."""
    known = LatentSpace(space.run, space.run.cohort(), n_codes=16)
    network = Sphere()
    network.register_parameter("none", torch.nn.Parameter(torch.zeros(1)))
    known.generators = {"random": network, "encoded": network}
    return known


def test_a_direction_of_size_is_found_where_there_is_one(known):
    directions = known.directions["random"]
    size = directions.vectors[directions.names.index("brain volume, mm³")]
    assert size.norm() == pytest.approx(1, rel=1e-4)
    assert size[0] > 0.9 and size[2:].abs().max() < 0.2  # number 0 of the code is the size


def test_its_effect_is_read_by_another_gauge_on_other_codes(known):
    table = known.effects("random")
    assert table.loc["brain volume, mm³", "brain volume, mm³"] > 0.1
    assert table.loc["brain volume, mm³", "right way"] == 1 and table.loc["brain volume, mm³", "r"] > 0.8
    assert not torch.equal(known.judged_on("random"), generation.draw_codes(known.run, 32, 0))


def test_a_direction_that_does_nothing_is_found_out(known):
    directions = known.directions["random"]
    idle = torch.nn.functional.one_hot(torch.tensor(7), 20).float()
    vectors = directions.vectors.clone()
    vectors[directions.names.index("brain volume, mm³")] = idle
    known.__dict__["directions"] = {"random": Directions(directions.names, vectors, directions.steps)}
    row = known.effects("random").loc["brain volume, mm³"]
    assert row["image"] < 1e-6 and abs(row["brain volume, mm³"]) < 1e-5 and row["right way"] < 0.9


def test_principal_directions_are_those_of_the_encoded_codes(space):
    directions = space.directions["encoded"]
    centred = space.train_codes - space.train_codes.mean(0)
    along = centred @ directions.vectors[0]
    random = torch.nn.functional.normalize(torch.randn(50, 20, generator=torch.Generator().manual_seed(0)), dim=1)
    assert along.var() >= (centred @ random.T).var(0).max()
    assert directions.steps[0] == pytest.approx(along.std().item(), rel=1e-4)


def test_the_nearest_training_scan_of_a_training_scan_is_itself(space):
    near = space.nearest(space.scans[3])
    assert near.place == 3 and near.distance < 1e-3 and near.subject == space.train.subjects[3]
    noisy = space.nearest((space.scans[3] + 0.01).clamp(-1, 1))
    assert near.distance < noisy.distance < 0.02
    assert space.usual_distance > 0.01


def test_an_unknown_direction_is_answered_with_those_there_are(space):
    with pytest.raises(ValueError, match="'siez'.*principal 1"):
        space.directions["random"].move(space.random(0), {"siez": 1.0})


def test_another_cohort_is_refused(space, tmp_path):
    with pytest.raises(RunError, match="was trained on"):
        LatentSpace(space.run, ellipsoids(tmp_path / "others", n=5, seed=3))


def test_too_few_scans_leave_principal_directions(rats, tmp_path):
    run = train("sigmarat2", rats[:4], "smoke", tmp_path / "run", **FAST)
    space = LatentSpace(run, rats[:4])
    assert space.gauges is None and all(name.startswith("principal") for name in space.directions["random"].names)
    assert list(space.effects("random").columns) == ["image", "share"]
    with pytest.raises(ValueError, match="no attribute can be read"):
        space.gauge_quality  # noqa: B018


def test_three_linked_planes_pass_through_one_point():
    cube = -np.ones((64, 64, 64), np.float32)
    cube[16, 48, 32] = 1  # a quarter from the left, three quarters up, in the middle of the 40 scanned slices
    at = (16.5 / 64, 48.5 / 64, 20.5 / 40)
    shown = frames.three_linked_planes(cube, at, cross=False)
    elsewhere = frames.three_linked_planes(cube, (0.8, 0.2, 0.5), cross=False)
    width = round(64 * 0.375 * frames.PIXELS_PER_MM)
    coronal = shown[:, :width]
    row, column = np.unravel_index(coronal.argmax(), coronal.shape)
    assert coronal.max() > 180 and abs(column / width - 0.258) < 0.02 and abs(row / len(coronal) - 0.242) < 0.02
    assert (shown > 150).sum() > (elsewhere > 150).sum()  # in all three planes, besides the bar
    assert frames.three_linked_planes(cube, at).sum() > shown.sum()


def test_padding_is_not_shown():
    part, zooms = frames.crop(np.zeros((32, 32, 32)))
    assert part.shape == (32, 32, 20) and zooms == (0.75, 0.75, 1.0)


def test_a_card_works_from_a_file_and_says_what_it_shows():
    pictures = [np.full((4, 6), shade, np.uint8) for shade in (0, 100, 200)]
    page = frames.Card(pictures, ["dark", "grey </script>", "light"], "how bright").html()
    assert page.count("<script") == page.count("</script>") == 2
    assert 'type="range"' in page and "how bright" in page and 'role="img" aria-label="grey' in page
    assert not re.search(r"(src|href)=|https?://", page)
    with pytest.raises(ValueError, match="one shape"):
        frames.Card([*pictures, np.zeros((2, 2), np.uint8)], list("abcd"), "x")


def test_page_and_slider_show_the_same_array(space):
    card = figures.direction_cards(space, space.random(0), "random", steps=3).cards[0]
    name = space.directions["random"].names[0]
    moved = space.directions["random"].move(space.random(0), {name: 3.0})
    assert np.array_equal(card.pictures[-1], view(space, moved, "random").picture)
    assert "nearest training scan: animal" in card.words[-1] and "+3.0 SD" in card.words[-1]


def test_every_control_changes_the_rat_that_is_shown(space, tmp_path):
    sliders = explorer.Explorer(space, tmp_path)
    seen = {sliders.picture.value}

    def changes(control, value):
        control.value = value
        assert sliders.picture.value not in seen, control.description
        seen.add(sliders.picture.value)

    changes(sliders.seed, 3)
    assert sliders.truncation.layout.display == "none"  # a length, which this generator does not feel
    changes(next(iter(sliders.moves.values())), 2.0)
    changes(sliders.at[0], 0.3)
    changes(sliders.start, "between two random animals")
    changes(sliders.mix, 0.9)
    changes(sliders.start, "a scan, encoded")
    assert sliders.seed.disabled and not sliders.rat.disabled
    sliders.reset.click()
    assert all(one.value == 0 for one in sliders.moves.values())
    assert torch.allclose(sliders.code(), space.held_out_codes[0])


def test_controls_that_move_at_once_are_drawn_once(space, tmp_path):
    import asyncio

    sliders = explorer.Explorer(space, tmp_path)

    async def drag():
        before = sliders.redraws
        for step in range(20):
            next(iter(sliders.moves.values())).value = step / 10
        await asyncio.sleep(0.3)
        return sliders.redraws - before

    assert asyncio.run(drag()) == 1


def test_a_long_drag_is_followed_while_it_lasts(space, tmp_path):
    import asyncio

    sliders = explorer.Explorer(space, tmp_path)

    async def drag():
        before = sliders.redraws
        for step in range(30):
            next(iter(sliders.moves.values())).value = step / 10
            await asyncio.sleep(0.02)
        return sliders.redraws - before

    assert 3 <= asyncio.run(drag()) <= 25  # neither none until the hand rests, nor one for every message


def test_a_rat_is_saved_as_the_original_files_are(space, tmp_path):
    import nibabel as nib

    sliders = explorer.Explorer(space, tmp_path / "kept")
    sliders.save.click()
    sliders.save.click()
    paths = sorted((tmp_path / "kept").glob("*.nii.gz"))
    assert len(paths) == 2 and "saved as" in sliders.saved.value
    original = nib.load(space.train[0].origin.path)
    image = nib.load(paths[0])
    assert image.shape == original.shape and np.array_equal(image.affine, original.affine)
    assert b"synthetic" in bytes(image.header["descrip"])


def test_without_a_kernel_the_explorer_says_how_to_get_it(space, capsys):
    assert widgets.latent_explorer(space) is None and "live kernel" in capsys.readouterr().out
    assert widgets.latent_explorer(space, live=True) is not None
    assert 0 < widgets.redraw_seconds(space, 3) < 5


def test_figures_of_the_space_are_drawn(space):
    start = space.random(0)
    assert len(figures.traversals(space, start, "encoded").axes) == 6 * len(space.directions["encoded"].names) + 1
    assert len(figures.film_strip(space, generation.draw_codes(space.run, 4), "random").axes) >= 4
    effects = space.effects("encoded")
    assert len(figures.effects(effects).axes[0].get_xticklabels()) > 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # too few scans to read attributes off: what there is, and no empty picture
        (label,) = figures.effects(effects[["share", "image"]]).axes[0].get_xticklabels()
    assert label.get_text() == "image"


def test_the_gauges_halves_share_no_animal(rats, tmp_path):
    folder = tmp_path / "sessions"
    folder.mkdir()
    for index, scan in enumerate(rats):  # two sessions an animal
        for suffix in ("T2w", "dseg"):
            source = scan.origin.path.replace("T2w", suffix)
            shutil.copy(source, folder / f"sub-{index // 2:02d}_ses-{index % 2}_{suffix}.nii.gz")
    cohort = labkit.open_cohort(folder)
    run = train("sigmarat2", cohort, "smoke", tmp_path / "run", n_train=6, **FAST)
    space = LatentSpace(run, cohort)
    assert space.judges == "trained on"
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Gauge, "fit", classmethod(lambda cls, cubes, table: seen.append(table.index)))
        assert space.gauges is not None
    animals = [{space.train.subjects[i] for i in half} for half in seen]
    assert len(animals) == 2 and not animals[0] & animals[1]
