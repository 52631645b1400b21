"""The judging test: in a live kernel a widget that writes answers to disk, elsewhere a page that needs no kernel."""

from __future__ import annotations

import base64
import functools
import html
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from labkit.evidence.judging.answers import FORMAT, SURE, check_rater
from labkit.evidence.judging.results import Results
from labkit.evidence.judging.session import Session
from labkit.evidence.judging.trials import QUESTIONS, REAL, TASKS
from labkit.figures import frames
from labkit.figures.judging import result_figures
from labkit.files import in_live_kernel
from labkit.markup import script_json
from labkit.widgets.browser import figure_html
from labkit.widgets.rat import MARK, RatPage, header

if TYPE_CHECKING:
    import anywidget

FULL = 64
"""Side of cubes that are shown as they were made."""

HELP = {
    "real_or_synthetic": "R for real or S for synthetic, then 1, 2 or 3 for how sure you are; Backspace takes it back.",
    "pair": "A or B for the real one, then 1, 2 or 3 for how sure you are; Backspace takes it back.",
    "rating": "1 to 5 for each question in turn; Backspace takes it back.",
    "preference": "A or B for the one that looks more real, then 1, 2 or 3 for how sure you are.",
}
BEFORE = (
    "Arrow keys go through the slices; Home and End are the first and the last. There is no time limit, nothing tells "
    "right from wrong before the end, and a test that was left goes on where it stopped."
)


def judge(session: Session, rater: str | None = None, live: bool | None = None) -> anywidget.AnyWidget | JudgePage:
    """The test of a session, usable by keyboard alone.

    Parameters
    ----------
    session : Session
        What is shown.
    rater : str, optional
        Whose answers they are, in a live kernel. Otherwise the test asks: two people under one name would be one.
    live : bool, optional
        A widget, whose answers go to :meth:`Session.path` at once; otherwise a page that holds its trials, whose
        answers stay in the browser and are saved as the same file. Default: as
        :func:`labkit.files.in_live_kernel` finds.

    Raises
    ------
    ValueError
        A rater's name that cannot be one.
    """
    if rater is not None:
        check_rater(rater)
    for source in session.sources.values():
        source.cubes  # noqa: B018  prepared now: a scan that comes late would be known to be the first of its kind
    if in_live_kernel() if live is None else live:
        return _widget_class()(session, rater)
    return JudgePage(session)


def without_truth(session: Session) -> dict[str, Any]:
    """What a front end knows of a session: nothing that tells real from synthetic."""
    depth, rows, columns = session.shape
    height, width = next(iter(session.sources.values())).size_mm
    return {
        "id": session.id,
        "task": session.task,
        "question": TASKS[session.task],
        "help": f"{HELP[session.task]} {BEFORE}",
        "questions": list(QUESTIONS) if session.task == "rating" else [],
        "sure": {str(level): words for level, words in SURE.items()},
        "trials": len(session.trials),
        "depth": depth,
        "rows": rows,
        "columns": columns,
        "mm": [height, width],
        "first": depth // 2,
    }


def pictures(session: Session, number: int) -> list[str]:
    """A trial's scans as addresses of PNGs, slices one under the other; the name of a scan is not part of them."""
    stacks = session.slices(session.trials[number])
    return [frames.data_url(frames.png(np.ascontiguousarray(np.concatenate(stack)))) for stack in stacks]


class JudgePage:
    """A session as HTML that works from a file, without a kernel and without a network.

    The truth is in the page, not in plain text: this keeps a rater honest who wants to be.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.machine = machine_of(session)

    def html(self) -> str:
        """The page's part."""
        session, machine = self.session, self.machine
        scripts, told, fresh = "", "", "undefined"
        if machine is not None:
            scripts = f"<script {MARK}>{machine.script()}</script>"
            stacks, about = fresh_scans(session, machine)
            told = f'const pool = {{...unhidden("{_hidden(json.dumps(about))}"), pictures: {script_json(stacks)}}};'
            fresh = "(say) => freshTest(session, pool, window.ratMachine, say)"
        stubs = json.dumps([session.stub(trial) for trial in session.trials], ensure_ascii=False)
        shown = script_json([pictures(session, trial.number) for trial in session.trials])
        words = script_json(without_truth(session))
        return (
            f"<style>{_asset('judge.css')}</style>{scripts}"
            f"<div><p>{html.escape(TASKS[session.task])} This test needs JavaScript.</p></div>"
            "<script>(function () {\nconst host = document.currentScript.previousElementSibling;\n"
            f"{_asset('judge.js')}\n{_asset('judge_page.js')}\n{_asset('judge_fresh.js') if scripts else ''}\n"
            f"{told}\nconst session = {words};\njudge(host, session, "
            f'pagePort(session, {shown}, unhidden("{_hidden(stubs)}"), {fresh}));\n}})();</script>'
        )

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        text = f"{TASKS[self.session.task]} {len(self.session.trials)} trials; the test needs a browser"
        return {"text/html": self.html(), "text/plain": text}


def machine_of(session: Session) -> RatPage | None:
    """What makes other rats for a test in a page: the session's atlas, where its scans need no resizing."""
    for name, run in session.runs.items():
        if run.variant.name == "atlas" and session.task == "real_or_synthetic" and session.seen_at(name) == FULL:
            page = RatPage(run)
            as_files = header(page.data)["shape"] == list(run.file_template.shape)
            return page if as_files and session.resolution == FULL else None
    return None


def fresh_scans(session: Session, machine: RatPage) -> tuple[list[str], dict[str, Any]]:
    """Pictures of the real scans to draw from, and what lines of answers say of them."""
    real, source = session.sources[REAL], next(name for name, run in session.runs.items() if run == machine.run)
    stacks = [
        frames.data_url(frames.png(np.ascontiguousarray(np.concatenate(real.slices(k))))) for k in range(len(real))
    ]
    common = {"format": FORMAT, "task": session.task}
    cohorts = {REAL: session.fingerprints[REAL], source: machine.run.fingerprint}
    scans = [digest[:16] for digest in real.cohort.digests]
    shown = [scans[item.place] for trial in session.trials for item in trial.items if item.source == REAL]
    return stacks, {"source": source, "stub": common | {"cohorts": cohorts}, "scans": scans, "shown": shown}


def _hidden(text: str) -> str:
    """What a reader of a page's source does not see at a glance."""
    return base64.b64encode(text.encode("utf-8")).decode("ascii")


def result_html(session: Session, rater: str) -> str:
    """A rater's result at the end of the session: in words, and what there is to plot."""
    results = Results(session.answered(rater).values())
    pictures = "".join(figure_html(figure, words) for words, figure in result_figures(results))
    where = html.escape(str(session.path(rater)))
    return f"<p>{html.escape(results.sentence(rater))}</p>{pictures}<p>Kept in <code>{where}</code>.</p>"


def _asset(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


@functools.cache
def _widget_class() -> type:
    import anywidget
    import traitlets

    class Judge(anywidget.AnyWidget):
        """Hands out pictures, writes answers down, and tells the result when all are given."""

        _esm = _asset("judge.js") + _asset("judge_live.js")
        _css = _asset("judge.css")
        session = traitlets.Dict().tag(sync=True)
        asks = traitlets.Bool().tag(sync=True)

        def __init__(self, session: Session, rater: str | None) -> None:
            self._session, self._rater = session, rater or ""  # which is nobody's name
            super().__init__(session=without_truth(session), asks=rater is None)
            self.on_msg(self._hear)

        def _hear(self, _: object, message: dict[str, Any], __: object) -> None:
            """Answer the front end; what goes wrong is shown there, since nobody sees an exception in a callback."""
            reply = {"id": message.get("id")}
            try:
                reply["value"] = self._do(message)
            except Exception as error:
                reply["error"] = f"{error}" or type(error).__name__
            self.send(reply)

        def _do(self, message: dict[str, Any]) -> Any:
            if message["what"] == "open":
                if self.asks:
                    check_rater(message["rater"])
                    self._rater = message["rater"]
                return sorted(self._session.answered(self._rater))
            session, rater = self._session, self._rater
            if message["what"] == "pictures":
                return pictures(session, message["trial"])
            if message["what"] == "finish":
                return result_html(session, rater)
            trial = session.trials[message["trial"]]
            given = message["answer"], message["confidence"], message["seconds"]
            kept = session.answered(rater).get(trial.number)
            if kept is None:
                session.answer(trial, rater, *given)
            elif (kept["answer"], kept["confidence"]) != given[:2]:  # the same again: only the reply was lost
                raise ValueError(
                    f"trial {trial.number + 1} was answered before, elsewhere; run the cell again to go on"
                )
            return None

    return Judge
