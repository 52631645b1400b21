import warnings

import pytest
import torch

from labkit import capture, files
from labkit.capture import WARM_UP, Captured
from labkit.tests.rats import ellipsoids
from labkit.tests.steps import check_device, faults, make_draws, walk
from labkit.training import train
from labkit.updates import R1_EVERY, Learner, step, three_updates
from labkit.variants import VARIANTS, resolve

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
COUNT = WARM_UP + 3


def plain(learner):
    return lambda draws: step(learner, draws)


def wanting(learner):
    """A CPU's learner advanced as a GPU's is; what records is the test's."""
    advance = Captured(learner)
    advance.wanted = True
    return advance


def same(a, b):
    mine, theirs = (files.flatten(walked.learner.state())[0] for walked in (a, b))
    return torch.equal(a.terms, b.terms) and all(torch.equal(mine[name], theirs[name]) for name in mine)


def learner_of(model, device="cpu", **overrides):
    return Learner(*resolve(model, "smoke", **overrides), torch.device(device))


@pytest.mark.parametrize("model", VARIANTS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_on_a_cpu_it_is_the_step_bit_for_bit(model, precision):
    assert same(walk(model, "cpu", precision, COUNT), walk(model, "cpu", precision, COUNT, advance=plain))


def test_a_recording_that_fails_warns_once_and_leaves_no_trace(monkeypatch):
    def fail(learner, draws, stream):
        with learner.updating("D"):  # somewhere in the middle, with half of the Python side changed
            for parameter in learner.D.parameters():
                parameter.grad = torch.full_like(parameter, float("nan"))
            raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(capture, "record", fail)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        walked = walk("sigmarat2", "cpu", "fp32", COUNT, advance=wanting)
    assert len(seen) == 1 and "not permitted when stream is capturing" in str(seen[0].message)
    assert same(walked, walk("sigmarat2", "cpu", "fp32", COUNT, advance=plain))


def test_what_is_recorded_is_played_from_the_iteration_after_the_warm_up_and_no_iteration_counts_twice(monkeypatch):
    recorded, played = [], []

    def record(learner, draws, stream):
        recorded.append(learner.averaged)

        def replay(fresh):
            played.append(learner.averaged)
            return three_updates(learner, fresh)

        return replay

    monkeypatch.setattr(capture, "record", record)
    walked = walk("sigmarat1", "cpu", "fp32", COUNT, advance=wanting)
    assert recorded == [WARM_UP] and played == [WARM_UP, WARM_UP + 1, WARM_UP + 2]
    assert same(walked, walk("sigmarat1", "cpu", "fp32", COUNT, advance=plain))


def test_with_r1_iterations_of_both_kinds_are_recorded_each_after_a_warm_up_of_its_own(monkeypatch):
    recorded, played, count = [], [], WARM_UP * R1_EVERY + 2

    def record(learner, draws, stream):
        recorded.append(learner.averaged)
        kind = learner.penalised

        def replay(fresh):
            played.append(learner.averaged)
            assert learner.penalised == kind
            return three_updates(learner, fresh)

        return replay

    monkeypatch.setattr(capture, "record", record)
    walked = walk("sigmarat2", "cpu", "fp32", count, advance=wanting, r1=10.0)
    assert recorded == [WARM_UP + 1, WARM_UP * R1_EVERY]
    assert played == [k for k in range(WARM_UP + 1, count) if k % R1_EVERY or k == WARM_UP * R1_EVERY]
    assert same(walked, walk("sigmarat2", "cpu", "fp32", count, advance=plain, r1=10.0))


def test_a_recording_is_not_even_tried_where_it_is_not_wanted(monkeypatch):
    monkeypatch.setattr(capture, "record", lambda *_: pytest.fail("recorded"))
    learner = learner_of("sigmarat2")
    for advance in (Captured(learner), Captured(learner, graph=False)):
        for draws in make_draws(learner, COUNT):
            advance(draws)
        assert not advance.replays


def test_an_interrupt_while_recording_is_no_failure_to_go_on_from(monkeypatch):
    def interrupted(learner, draws, stream):
        raise KeyboardInterrupt

    monkeypatch.setattr(capture, "record", interrupted)
    with pytest.raises(KeyboardInterrupt):
        walk("sigmarat2", "cpu", "fp32", COUNT, advance=wanting)


def test_optimisers_are_capturable_only_while_recorded():
    learner = learner_of("adni")
    with pytest.raises(RuntimeError), capture.capturable(learner.optimisers.values()):
        assert all(g["capturable"] for o in learner.optimisers.values() for g in o.param_groups)
        raise RuntimeError
    assert not any(g["capturable"] for o in learner.optimisers.values() for g in o.param_groups)


@pytest.mark.parametrize("timing", [True, False])
def test_float32_convolutions_are_exact_within_and_settings_are_given_back(timing):
    cudnn = torch.backends.cudnn

    def settings():
        return cudnn.benchmark, cudnn.conv.fp32_precision if hasattr(cudnn, "conv") else cudnn.allow_tf32

    before = settings()
    with capture.convolving(torch.device("cpu"), timing):
        assert settings() == before
    with capture.convolving(torch.device("cuda"), timing):
        assert settings() == (timing, "ieee" if hasattr(cudnn, "conv") else False)
    assert settings() == before


def test_the_check_of_a_device_finds_a_wrong_iteration(monkeypatch):
    def forgetful(learner, draws, stream):
        return lambda fresh: three_updates(learner, draws)  # plays the first draws for ever

    found = check_device("cpu", "sigmarat2", "fp32", "smoke")
    assert found["recorded"] == 0 and found["first terms"] == found["replayed weights"] == 0
    assert faults(found, "fp32") == []
    monkeypatch.setattr(capture, "record", forgetful)
    monkeypatch.setattr("labkit.tests.steps.Captured", lambda learner, graph=True: (
        wanting(learner) if graph else Captured(learner, graph=False)))  # fmt: skip
    found = check_device("cpu", "sigmarat2", "fp32", "smoke")
    assert found["recorded"] == 1 and faults(found, "fp32")
    assert faults(dict.fromkeys(found, float("nan")), "fp32")


@needs_gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("model", VARIANTS)
def test_cuda_agrees_with_the_cpu_and_played_back_with_one_by_one(model, precision):
    found = check_device("cuda", model, precision)
    assert found["recorded"] == 1
    assert faults(found, precision) == []


@needs_gpu
@pytest.mark.parametrize("model", ["sigmarat2", "sigmarat3"])
def test_cuda_plays_back_both_kinds_of_iterations_of_r1(model):
    kinds = WARM_UP * R1_EVERY  # the iteration that is penalised and recorded, and one that is not
    found = check_device("cuda", model, "fp32", "smoke", iterations=kinds, r1=10.0, critic_augmentation=True)
    assert found["recorded"] == 2
    assert faults(found, "fp32") == []


@needs_gpu
def test_cuda_recording_executes_nothing():
    learner = learner_of("sigmarat1", "cuda")
    advance = Captured(learner)
    draws = make_draws(learner, WARM_UP + 1)
    for each in draws[:-1]:
        advance(each)
    before = {name: value.clone() for name, value in files.flatten(learner.state())[0].items()}
    with capture.convolving(learner.device):
        replay = capture.record(learner, draws[-1], advance.stream)
    after = files.flatten(learner.state())[0]
    assert all(torch.equal(before[name], after[name]) for name in before)
    replay(draws[-1])
    assert not all(torch.equal(before[name], after[name]) for name in before)


@needs_gpu
def test_cuda_terms_of_an_iteration_are_not_overwritten_by_the_next():
    learner = learner_of("sigmarat2", "cuda")
    advance = Captured(learner)
    *first, a, b = make_draws(learner, WARM_UP + 3)
    for draws in first:
        advance(draws)
    kept = advance(a)
    values = {name: float(value) for name, value in kept.items()}
    advance(b)
    assert advance.replays and {name: float(value) for name, value in kept.items()} == values


@needs_gpu
def test_cuda_recording_that_fails_goes_on_one_by_one(monkeypatch):
    real, calls = capture.three_updates, []

    def fails_while_recording(learner, draws):
        logged = real(learner, draws)
        if torch.cuda.is_current_stream_capturing():
            calls.append(float(logged["loss_D"]))  # waits for the device, which a recording forbids
        return logged

    monkeypatch.setattr(capture, "three_updates", fails_while_recording)
    with pytest.warns(UserWarning, match="could not be recorded"):
        failed = walk("sigmarat2", "cuda", "fp32", COUNT)
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    monkeypatch.setattr(capture, "three_updates", real)
    eager = walk("sigmarat2", "cuda", "fp32", COUNT, advance=lambda learner: Captured(learner, graph=False))
    torch.testing.assert_close(failed.terms, eager.terms, rtol=1e-2, atol=1e-2)


@needs_gpu
def test_cuda_run_resumes_and_a_cpu_opens_it(tmp_path):
    rats = ellipsoids(tmp_path / "rats")
    options = {"checkpoint_every": 8, "sample_every": 8, "log_every": 4, "ema_decay": 0.5, "precision": "fp32"}
    whole = train("sigmarat2", rats, "smoke", tmp_path / "whole", 16, device="cuda", **options)
    train("sigmarat2", rats, "smoke", tmp_path / "parts", 8, device="cuda", **options)
    parts = train("sigmarat2", rats, "smoke", tmp_path / "parts", 16, device="cuda", **options)
    a, b = (torch.cat([p.flatten() for p in run.generator().parameters()]) for run in (whole, parts))
    assert (a - b).norm() < 0.05 * a.norm()
    assert list(parts.losses.index) == [4, 8, 12, 16]
    assert parts.generator("cpu")(torch.randn(2, 500)).shape == (2, 1, 16, 16, 16)
