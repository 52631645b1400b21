"""Look at every built page in a real browser, over http and from the disk, and list what is wrong with it."""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import vendor

ROOT = Path(__file__).resolve().parents[1]
HTML = ROOT / "book" / "_build" / "html"
PHONE = 480
SERIOUS = ("serious", "critical")
ALSO = ("heading-order", "image-alt", "label")
"""Rules of axe that count whatever their impact."""

LOOK = (Path(__file__).with_suffix(".js")).read_text(encoding="utf-8").split("\n", 1)[1]

SEARCHED = "rat"
"""A word that is in every book."""

LINKS = "() => [...document.querySelectorAll('a[href]')].map((a) => a.href)"
WIDE = "() => document.documentElement.scrollWidth - window.innerWidth"
AXE = """
() => axe.run(document, {resultTypes: ["violations"], preload: false}).then((found) => found.violations.map(
  (one) => ({id: one.id, impact: one.impact, where: one.nodes.slice(0, 3).map((node) => node.target.join(" "))})))
"""


def browser_path() -> str:
    """Chromium or Chrome on this machine; SystemExit where there is none."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        sys.exit(f"no browser was found under the names {', '.join(names)}: install Chromium to check the book")
    return found


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """The folder over http on a free port of this machine."""
    handler = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def check(folder: Path, axe: Path | None = None) -> list[str]:
    """What is wrong with the pages in a folder.

    Parameters
    ----------
    folder : pathlib.Path
        Of built pages, ``*.html`` in it and below.
    axe : pathlib.Path, optional
        ``axe.min.js``; without it accessibility is not scanned.

    Returns
    -------
    list of str
        A line a fault, ``page (how it was opened): what``; empty if all is well.
    """
    from playwright.sync_api import sync_playwright

    pages = sorted(path for path in folder.rglob("*.html") if "_static" not in path.relative_to(folder).parts)
    # a page that only sends on to another is checked where it leads
    pages = [path for path in pages if 'http-equiv="refresh"' not in path.read_text(encoding="utf-8").lower()]
    if not pages:
        return [f"{folder}: no pages"]
    faults: dict[str, None] = {}
    with sync_playwright() as driver, served(folder) as address:
        browser = driver.chromium.launch(executable_path=browser_path(), args=["--no-sandbox"])
        for how, start in (("http", address), ("file", folder.resolve().as_uri())):
            for path in pages:
                name = path.relative_to(folder).as_posix()
                for fault in _page(browser, f"{start}/{name}", start, folder, axe if how == "http" else None):
                    faults[f"{name} ({how}): {fault}"] = None
            if (folder / "search.html").is_file():
                for fault in _search(browser, start):
                    faults[f"search.html ({how}): {fault}"] = None
        browser.close()
    return list(faults)


def _guard(page: Any, start: str, faults: list[str]) -> None:
    """Refuse what a page asks of other hosts, and count it as a fault."""

    def refuse(route: Any) -> None:
        asked = route.request.url
        if asked.startswith((start, "data:", "blob:")):
            route.continue_()
        else:
            faults.append(f"asks another host: {asked[:100]}")
            route.abort()

    page.route("**/*", refuse)


def _page(browser: Any, url: str, start: str, folder: Path, axe: Path | None) -> list[str]:
    faults: list[str] = []
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    page = context.new_page()

    _guard(page, start, faults)
    page.on("pageerror", lambda error: faults.append(f"a script failed: {str(error)[:150]}"))

    def heard(line: Any) -> None:
        if line.type == "error":
            faults.append(f"console: {line.text[:150]} {line.location.get('url', '')[:100]}")

    page.on("console", heard)
    page.goto(url, wait_until="load")
    page.evaluate("() => window.MathJax?.startup?.promise")
    page.wait_for_timeout(400)
    if axe is not None:
        page.add_script_tag(content=axe.read_text(encoding="utf-8"))
        for one in page.evaluate(AXE):
            if one["impact"] in SERIOUS or one["id"] in ALSO:
                faults.append(f"accessibility: {one['id']} ({one['impact']}) at {'; '.join(one['where'])[:160]}")
    faults += page.evaluate(LOOK)
    faults += _broken(page.evaluate(LINKS), start, folder)
    page.set_viewport_size({"width": PHONE, "height": 900})
    page.wait_for_timeout(100)
    if (wide := page.evaluate(WIDE)) > 0:
        faults.append(f"wider than a phone of {PHONE} px by {wide} px")
    context.close()
    return faults


def _search(browser: Any, start: str) -> list[str]:
    """Whether the book finds a word that is in it, and links to where it is."""
    page = browser.new_page()
    faults: list[str] = []
    page.on("console", lambda line: faults.append(f"console: {line.text[:150]}") if line.type == "error" else None)
    _guard(page, start, faults)
    page.goto(f"{start}/search.html?q={SEARCHED}", wait_until="load")
    with contextlib.suppress(Exception):
        page.wait_for_selector("#search-results li a", timeout=5000)
    page.wait_for_timeout(300)  # what stands around the words comes after the links
    if not page.query_selector_all("#search-results li a"):
        faults.append(f"a search for {SEARCHED} finds nothing")
    page.close()
    return faults


def _broken(links: list[str], start: str, folder: Path) -> list[str]:
    """Links within the book that lead nowhere."""
    found = []
    for link in dict.fromkeys(links):
        if not link.startswith(start):
            continue
        part = urlsplit(link)
        inside = unquote(link[len(start) :].split("#")[0].split("?")[0]).lstrip("/")
        target = folder / inside
        target = target / "index.html" if target.is_dir() else target
        if not target.is_file():
            found.append(f"a link to a page that is not there: {inside}")
        elif part.fragment and target.suffix == ".html":
            text = target.read_text(encoding="utf-8")
            if f'id="{unquote(part.fragment)}"' not in text and not part.fragment.startswith("/"):
                found.append(f"a link to a place that is not there: {inside}#{part.fragment}")
    return found


def main() -> None:
    """Check a folder of pages and exit with 1 if anything is wrong."""
    parser = argparse.ArgumentParser(prog="ci/check_book", description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=HTML)
    folder = parser.parse_args().folder
    if not (folder / "index.html").exists():
        sys.exit(f"{folder} holds no built book: run ci/book first")
    faults = check(folder, vendor.fetch("axe") / "axe.min.js")
    print(*faults, f"{len(faults)} faults", sep="\n")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
