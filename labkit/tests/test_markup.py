"""Texts of others are read on a page, and never run."""

import json

import numpy as np
import pandas as pd
import pytest

from labkit import cards, markup
from labkit.evidence.judging.results import padded
from labkit.evidence.segmentation import gains
from labkit.figures.frames import Card, Cards

ATTACKS = (
    "<script>window.ran = 1</script>", "<img src=x onerror='window.ran = 1'>", "<!--<script>", "</script><b>",
    "</style>", "](javascript:window.ran=1)", "a | b", "`x`", "$x$", "&lt;script&gt;",
)  # fmt: skip


def everything(text):
    """Whatever shows a text, as HTML."""
    frame = pd.DataFrame({text: [text, 0.12345], "p": [0.0001, np.nan]}, index=pd.Index([text, "b"], name=text))
    frame.columns.name = text
    two = pd.DataFrame([["x", "y", text, 0.1, 0.0, 0.2, 0.5, 0.5, 0.1, 0.1, 2, 3]],
                       columns=["arm", "reference", "tissue", "difference", "ci_low", "ci_high", "p", "p_holm",
                                "detectable", "seeds_sd", "seeds", "animals"])  # fmt: skip
    card = Card([np.zeros((4, 4), np.uint8)] * 2, [text, f"{text} again"], text)
    return [
        markup.styled(frame, caption=text).to_html(), padded(frame, text).to_html(), gains.shown(two).to_html(),
        card.html(), Cards([card, card], text).html(),
    ]  # fmt: skip


@pytest.mark.parametrize("text", ATTACKS)
def test_a_table_reads_every_text_as_it_stands(text):
    read = pytest.importorskip("bs4").BeautifulSoup
    frame = pd.DataFrame({text: [text]}, index=[text])
    html = markup.styled(frame, caption=text).to_html()
    assert not any(tag in html for tag in ("<script>", "<img", "<!--", "</script>", "<b>"))
    cells = read(html, "html.parser").find_all(["caption", "th", "td"])
    assert [cell.get_text().strip() for cell in cells] == [text, "", text, text, text]


@pytest.mark.parametrize("text", ATTACKS)
def test_json_in_a_page_comes_back_and_holds_no_tag(text):
    carried = markup.script_json({"words": [text]})
    assert "<" not in carried and json.loads(carried) == {"words": [text]}


def test_numbers_are_rounded_and_missing_ones_have_a_mark():
    frame = pd.DataFrame({"a": [1 / 3, np.nan], "n": [3, 4]})
    html = markup.styled(frame, 2, {"n": "{:03d}"}).to_html()
    assert ">0.33<" in html and ">–<" in html and ">003<" in html


def test_in_a_browser_nothing_of_it_runs_and_nothing_is_swallowed(browser_path, tmp_path):
    from playwright.sync_api import sync_playwright

    parts = [html for text in ATTACKS for html in everything(text)]
    page = tmp_path / "page.html"
    body = "".join(f'{part}<p class="after">after</p>' for part in parts)
    page.write_text(f"<!doctype html><meta charset=utf-8><body>{body}</body>", encoding="utf-8")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path)
        tab = browser.new_page()
        tab.goto(page.as_uri())
        tab.wait_for_timeout(200)
        assert tab.evaluate("window.ran") is None
        assert tab.locator("p.after").count() == len(parts)
        assert tab.locator("img").count() == 0
        browser.close()


@pytest.mark.parametrize("text", ATTACKS)
def test_markdown_of_others_texts_is_words(text):
    parser = pytest.importorskip("markdown_it").MarkdownIt
    table = cards.table({"name": markup.plain(text)}, "what", "it is")
    html = parser("commonmark").enable("table").render(table)
    assert not any(tag in html for tag in ("<script", "<img", "<!--", "<a ", "<code", "<b>"))
    assert html.count("<td>") == 2
