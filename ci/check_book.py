"""Look at every built page in a real browser, over http and from the disk, and list what is wrong with it."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import vendor

ROOT = Path(__file__).resolve().parents[1]
HTML = ROOT / "book" / "_build" / "html"
FETCHED = ROOT / "ci" / "chrome"
PHONE = 480
AT_ONCE = 4
"""Pages open at a time: most of the time a page waits."""

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

MACHINE = "div.rats"
"""What makes rats in a page, and what is asked of it: every slider changes all planes, quickly."""

PLACE = "<div data-rats "
RATS = """
async (host) => {
  const canvases = [...host.querySelectorAll("canvas")], seen = () => canvases.map((canvas) => canvas.toDataURL());
  const pause = (ms) => new Promise((done) => setTimeout(done, ms)), times = host.ratTimes, faults = [];
  const move = async (input, value) => {
    const drawn = times.frames.length;
    input.value = value;
    input.dispatchEvent(new Event("input"));
    for (let k = 0; k < 500 && times.frames.length === drawn; k++) await pause(2);
  };
  const settle = async () => {
    let drawn;
    do { drawn = times.frames.length; await pause(400); } while (times.frames.length !== drawn);
  };
  const sliders = [...host.querySelectorAll("input[type=range]:enabled")];
  for (const input of sliders) {
    await settle();
    const before = seen(), was = input.value;
    await move(input, input.max);
    const name = input.closest("label").textContent, now = seen();
    const same = canvases.length !== 3 || now.some((one, k) => one === before[k]);
    if (same) faults.push(`a slider that does not change all planes: ${name}`);
    await move(input, was);
  }
  await settle();
  times.frames.length = 0;
  const [input] = sliders.slice(1);
  for (let k = 0; k < 60; k++) await move(input, k % 2 ? k / 30 : -k / 30);
  const frames = [...times.frames].sort((a, b) => a - b), at = (part) => frames[Math.floor(part * (frames.length - 1))];
  await settle();
  return {faults, median: at(0.5), slow: at(0.95), volume: times.volume};
}
"""
SLOWER = 4
"""How many times as slow a phone is taken to be."""

ORDERED = 10
"""Rats that are taken out of a page."""


def browser_path() -> str:
    """Chromium or Chrome on this machine, or one that is fetched; SystemExit where there can be none."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    if found := next(filter(None, map(shutil.which, names)), None):
        return found
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        sys.exit(f"no browser was found under the names {', '.join(names)}: install Chromium to check the book")
    (vendor.fetch("chromium") / "chromium").chmod(0o755)
    done = subprocess.run([FETCHED, "--version"], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"the browser that was fetched does not run here, install Chromium: {done.stderr.strip()[-300:]}")
    return str(FETCHED)


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """The folder over http on a free port of this machine."""
    handler = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder)))
    server.handle_error = lambda *_: None  # a page that is closed before it has everything is no fault
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def check(folder: Path, axe: Path | None = None) -> list[str]:
    """What is wrong with the pages in and below a folder, ``page (how it was opened): what``.

    Without `axe`, its ``axe.min.js``, accessibility is not scanned.
    """
    pages = sorted(path for path in folder.rglob("*.html") if "_static" not in path.relative_to(folder).parts)
    # a page that only sends on to another is checked where it leads
    pages = [path for path in pages if 'http-equiv="refresh"' not in path.read_text(encoding="utf-8").lower()]
    return asyncio.run(_check(folder, pages, axe)) if pages else [f"{folder}: no pages"]


async def _check(folder: Path, pages: list[Path], axe: Path | None) -> list[str]:
    from playwright.async_api import async_playwright

    names = [path.relative_to(folder).as_posix() for path in pages]
    at_once = asyncio.Semaphore(AT_ONCE)

    async def look(how: str, start: str, name: str) -> list[str]:
        async with at_once:
            found = await _page(browser, f"{start}/{name}", start, folder, axe if how == "http" else None)
            if name == "search.html":
                found += await _search(browser, start)
        return [f"{name} ({how}): {fault}" for fault in dict.fromkeys(found)]

    async with async_playwright() as driver:
        browser = await driver.chromium.launch(executable_path=browser_path(), args=["--no-sandbox"])
        with served(folder) as address:
            ways = (("http", address), ("file", folder.resolve().as_uri()))
            found = await asyncio.gather(*(look(how, start, name) for how, start in ways for name in names))
            machines = [
                name for name, page in zip(names, pages, strict=True) if PLACE in page.read_text(encoding="utf-8")
            ]
            for how, start in ways:  # one after the other, as they are timed
                found += [
                    [f"{name} ({how}): {fault}" for fault in await _rats(browser, f"{start}/{name}")]
                    for name in machines
                ]
        await browser.close()
    return [fault for faults in found for fault in faults]


async def _guard(page: Any, start: str, faults: list[str]) -> None:
    """Refuse what a page asks of other hosts, and count it as a fault."""

    async def refuse(route: Any) -> None:
        asked = route.request.url
        if asked.startswith((start, "data:", "blob:")):
            await route.continue_()
        else:
            faults.append(f"asks another host: {asked[:100]}")
            await route.abort()

    await page.route("**/*", refuse)


async def _page(browser: Any, url: str, start: str, folder: Path, axe: Path | None) -> list[str]:
    faults: list[str] = []
    context = await browser.new_context(viewport={"width": 1200, "height": 900})
    page = await context.new_page()
    await _guard(page, start, faults)
    page.on("pageerror", lambda error: faults.append(f"a script failed: {str(error)[:150]}"))

    def heard(line: Any) -> None:
        if line.type == "error":
            faults.append(f"console: {line.text[:150]} {line.location.get('url', '')[:100]}")

    page.on("console", heard)
    await page.goto(url, wait_until="load")
    await page.evaluate("() => window.MathJax?.startup?.promise")
    await page.wait_for_timeout(400)
    if await page.query_selector(MACHINE):
        try:
            await _ready(page)  # for what is looked at below; how it works is tried when no other page is open
        except Exception as error:
            faults.append(f"a machine that makes no rats: {str(error).splitlines()[0][:150]}")
    if axe is not None:
        await page.add_script_tag(content=axe.read_text(encoding="utf-8"))
        for one in await page.evaluate(AXE):
            if one["impact"] in SERIOUS or one["id"] in ALSO:
                faults.append(f"accessibility: {one['id']} ({one['impact']}) at {'; '.join(one['where'])[:160]}")
    faults += await page.evaluate(LOOK)
    faults += _broken(await page.evaluate(LINKS), start, folder)
    await page.set_viewport_size({"width": PHONE, "height": 900})
    await page.wait_for_timeout(100)
    if (wide := await page.evaluate(WIDE)) > 0:
        faults.append(f"wider than a phone of {PHONE} px by {wide} px")
    await context.close()
    return faults


async def _rats(browser: Any, url: str) -> list[str]:
    """Whether the machine in a page makes rats and gives them; says how fast it is."""
    try:
        page = await browser.new_page()
        await page.goto(url, wait_until="load")
        await _ready(page)
        found = await page.evaluate(RATS, await page.query_selector(MACHINE))
        await page.get_by_label("how many rats").fill(str(ORDERED))
        async with page.expect_download(timeout=120_000) as download:
            await page.get_by_role("button", name="Save (.zip, BIDS)").click()
        with tempfile.TemporaryDirectory() as folder:
            await (await download.value).save_as(f"{folder}/rats.zip")
            faults = found["faults"] + _opened(Path(folder))
        await page.close()
        context = await browser.new_context()
        phone = await context.new_page()
        # a worker is not slowed down with its page, so that all is made in the page itself
        await phone.add_init_script("window.Worker = undefined")
        await phone.goto(url, wait_until="load")
        await _ready(phone)
        session = await context.new_cdp_session(phone)
        await session.send("Emulation.setCPUThrottlingRate", {"rate": SLOWER})
        slow = await phone.evaluate(RATS, await phone.query_selector(MACHINE))
        faults += [f"{fault} (without a worker)" for fault in slow["faults"]]
        await context.close()
    except Exception as error:
        return [f"a machine that makes no rats: {str(error).splitlines()[0][:150]}"]
    times = [
        f"{one['median']:.0f} ms (95 %: {one['slow']:.0f}), a whole rat {one['volume']:.0f} ms" for one in (found, slow)
    ]
    where = f"{Path(urlsplit(url).path).name} ({urlsplit(url).scheme})"
    print(f"{where}: a frame takes {times[0]}; {SLOWER} times slower {times[1]}", flush=True)
    return faults


async def _ready(page: Any) -> None:
    """Bring the machine into view, where it begins, and wait for its first rat."""
    await page.locator(MACHINE).first.scroll_into_view_if_needed()
    await page.wait_for_selector(f"{MACHINE} .rats-about", timeout=60_000)
    await page.wait_for_function(f"() => document.querySelector('{MACHINE}').ratTimes.volume !== null", timeout=60_000)


def _opened(folder: Path) -> list[str]:
    """What is wrong with rats that came out of a page, in ``rats.zip``."""
    import labkit

    with zipfile.ZipFile(folder / "rats.zip") as archive:
        archive.extractall(folder / "rats")
    try:
        made = labkit.open_cohort(folder / "rats", grid="native", twins=True)
    except labkit.CohortError as error:
        return [f"rats that do not open: {error}"]
    labelled = sum(scan.labels is not None and bool(scan.labels.any()) for scan in made)
    told = [len(made) == ORDERED, labelled in (0, ORDERED), all(float(scan.image.std()) > 0 for scan in made)]
    return [] if all(told) else [f"{ORDERED} rats were asked for, {len(made)} came, {labelled} with labels"]


async def _search(browser: Any, start: str) -> list[str]:
    """Whether the book finds a word that is in it, and links to where it is."""
    page = await browser.new_page()
    faults: list[str] = []
    page.on("console", lambda line: faults.append(f"console: {line.text[:150]}") if line.type == "error" else None)
    await _guard(page, start, faults)
    await page.goto(f"{start}/search.html?q={SEARCHED}", wait_until="load")
    with contextlib.suppress(Exception):
        await page.wait_for_selector("#search-results li a", timeout=5000)
    await page.wait_for_timeout(300)  # what stands around the words comes after the links
    if not await page.query_selector_all("#search-results li a"):
        faults.append(f"a search for {SEARCHED} finds nothing")
    await page.close()
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
