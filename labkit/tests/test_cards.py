"""Cards say what a run knows, say what it does not, and are read as they stand whatever the files' texts hold."""

import json
import re
import shutil

import pytest
import yaml

import labkit
from labkit import markup
from labkit.data import bids
from labkit.evidence.metrics.study import Study
from labkit.recording import card
from labkit.runs import RunError
from labkit.tests.brains import onions
from labkit.tests.rats import ellipsoids
from labkit.tests.test_training import FAST
from labkit.training import train

NASTY = "A | B\n---\n# <script>alert(1)</script> [x](javascript:y) `c` *b* _i_ $m$ \u2028 \x1b \ud800 : {a} 'q' \"d\" %"


def front(text):
    return yaml.safe_load(text.split("---\n")[1])


def section(text, title):
    return text.split(f"\n## {title}\n")[1].split("\n## ")[0]


@pytest.fixture(scope="module")
def rats(tmp_path_factory):
    """28 animals in two groups, 10 without labels, with a description of their own."""
    folder = tmp_path_factory.mktemp("cards") / "my_rats"
    ellipsoids(folder, n=28)
    for number in range(10):
        (folder / f"sub-{number}_dseg.nii.gz").unlink()
    bids.write_description(folder, "Rats of a lab", License="CC-BY-4.0", ReferencesAndLinks=["Lab et al. 2020"])
    rows = [{"participant_id": f"sub-{n}", "species": "rattus norvegicus", "group": "AB"[n % 2]} for n in range(40)]
    bids.write_table(folder / "participants.tsv", rows)
    return labkit.open_cohort(folder)


@pytest.fixture
def run(rats, tmp_path):
    return train("sigmarat2", rats, "smoke", tmp_path / "first", n_train=14, **FAST)


def test_a_trained_run_has_a_card_that_says_what_it_learned_from(rats, run):
    text = (run.path / "README.md").read_text()
    assert text == card(run) == labkit.card(str(run.path))
    assert front(text) | {"tags": 0, "license_name": 0} == {
        "license": "other", "license_name": 0, "tags": 0, "library_name": "labkit", "model_name": "first",
        "pipeline_tag": "unconditional-image-generation",
    }  # fmt: skip
    assert front(text)["license_name"] == "training scans: CC-BY-4.0"
    data = section(text, "Training data")
    labelled = [sum(scan.labels is not None for scan in side(rats)) for side in (run.train_part, run.held_out)]
    assert sum(labelled) == 18 and min(labelled) > 2
    assert f"trained on | 14 animals, 14 scans, {labelled[0]} of them with label maps" in data
    assert f"never trained on | 14 animals, 14 scans, {labelled[1]} of them with label maps" in data
    assert "rattus norvegicus (28)" in data and "A (14), B (14); the model knows nothing of groups" in data
    assert "CC-BY-4.0" in data and "Lab et al. 2020" in data and "The data: Lab et al. 2020" in text
    assert "| iterations | 6 of 6 |" in text and run.fingerprint in text and "16³" in text
    assert "mean squared error" in section(text, "The model")
    for title in ("How real are they?", "Were training animals copied?", "Do they help a segmentation network?"):
        assert "**Not measured" in section(text, title)


def test_what_a_data_set_does_not_say_is_said_to_be_unknown(tmp_path):
    rats = ellipsoids(tmp_path / "flat", n=4)
    (tmp_path / "flat" / "dataset_description.json").write_text("[1, 2")
    (tmp_path / "flat" / "participants.tsv").write_bytes(b"\xff\xfe\x00participant_id")
    text = card(train("adni", rats, "smoke", tmp_path / "run", **FAST))
    data = section(text, "Training data")
    assert "licence | **not said by the data set: ask its owner**" in data and "species | not said" in data
    assert "never trained on | 0 animals, 0 scans" in data and "licence not known" in front(text)["license_name"]
    assert "mean squared error" not in text  # of no held-out animal


def test_a_generated_folder_has_a_card_and_one_readme_and_opens_as_before(run, tmp_path):
    made = labkit.generate(run, 3, tmp_path / "made")
    text = (made.folder / "README.md").read_text()
    assert [path.name for path in made.folder.glob("README*")] == ["README.md"]
    assert front(text)["size_categories"] == ["n<1K"] and front(text)["pretty_name"].endswith("by first")
    assert "numbers 0 to 2 of seed 0" in text and "SYNTHETIC DATA" in text and "| label maps | none |" in text
    assert "were not measured" not in text and "CC-BY-4.0" in text and str(tmp_path) not in text
    assert text == card(run, made.folder)
    (made.folder / "README.md").unlink()
    assert labkit.open_cohort(made.folder, twins=True).fingerprint == made.fingerprint


def test_an_atlas_with_few_labels_says_that_its_scans_have_label_maps(tmp_path):
    rats = onions(tmp_path / "rats", n=10)
    for path in sorted((tmp_path / "rats").glob("*_dseg.nii.gz"))[:6]:
        path.unlink()
    rats = labkit.open_cohort(tmp_path / "rats")
    run = train("atlas", rats, "smoke", tmp_path / "run", iterations=4)
    text = (labkit.generate(run, 2, tmp_path / "made").folder / "README.md").read_text()
    assert "made by the model" in section(text, "What this folder is")
    assert front(text)["task_categories"] == ["unconditional-image-generation", "image-segmentation"]
    assert "2 of them with label maps" in section(text, "Training data") and "this study's own" in text


def test_a_card_refuses_a_folder_of_other_weights_and_a_run_without(rats, run, tmp_path):
    made = labkit.generate(run, 2, tmp_path / "made").folder
    before = (made / "README.md").read_text()
    further = train("sigmarat2", rats, "smoke", run.path, n_train=14, **(FAST | {"iterations": 8}))
    with pytest.raises(ValueError, match="present weights of first"):
        card(further, made)
    with pytest.raises(ValueError, match="no folder that labkit.generate made"):
        card(further, tmp_path)
    assert (made / "README.md").read_text() == before
    (run.path / "models.safetensors").unlink()
    with pytest.raises(RunError, match="train it first"):
        card(run)


def test_a_measured_run_and_its_scans_get_the_verdict_and_lose_it_when_trained_further(rats, run):
    study = Study([run], n=8, size=16)
    study.save()
    verdicts = study.verdicts().loc["sigmarat2"]
    pairs = [[int(n) for n in cell.split(" of ")] for group, cell in verdicts.items() if group != "copies"]
    passed, of = map(sum, zip(*pairs, strict=True))
    made = study.comparisons["sigmarat2"].synthetic.folder
    for folder in (run.path, made):
        text = (folder / "README.md").read_text()
        real = section(text, "How real are they?")
        assert f"**{passed} of {of} measures**" in real and f"| anatomy | {verdicts['anatomy']} |" in real
        assert f"Compared are {len(study.yardstick.reference)} scans of seed 0 with as many at a time of 14" in real
        cells = [cell for group, cell in study.verdicts().loc["mean"].items() if group != "copies"]
        by_mean = sum(int(cell.split(" of ")[0]) for cell in cells)
        assert f"what learned nothing, the mean training scan under noise passes {by_mean}, a Gaussian" in real
        recall = study.table.set_index(["model", "metric", "flavour"]).loc[("sigmarat2", "recall", "PCA")]
        assert f"| recall | PCA | {recall['value']:.2g} | {recall['floor']:.2g} |" in real
        assert "planted" in section(text, "Were training animals copied?")
    further = train("sigmarat2", rats, "smoke", run.path, n_train=14, **(FAST | {"iterations": 8}))
    assert "weights before it was trained further" in (further.path / "README.md").read_text()


@pytest.mark.parametrize(
    ("p", "verdict", "words"),
    [(0.4, "4 of 4", "No sign of it"), (0.01, "2 of 4", "It seems so"), (0.01, "not testable", "Not testable")],
)
def test_the_audit_for_copies_is_told_as_it_came_out(run, p, verdict, words):
    rows = [{"metric": "copies p", "flavour": name, "value": value, "floor": 0.5}
            for name, value in (("synthetic", p), ("codes", None), ("one copy planted", 1e-9))]  # fmt: skip
    results = {"run_fingerprint": run.fingerprint, "verdicts": {"anatomy": "1 of 2", "copies": verdict}, "rows": rows,
               "real": {"name": "x", "animals": 5}, "n": 6, "seed": 0}  # fmt: skip
    (run.path / "metrics.json").write_text(json.dumps(results))
    copies = section(card(run), "Were training animals copied?")
    assert words in copies and ("codes |  |") in copies
    (run.path / "metrics.json").write_text(json.dumps({k: v for k, v in results.items() if k != "verdicts"}))
    assert "No verdict" in card(run)


def test_what_chapter_5_concluded_is_told_in_its_words(run):
    folder = run.path / "segmentation" / "least-0"
    folder.mkdir(parents=True)
    (folder / "conclusions.txt").write_text("whole brain, r100+s200 against r100: +0.1 | <b>\n")
    assert "- whole brain, r100+s200 against r100: +0.1 \\| &lt;b&gt;" in card(run)


def test_text_of_files_stays_text(run, tmp_path):
    config = run.config
    config["cohort"]["about"] |= {"Name": NASTY, "License": NASTY, "Note": NASTY, "HowToAcknowledge": {"a": NASTY},
                                  "participants": {"species": {NASTY: 3}}}  # fmt: skip
    (run.path / "config.json").write_text(json.dumps(config))
    shutil.move(run.path, tmp_path / "a|b<i>: [x]")
    text = card(tmp_path / "a|b<i>: [x]")
    assert front(text)["license_name"].endswith('"d" %') and front(text)["model_name"] == "a|b<i>: [x]"
    assert text.count("\n---\n") == 1 and text.startswith("---\n")  # the front matter's own end
    body = text.split("\n---\n")[1]
    assert not re.search(r"(?<!\\)<|(?<!\\)\[|script>|\x1b|\u2028", body)
    tables = [line for line in body.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in tables} == {3}
    assert [line for line in body.splitlines() if line.startswith("# ")] == ["# a\\|b&lt;i&gt;: \\[x\\]"]


def test_cells_read_as_the_text_they_hold():
    assert markup.plain("T2w_run_1 & _x_") == "T2w_run_1 &amp; \\_x\\_"
    assert markup.one_line(" a\r\n\tb\x00c ") == "a b c"
    assert len(markup.one_line("x" * 5000)) == markup.LONGEST


def test_a_run_from_before_cards_goes_on_and_learns_what_its_data_say(rats, run):
    config = run.config
    del config["cohort"]["about"]
    (run.path / "config.json").write_text(json.dumps(config))
    assert "species | not said" in card(run)
    train("sigmarat2", rats, "smoke", run.path, n_train=14, **FAST)
    assert "rattus norvegicus (28)" in (run.path / "README.md").read_text()
