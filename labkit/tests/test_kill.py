import sys
from pathlib import Path

import pytest

CI = Path(__file__).parents[2] / "ci"


@pytest.fixture
def kill(monkeypatch):
    monkeypatch.syspath_prepend(str(CI))
    import kill

    yield kill
    sys.modules.pop("kill")


def test_work_that_was_killed_ends_as_if_left_alone(kill, capsys):
    assert kill.main(["--rounds", "3", "--seed", "7", "--work", "train,generate,simulate"]) == 0
    assert "3 rounds of train, generate, simulate: 0 ended otherwise" in capsys.readouterr().out


def test_it_sees_what_a_kill_would_have_changed(kill, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name / "samples").mkdir(parents=True)
        (tmp_path / name / "losses.csv").write_text(f"iteration,mse,images_per_s\n1,0.5,{len(name) + ord(name)}\n")
        (tmp_path / name / "provenance.json").write_text(name)
        (tmp_path / name / "samples" / "x.png").write_text("same")
    assert kill.content(tmp_path / "a") == kill.content(tmp_path / "b")
    (tmp_path / "b" / "samples" / "x.png").write_text("other")
    assert kill.content(tmp_path / "a") != kill.content(tmp_path / "b")
    (tmp_path / "b" / "samples" / "x.png").write_text("same")
    (tmp_path / "b" / "losses.csv").write_text("iteration,mse,images_per_s\n1,0.6,3\n")
    assert kill.content(tmp_path / "a") != kill.content(tmp_path / "b")
