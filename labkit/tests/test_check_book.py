import importlib.util
import sys
from pathlib import Path

import pytest

CI = Path(__file__).resolve().parents[2] / "ci"
if not (CI / "check_book.py").is_file():
    pytest.skip("the check is part of a checkout, not of an installed labkit", allow_module_level=True)
PICTURE = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' width='9' height='9'%3E"
    "%3Crect width='4' height='9'/%3E%3C/svg%3E"
)
BLANK = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
GOOD = f'<h1 id="top">Page</h1><p><a href="#top">up</a></p><img src="{PICTURE}" alt="half black">'
GOOD += '<div class="doctest"><pre>Traceback (most recent call last)</pre></div>'


@pytest.fixture(scope="module")
def checker(browser_path):
    sys.path.insert(0, str(CI))
    try:
        spec = importlib.util.spec_from_file_location("check_book", CI / "check_book.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(CI))


DEAD_CARD = (
    '<div class="card-frames"><div role="img" aria-label="a"></div><input type="range" min="0" max="3">'
    "<output>a</output></div>"
)
FAULTS = [
    ('<img alt="x" src="http://example.org/a.png">', "asks another host"),
    ("<script>fetch('https://example.org/x')</script>", "asks another host"),
    ("<script>undefinedFunction()</script>", "a script failed"),
    ("<script>console.error('oh')</script>", "console: oh"),
    (f'<img alt="nothing" src="{BLANK}">', "a blank image"),
    (f'<img src="{PICTURE}">', "without words"),
    (f'<img alt="{"0a" * 16}" src="{PICTURE}">', "without words"),
    ('<img alt="gone" src="gone.png">', "does not load"),
    ("<pre>Traceback (most recent call last)</pre>", "a saved traceback"),
    ('<div class="interactive-figure"></div>', "not drawn"),
    (DEAD_CARD, "changes no picture"),
    (f'<div class="cards"><select aria-label="a"><option>a<option>b</select>{2 * DEAD_CARD}</div>',
     "does not choose one card"),
    ('<a href="other.html">x</a>', "page that is not there"),
    ('<a href="#nowhere">x</a>', "place that is not there"),
    ('<div style="width:900px">wide</div>', "wider than a phone"),
    ('<span class="math">x^2</span>', "equations that are not set"),
    ("<mjx-merror>Misplaced</mjx-merror>", "no TeX"),
    ('<div class="judge"><p>dead</p></div>', "does not begin"),
]  # fmt: skip
"""What is added to a good page, and what has to be said of it."""


@pytest.fixture(scope="module")
def axe(checker):
    """The scanner for accessibility, or None where it cannot be fetched."""
    try:
        return checker.vendor.fetch("axe") / "axe.min.js"
    except SystemExit:
        return None


@pytest.fixture(scope="module")
def found(checker, axe, tmp_path_factory):
    """Faults by page, of a folder with a good page and one for each fault."""
    folder = tmp_path_factory.mktemp("pages")
    head = '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>t</title></head>'
    bodies = {"good": "", "faint": '<p style="color:#ccc;background:#fff">faint</p><input>'}
    for name, body in {**bodies, **{f"fault{k}": body for k, (body, _) in enumerate(FAULTS)}}.items():
        (folder / f"{name}.html").write_text(f"{head}<body><main>{GOOD}{body}</main></body></html>")
    (folder / "search.html").write_text(
        f"{head}<body><main><h1>Search</h1><ul id='search-results'></ul></main></body></html>"
    )
    lines = checker.check(folder, axe)
    return {path.stem: [line for line in lines if line.startswith(path.name)] for path in folder.iterdir()}


def test_a_good_page_has_no_faults(found):
    assert found["good"] == []


@pytest.mark.parametrize("number", range(len(FAULTS)), ids=[words for _, words in FAULTS])
def test_a_planted_fault_is_found(found, number):
    assert any(FAULTS[number][1] in fault for fault in found[f"fault{number}"])


def test_a_search_that_finds_nothing_is_a_fault(found):
    assert any("finds nothing" in fault for fault in found["search"])


def test_a_search_that_works_is_none_and_one_that_asks_elsewhere_is(checker, tmp_path):
    head = '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>t</title></head>'
    script = "document.getElementById('search-results').innerHTML = '<li><a href=good.html>rat</a></li>'; {}"
    for name, more in (("works", ""), ("asks", "if (location.search) fetch('https://example.org/x').catch(() => 0)")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "good.html").write_text(f"{head}<body><main>{GOOD}</main></body></html>")
        body = f"<main><h1>Search</h1><ul id='search-results'></ul></main><script>{script.format(more)}</script>"
        (folder / "search.html").write_text(f"{head}<body>{body}</body></html>")
    assert checker.check(tmp_path / "works") == []
    assert any("search.html (file): asks another host" in fault for fault in checker.check(tmp_path / "asks"))


def test_accessibility_is_scanned_where_axe_is_there(found, axe):
    if axe is None:
        pytest.skip("needs axe-core, which npm fetches")
    assert any("color-contrast" in fault for fault in found["faint"])
    assert any("label" in fault for fault in found["faint"])


def test_an_empty_folder_is_no_book(checker, tmp_path):
    assert checker.check(tmp_path) == [f"{tmp_path}: no pages"]


def test_on_a_phone_a_small_table_is_a_card_a_row_and_a_large_one_scrolls(browser_path, tmp_path):
    from playwright.sync_api import sync_playwright

    static = CI.parent / "book" / "_static"
    head = "".join(f"<th>column {k} of many</th>" for k in range(6))
    row = "".join(f"<td>value {k}</td>" for k in range(6))
    tables = "".join(
        f'<table class="table"><thead><tr>{head}</tr></thead><tbody>{n * f"<tr>{row}</tr>"}</tbody></table>'
        for n in (3, 40)
    )
    page = f'<style>{(static / "book.css").read_text()}</style><article class="bd-article">{tables}</article>'
    script = (static / "cards.js").read_text()
    (tmp_path / "page.html").write_text(f"<!doctype html><body>{page}<script>{script}</script></body>")
    shown = """[...document.querySelectorAll('table')].map((table) => {
      const row = table.tBodies[0].rows[0], label = getComputedStyle(row.cells[2], '::before').content;
      return [getComputedStyle(row).display, table.getBoundingClientRect().right <= innerWidth, label];
    })"""
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        seen = {}
        for width in (390, 1200):
            view = browser.new_page(viewport={"width": width, "height": 800})
            view.goto((tmp_path / "page.html").as_uri())
            seen[width] = view.evaluate(shown)
            roles = view.evaluate("document.querySelector('table').tBodies[0].rows[0].cells[0].getAttribute('role')")
            assert roles == "cell" and view.evaluate("document.documentElement.scrollWidth <= innerWidth")
        browser.close()
    assert seen[390] == [["block", True, '"column 2 of many"'], ["table-row", True, "none"]]
    assert seen[1200] == [["table-row", True, "none"]] * 2
