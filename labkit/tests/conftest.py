"""What every test may rely on: no screen, no network data, and never the user's own cache."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

os.environ.setdefault("MPLBACKEND", "Agg")  # before anything imports matplotlib
# Volumes of 16^3 are done before two threads have met, and waiting for each other costs tenfold on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session", autouse=True)
def data_in_a_scratch_folder(tmp_path_factory):
    """LABKIT_DATA for the whole session, so that no result depends on what an earlier run left in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LABKIT_DATA", str(tmp_path_factory.mktemp("labkit_data")))
        yield


@pytest.fixture(scope="session")
def mirror() -> Path:
    """The folder of published files that LABKIT_MIRROR names; the test is skipped where there is none."""
    folder = Path(os.environ.get("LABKIT_MIRROR", "")).expanduser()
    if not os.environ.get("LABKIT_MIRROR") or not folder.is_dir():
        pytest.skip("needs the published files: set LABKIT_MIRROR to a folder that holds sigma/, scans/ and mice/")
    return folder.absolute()


@pytest.fixture(scope="session")
def browser_path() -> str:
    """Where a real browser is; the test is skipped where there can be none, with the reason."""
    pytest.importorskip("playwright")
    words = "import sys; sys.path.insert(0, 'ci'); import check_book; print(check_book.browser_path())"
    top = Path(__file__).resolve().parents[2]
    found = subprocess.run([sys.executable, "-c", words], cwd=top, capture_output=True, text=True, check=False)
    if found.returncode:
        pytest.skip(found.stderr.strip().splitlines()[-1])
    return found.stdout.strip()


@pytest.fixture(scope="module")
def chromium(browser_path):
    """That browser, open."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        yield browser
        browser.close()
