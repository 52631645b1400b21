"""The model that the study is compared with: trained in two stages, stopped and gone on, drawn from."""

import sys
from pathlib import Path

import pytest
import torch

from labkit.files import load_state
from labkit.tests.brains import onions

EXPERIMENTS = Path(__file__).resolve().parents[2] / "book" / "experiments"
pytest.importorskip("einops", reason="comes with labkit[experiments]")


@pytest.fixture(scope="module")
def peers():
    sys.path.insert(0, str(EXPERIMENTS))
    try:
        import peers
    finally:
        sys.path.remove(str(EXPERIMENTS))
    return peers


def test_a_peer_goes_on_where_it_was_stopped_and_draws_scans_on_the_cohorts_grid(peers, tmp_path, monkeypatch):
    monkeypatch.setattr(peers, "WARM_UP", 0.4)  # of two iterations one without an adversary
    monkeypatch.setattr(peers, "STEPS", 2)
    monkeypatch.setattr(peers, "BATCH", 1)
    rats = onions(tmp_path / "rats", n=3)
    whole, parts = (peers.Peer(rats, tmp_path / name) for name in ("whole", "parts"))
    whole.fit({"autoencoder": 3, "diffusion": 2})
    stopped = peers.Peer(rats, tmp_path / "parts")
    monkeypatch.setattr(peers, "EVERY", 1)
    step, seen = stopped._autoencode, []

    def interrupted(*given):
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(given)
        step(*given)

    monkeypatch.setattr(stopped, "_autoencode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        stopped.fit({"autoencoder": 3, "diffusion": 2})
    parts.fit({"autoencoder": 3, "diffusion": 2})
    for name in ("autoencoder", "diffusion"):
        mine, theirs = (load_state(tmp_path / folder / f"{name}.safetensors") for folder in ("whole", "parts"))
        assert mine["iteration"] == theirs["iteration"] == (3 if name == "autoencoder" else 2)
        assert all(torch.equal(mine["model"][key], value) for key, value in theirs["model"].items())
        assert theirs.keys() >= {"model", "model_optimiser"} and ("critic" in theirs) == (name == "autoencoder")
    made = parts.draw(2, seed=1)
    assert len(made) == 2 and made.shape == rats.shape and made[0].image.std() > 0
    assert (made[0].image == whole.draw(2, seed=1)[0].image).all()
