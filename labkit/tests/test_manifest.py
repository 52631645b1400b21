import hashlib
import os
import sys
from pathlib import Path

import pytest
import requests

from labkit.data import manifest

CONTENT = {"brain.nii.gz": b"a rat brain", "mask.nii.gz": b"its mask"}
SHA256 = {name: hashlib.sha256(content).hexdigest() for name, content in CONTENT.items()}


def toml_of(name: str) -> str:
    return f"""
[[files]]
name = "{name}"
url = "v1/{name}"
sha256 = "{SHA256[name]}"
bytes = {len(CONTENT[name])}
description = "one line"
"""


HEAD = """
title = "Two small files"
licence = "CC0"
citation = "nobody"
doi = ""
space = "RAS"
base_url = "https://data.invalid/rats/"
mirror_path = "tiny_mirror"
"""


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A dataset `tiny` of two files, an empty data folder, no mirror, no network; the folder its files belong in."""
    (tmp_path / "manifests").mkdir()
    (tmp_path / "manifests" / "tiny.toml").write_text(HEAD + "".join(map(toml_of, CONTENT)))
    monkeypatch.setattr(manifest, "manifest_folder", lambda: tmp_path / "manifests")
    monkeypatch.setenv("LABKIT_DATA", str(tmp_path / "data"))
    monkeypatch.delenv("LABKIT_MIRROR", raising=False)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # pooch waits a second before it tries again
    offline(monkeypatch)
    return tmp_path / "data" / "tiny"


@pytest.fixture
def tiny_mirror(tiny, tmp_path, monkeypatch):
    """A mirror folder that holds both files."""
    folder = tmp_path / "mirror"
    (folder / "tiny_mirror").mkdir(parents=True)
    for name, content in CONTENT.items():
        (folder / "tiny_mirror" / name).write_bytes(content)
    monkeypatch.setenv("LABKIT_MIRROR", str(folder))
    return folder


def offline(monkeypatch) -> list[str]:
    asked = []

    def download(url, path):
        asked.append(url)
        Path(path).write_bytes(b"half")
        raise requests.ConnectionError("no route to data.invalid")

    monkeypatch.setattr(manifest, "_download", download)
    return asked


def online(monkeypatch, content=CONTENT) -> list[str]:
    asked = []

    def download(url, path):
        asked.append(url)
        Path(path).write_bytes(content[url.rsplit("/", 1)[-1]])

    monkeypatch.setattr(manifest, "_download", download)
    return asked


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_files_come_from_the_published_address(tiny, monkeypatch):
    asked = online(monkeypatch)
    paths = manifest.fetch("tiny")
    assert asked == ["https://data.invalid/rats/v1/brain.nii.gz", "https://data.invalid/rats/v1/mask.nii.gz"]
    assert list(paths) == list(CONTENT)
    assert {name: path.read_bytes() for name, path in paths.items()} == CONTENT
    assert {path.parent for path in paths.values()} == {tiny}


def test_a_second_fetch_asks_nobody(tiny, tiny_mirror, monkeypatch):
    paths = manifest.fetch("tiny")
    monkeypatch.delenv("LABKIT_MIRROR")
    asked = online(monkeypatch)
    assert manifest.fetch("tiny") == paths and asked == []


def test_only_the_files_asked_for_are_fetched(tiny, tiny_mirror):
    assert list(manifest.fetch("tiny", files=["mask.nii.gz"])) == ["mask.nii.gz"]
    assert names_in(tiny) == ["mask.nii.gz"]
    assert list(manifest.fetch("tiny", files="brain.nii.gz")) == ["brain.nii.gz"]


@pytest.mark.parametrize("form", ["{}", "file://{}"])
def test_a_mirror_folder_is_asked_before_the_network(tiny, tiny_mirror, monkeypatch, form):
    monkeypatch.setenv("LABKIT_MIRROR", form.format(tiny_mirror))
    asked = online(monkeypatch)
    assert {name: path.read_bytes() for name, path in manifest.fetch("tiny").items()} == CONTENT
    assert asked == []


def test_a_mirror_address_is_asked_before_the_network(tiny, monkeypatch):
    monkeypatch.setenv("LABKIT_MIRROR", "http://mirror.invalid/rats")
    asked = online(monkeypatch)
    manifest.fetch("tiny")
    assert asked == [f"http://mirror.invalid/rats/tiny_mirror/{name}" for name in CONTENT]


def test_what_the_mirror_lacks_comes_from_the_network(tiny, tiny_mirror, monkeypatch):
    (tiny_mirror / "tiny_mirror" / "mask.nii.gz").unlink()
    asked = online(monkeypatch)
    assert list(manifest.fetch("tiny")) == list(CONTENT)
    assert asked == ["https://data.invalid/rats/v1/mask.nii.gz"]


def test_a_corrupted_mirror_file_is_an_error_with_both_hashes(tiny, tiny_mirror, monkeypatch):
    (tiny_mirror / "tiny_mirror" / "brain.nii.gz").write_bytes(b"a rat bra")
    asked = online(monkeypatch)
    with pytest.raises(manifest.HashMismatchError) as caught:
        manifest.fetch("tiny")
    for part in ("brain.nii.gz", SHA256["brain.nii.gz"], hashlib.sha256(b"a rat bra").hexdigest()):
        assert part in str(caught.value)
    assert names_in(tiny) == [] and asked == [] and isinstance(caught.value, OSError)


def test_a_corrupted_download_is_an_error_and_leaves_nothing(tiny, monkeypatch):
    online(monkeypatch, CONTENT | {"mask.nii.gz": b"a login page"})
    with pytest.raises(manifest.HashMismatchError, match="mask.nii.gz"):
        manifest.fetch("tiny")
    assert names_in(tiny) == ["brain.nii.gz"]


def test_offline_one_error_says_what_to_put_where(tiny):
    with pytest.raises(manifest.DataUnavailableError) as caught:
        manifest.fetch("tiny")
    message = str(caught.value)
    for name, content in CONTENT.items():
        assert f"https://data.invalid/rats/v1/{name}" in message
        assert SHA256[name] in message and f"{len(content)} bytes" in message
    assert str(tiny) in message and "LABKIT_MIRROR" in message and "no route" in message


def test_a_failing_download_leaves_no_partial_file(tiny):
    with pytest.raises(OSError, match="2 of the 2 files"):
        manifest.fetch("tiny")
    assert names_in(tiny) == []


def test_a_server_that_does_not_answer_is_asked_for_one_file_only(tiny, monkeypatch):
    asked = offline(monkeypatch)
    with pytest.raises(manifest.DataUnavailableError):
        manifest.fetch("tiny")
    assert asked == (1 + manifest.RETRIES) * ["https://data.invalid/rats/v1/brain.nii.gz"]


def test_a_download_that_breaks_off_is_tried_again(tiny, monkeypatch):
    broken = offline(monkeypatch)
    breaks_off = manifest._download
    asked = online(monkeypatch)
    whole = manifest._download
    monkeypatch.setattr(manifest, "_download", lambda *args: whole(*args) if broken else breaks_off(*args))
    assert list(manifest.fetch("tiny")) == list(CONTENT)
    assert broken == asked[:1] and len(asked) == 2


def test_a_server_that_lacks_one_file_is_asked_for_the_others(tiny, monkeypatch):
    def download(url, path):
        if url.endswith("brain.nii.gz"):
            raise requests.HTTPError("404 Not Found", response=requests.Response())
        Path(path).write_bytes(CONTENT["mask.nii.gz"])

    monkeypatch.setattr(manifest, "_download", download)
    with pytest.raises(manifest.DataUnavailableError, match="1 of the 2 files") as caught:
        manifest.fetch("tiny")
    assert names_in(tiny) == ["mask.nii.gz"] and "mask.nii.gz" not in str(caught.value)


def test_a_full_disk_is_not_called_missing_data(tiny, monkeypatch):
    def download(url, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(manifest, "_download", download)
    with pytest.raises(OSError, match="No space left") as caught:
        manifest.fetch("tiny")
    assert not isinstance(caught.value, manifest.DataUnavailableError)


def test_files_put_there_by_hand_are_verified_and_used(tiny):
    tiny.mkdir(parents=True)
    for name, content in CONTENT.items():
        (tiny / name).write_bytes(content)
    assert list(manifest.fetch("tiny")) == list(CONTENT)


def test_a_wrong_file_put_there_by_hand_is_named_and_not_used(tiny):
    tiny.mkdir(parents=True)
    (tiny / "brain.nii.gz").write_bytes(b"another rat")
    with pytest.raises(manifest.DataUnavailableError) as caught:
        manifest.fetch("tiny", files="brain.nii.gz")
    assert hashlib.sha256(b"another rat").hexdigest() in str(caught.value)


def test_a_wrong_file_is_replaced_when_a_good_one_can_be_had(tiny, tiny_mirror):
    tiny.mkdir(parents=True)
    (tiny / "brain.nii.gz").write_bytes(b"another rat")
    assert manifest.fetch("tiny")["brain.nii.gz"].read_bytes() == CONTENT["brain.nii.gz"]


def test_a_mirror_that_is_no_folder_is_said_so(tiny, monkeypatch, tmp_path):
    monkeypatch.setenv("LABKIT_MIRROR", str(tmp_path / "mirorr"))
    with pytest.raises(NotADirectoryError, match="mirorr"):
        manifest.fetch("tiny")


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'sigma'"):
        manifest.load_manifest("sigmma")
    with pytest.raises(ValueError, match="did you mean 'SIGMA_template_zoom.nii'"):
        manifest.fetch("sigma", files=["SIGMA_template.nii"])


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (('name = "brain.nii.gz"', 'name = "../brain.nii.gz"'), "below the dataset's"),
        (('name = "brain.nii.gz"', 'name = "/brain.nii.gz"'), "below the dataset's"),
        ((SHA256["brain.nii.gz"], "abc"), "sha256"),
        (("bytes = 11", "bytes = 0"), "bytes"),
        (("https://data.invalid", "ftp://data.invalid"), "url"),
        (('name = "mask.nii.gz"', 'name = "brain.nii.gz"'), "same name"),
        (('licence = "CC0"', 'license = "CC0"'), "license"),
        (("base_url", "base"), "base_url"),
    ],
)
def test_a_manifest_with_a_fault_is_refused(tiny, change, fault):
    path = manifest.manifest_folder() / "tiny.toml"
    text = path.read_text()
    assert change[0] in text
    path.write_text(text.replace(*change, 1))
    with pytest.raises(ValueError, match=fault):
        manifest.load_manifest("tiny")


def test_every_manifest_of_the_repository_can_be_read():
    assert {"mice", "nirodents", "sigma"} <= set(manifest.datasets())
    for name in manifest.datasets():
        dataset = manifest.load_manifest(name)
        assert dataset.files and dataset.licence and dataset.citation and dataset.space
        assert all(file.description for file in dataset.files)


def test_the_data_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("LABKIT_DATA", str(tmp_path / "rats"))
    assert manifest.data_folder() == tmp_path / "rats"
    monkeypatch.delenv("LABKIT_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    pooch = pytest.importorskip("pooch")
    assert manifest.data_folder() == Path(pooch.os_cache("labkit"))


def test_a_file_that_arrives_can_be_read_by_others(tiny, tiny_mirror):
    if sys.platform == "win32":
        pytest.skip("permission bits are POSIX")
    before = os.umask(0o022)
    try:
        assert manifest.fetch("tiny")["mask.nii.gz"].stat().st_mode & 0o044 == 0o044
    finally:
        os.umask(before)


@pytest.mark.parametrize("name", ["sigma", "nirodents"])
def test_the_published_files_are_what_the_manifest_says(name, mirror, tmp_path, monkeypatch):
    monkeypatch.setenv("LABKIT_DATA", str(tmp_path))
    monkeypatch.setattr(manifest, "_download", lambda *_: pytest.fail("the mirror does not have every file"))
    sizes = {file.name: file.bytes for file in manifest.load_manifest(name).files}
    assert {file: path.stat().st_size for file, path in manifest.fetch(name).items()} == sizes
