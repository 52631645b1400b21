import re
import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

import labkit
from labkit import widgets
from labkit.evidence.judging.results import Results
from labkit.evidence.judging.session import Session, Stimuli
from labkit.tests.brains import onions
from labkit.tests.test_judging import right_answer, runs  # noqa: F401  (runs is a fixture)
from labkit.widgets.judge import pictures

JS = Path(widgets.__file__).parent


@pytest.fixture(scope="module")
def session(runs):  # noqa: F811
    return Session(runs, trials=6)


@pytest.fixture
def fresh(session):
    shutil.rmtree(session.folder, ignore_errors=True)
    return session


@pytest.fixture
def page(chromium, session, tmp_path):
    """The page of the session, over http, with everything that went wrong in it."""
    text = widgets.judge(session, live=False).html()
    (tmp_path / "test.html").write_text(f'<!doctype html><html lang="en"><meta charset="utf-8"><title>t</title>{text}')
    handler = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=tmp_path))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    context = chromium.new_context(viewport={"width": 480, "height": 900})
    page = context.new_page()
    page.faults = []
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    page.on("request", lambda request: page.faults.append(request.url) if "127.0.0.1" not in request.url
            and not request.url.startswith(("data:", "blob:")) else None)  # fmt: skip
    page.goto(f"http://127.0.0.1:{server.server_port}/test.html")
    yield page
    context.close()
    server.shutdown()
    server.server_close()


def begin(page, name):
    page.keyboard.press("Tab")
    page.keyboard.type(name)
    page.keyboard.press("Enter")


def give(page, session, number, right=True):
    """Answer a trial by keyboard."""
    real = (right_answer(session, session.trials[number]) == "real") == right
    page.wait_for_function("n => document.querySelector('canvas')?.ariaLabel && document.body.innerText.includes(n)",
                           arg=f"Trial {number + 1} of")  # fmt: skip
    page.keyboard.press("r" if real else "s")
    page.keyboard.press("3" if right else "1")


def saved(page, folder):
    with page.expect_download() as download:
        page.get_by_role("button", name="Save my answers").press("Enter")
    path = folder / download.value.suggested_filename
    download.value.save_as(path)
    return path


def test_a_test_taken_by_keyboard_alone_ends_in_a_valid_file_and_the_right_score(page, session, tmp_path):
    begin(page, "ana")
    for number in range(6):
        give(page, session, number, right=number != 2)
    page.wait_for_selector(".judge-score")
    assert page.inner_text(".judge-score") == "5 of 6 right"
    path = saved(page, tmp_path)
    assert path.name == session.path("ana").name
    results = Results.read(path)
    row = results.scores().loc["ana"]
    assert (row["n"], row["right"]) == (6, 5) and results.sessions == [session.id]
    low, high = re.search(r"interval (\d+) % to (\d+) %", page.inner_text(".judge-result")).groups()
    assert (int(low), int(high)) == (round(100 * row["low"]), round(100 * row["high"]))
    for line, trial in zip(results.lines, session.trials, strict=True):
        expected = session.line(trial, "ana", line["answer"], line["confidence"], line["seconds"])
        assert line == expected | {"time": line["time"]}
        assert 0 < line["seconds"] < 60
    assert page.faults == []


def test_nothing_is_told_before_the_end_and_a_reload_goes_on(page, session):
    begin(page, "ben")
    for number in range(3):
        give(page, session, number)
    page.reload()
    begin(page, "ben")
    page.wait_for_function("document.body.innerText.includes('Trial 4 of 6')")
    assert not re.search("right|wrong", page.inner_text(".judge").replace("B, right", ""))
    assert all(model not in page.inner_text("body") for model in session.runs)


def test_arrows_scroll_backspace_takes_back_and_the_picture_changes(page, session):
    begin(page, "cat")
    page.wait_for_function("document.querySelector('canvas')?.ariaLabel")
    label = partial(page.eval_on_selector, "canvas", "c => c.ariaLabel")
    look = partial(page.eval_on_selector, "canvas", "c => c.toDataURL()")
    assert "slice 21 of 40" in label()
    before = look()
    for key, number in (
        ("ArrowRight", 22),
        ("ArrowUp", 23),
        ("ArrowLeft", 22),
        ("Home", 1),
        ("ArrowDown", 1),
        ("End", 40),
    ):
        page.keyboard.press(key)
        assert f"slice {number} of 40" in label()
    assert look() != before
    page.keyboard.press("2")  # how sure, before an answer: nothing
    page.keyboard.press("r")
    assert page.locator("[aria-pressed=true]").inner_text() == "real (R)"
    page.keyboard.press("Backspace")
    assert page.locator("[aria-pressed=true]").count() == 0
    assert "Trial 1 of 6" in page.inner_text("body")


@pytest.mark.parametrize("name", ["", "../x", "simulated 1"])
def test_a_name_that_cannot_be_does_not_begin(page, name):
    begin(page, name)
    assert page.locator("canvas").count() == 0


def test_the_page_fits_a_phone(page):
    begin(page, "dan")
    page.wait_for_selector("canvas")
    assert page.evaluate("document.documentElement.scrollWidth") <= 480


def test_the_live_widget_keeps_each_answer_before_the_next_scan(fresh):
    live = widgets.judge(fresh, "ana", live=True)
    sent = []
    live.send = sent.append

    def ask(**message):
        live._hear(live, {"id": len(sent), **message}, [])
        return sent[-1]

    assert ask(what="open", rater="")["value"] == [] and not live.asks
    for trial in fresh.trials:
        (address,) = ask(what="pictures", trial=trial.number)["value"]
        assert address.startswith("data:image/png;base64,")
        assert "error" not in ask(
            what="answer", trial=trial.number, answer=right_answer(fresh, trial), confidence=3, seconds=1.2
        )
        assert len(fresh.answered("ana")) == trial.number + 1
    assert "6 of 6 right" in ask(what="finish")["value"]
    again = {"what": "answer", "trial": 0, "answer": right_answer(fresh, fresh.trials[0]), "seconds": 1}
    assert "error" not in ask(**again, confidence=3)  # the reply was lost, and the front end asks again
    assert "before" in ask(**again, confidence=1)["error"]
    assert len(fresh.path("ana").read_text().splitlines()) == 6
    asking = widgets.judge(fresh, live=True)
    sent, asking.send = [], lambda reply: sent.append(reply)
    asking._hear(asking, {"id": 0, "what": "finish"}, [])
    assert "rater=''" in sent.pop()["error"]  # nobody has said who answers
    for rater in ("ana", "simulated 1"):
        asking._hear(asking, {"id": 0, "what": "open", "rater": rater}, [])
    assert asking.asks and sent[0]["value"] == list(range(6)) and "not human" in sent[1]["error"]


def test_the_front_end_is_told_nothing_that_tells(fresh):
    live = widgets.judge(fresh, "ana", live=True)
    words = str(live.get_state())
    assert all(name not in words for name in fresh.runs) and "sub-" not in words
    shown = {len(pictures(fresh, trial.number)) for trial in fresh.trials}
    assert shown == {1}


def test_where_no_kernel_is_live_a_page_stands_in(fresh):
    stand_in = widgets.judge(fresh)
    assert isinstance(stand_in, widgets.JudgePage)
    assert "needs a browser" in stand_in._repr_mimebundle_()["text/plain"]
    assert all(f'"{name}"' not in stand_in.html() for name in fresh.runs)
    with pytest.raises(ValueError, match="pseudonym"):
        widgets.judge(fresh, "a/b")


def test_scans_made_in_the_page_are_shown_as_the_session_shows_scans(chromium):
    scans = labkit.open_cohort("phantom", n=3)
    expected, page = Stimuli(scans), chromium.new_page()
    source = (JS / "judge_fresh.js").read_text(encoding="utf-8")
    for place, scan in enumerate(scans):
        grey = (scan.image - scan.origin.low) / (scan.origin.high - scan.origin.low)
        shown = page.evaluate(
            "([source, grey, shape]) => Array.from(new Function(source + '; return ratStimulus;')()"
            "(Float32Array.from(grey), shape))",
            [source, grey.ravel().tolist(), list(grey.shape)],
        )
        wanted = expected.slices(place)
        assert np.array_equal(np.reshape(shown, wanted.shape), wanted) and (wanted > 0).any()
    page.close()


def test_a_test_with_rats_made_now_has_other_scans_each_time_and_ends_in_a_valid_file(chromium, tmp_path):
    animals = onions(tmp_path / "rats", n=12, labels=False)
    atlas = labkit.train("atlas", animals, "smoke", tmp_path / "atlas", n_train=8, size=64, iterations=3, device="cpu")
    session = Session([atlas], trials=4)
    assert widgets.judge(session, live=False).machine is not None
    assert widgets.judge(Session([atlas], task="pair", trials=2), live=False).machine is None
    text = f'<!doctype html><html lang="en"><meta charset="utf-8">{widgets.judge(session, live=False).html()}'
    (tmp_path / "test.html").write_text(text)
    page, faults = chromium.new_page(), []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.goto((tmp_path / "test.html").as_uri())
    begin, files = page.get_by_role("button", name="Begin with rats made now"), []
    begin.click()
    assert page.locator("canvas").count() == 0  # not without a name
    page.locator("input").fill("eva")
    begin.click()
    for turn in range(2):
        for number in range(4):
            page.wait_for_function("n => document.querySelector('canvas')?.ariaLabel && "
                                   "document.body.innerText.includes(n)", arg=f"Trial {number + 1} of 4")  # fmt: skip
            page.keyboard.press("s")
            page.keyboard.press("2")
        page.wait_for_selector(".judge-score")
        assert page.inner_text(".judge-score") == "2 of 4 right"
        with page.expect_download() as download:
            page.get_by_role("button", name="Save my answers").click()
        files.append(tmp_path / f"{turn}.jsonl")
        download.value.save_as(files[-1])
        if not turn:
            page.get_by_role("button", name="Again, with rats made now").click()
    page.close()
    assert faults == []
    first, second = (Results.read(path).lines for path in files)
    assert sorted(line["sources"][0] for line in first) == ["atlas", "atlas", "real", "real"]
    made = [[line["scans"][0] for line in lines if line["sources"] == ["atlas"]] for lines in (first, second)]
    assert len({*made[0], *made[1]}) == 4 and first[0]["session"] != second[0]["session"] != session.id
    held = {digest[:16] for digest in session.real.digests}
    assert {line["scans"][0] for line in first if line["sources"] == ["real"]} <= held
