"""An iteration recorded once on a GPU and played back: one launch instead of one for every small operation.

Asking for a kernel takes Python longer than most of an iteration's kernels run. A CUDA graph holds them all, with their
arguments. What makes that safe here:

- Everything random comes in from outside (`labkit.updates.Draws`), is copied to where the recorded kernels look for
  it, and the terms to be logged are copied out before the next iteration overwrites them.
- Gradients, activations and the optimisers' step counts live on the device; which networks are trained when, and that
  gradients are dropped between updates, is decided by Python in the same order every time, so it is recorded too.
- The moving average of G stays outside: its weight is a Python number that changes while a run is young.
- Recording executes nothing. The iterations before it, which bring libraries and optimisers up, are the run's own.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from labkit.layers import convolving
from labkit.updates import Draws, Learner, three_updates

WARM_UP = 3
"""Iterations before the recording: state that is made at first use, and choice of convolution algorithms."""

Replay = Callable[[Draws], dict[str, Tensor]]


class Captured:
    """`labkit.updates.step` for one learner, recorded and played back where that is possible.

    On a CPU each call is that step, bit for bit. On a GPU the first `WARM_UP` calls are too; the next records one
    iteration, and it and all that follow play it back. With R1 iterations are of two kinds, those whose D is penalised
    and others; each kind has a warm-up and a recording of its own (`replays`, by `Learner.penalised`). A recording that
    fails changes nothing but the speed. Load a checkpoint into the learner before the first call: the recording knows
    where its tensors lie. `graph` of False never records, to compare with; `benchmark` says whether convolution
    algorithms are timed at first use rather than guessed (GPU only).
    """

    def __init__(self, learner: Learner, graph: bool = True, benchmark: bool = True) -> None:
        on_gpu = learner.device.type == "cuda"
        self.learner, self.benchmark = learner, benchmark
        # processes meet between backward and step
        self.wanted = graph and on_gpu and learner.team.size == 1
        self.eager_left = {True: WARM_UP, False: WARM_UP}
        self.replays: dict[bool, Replay] = {}
        # recordings are made on a stream of their own, and what is used in them is brought up on the same one
        self.stream = torch.cuda.Stream(learner.device) if self.wanted else None

    def __call__(self, draws: Draws) -> dict[str, Tensor]:
        """One iteration; see `labkit.updates.step`.

        Warns
        -----
        UserWarning
            Once, with the reason, if no recording could be made.
        """
        kind = self.learner.penalised
        with convolving(self.learner.device, self.benchmark):
            if self.wanted and not self.eager_left[kind] and kind not in self.replays:
                self._record(kind, draws)
            if kind in self.replays:
                logged = self.replays[kind](draws)
            else:
                with on_stream(self.stream if self.wanted else None):
                    logged = three_updates(self.learner, draws)
                self.eager_left[kind] = max(0, self.eager_left[kind] - 1)
        self.learner.update_average()
        return logged

    def _record(self, kind: bool, draws: Draws) -> None:
        try:
            self.replays[kind] = record(self.learner, draws, self.stream)
        except Exception as error:  # whatever it is, iterations can still be made one by one
            self.wanted = False  # one try
            warnings.warn(
                f"an iteration could not be recorded as a CUDA graph, so that training goes on without it, slower: "
                f"{type(error).__name__}: {error}",
                stacklevel=3,
            )


def record(learner: Learner, draws: Draws, stream: torch.cuda.Stream) -> Replay:
    """Record an iteration without executing it.

    The learner is on a GPU and has made at least one iteration; `draws` have the shapes that all that follow have. What
    comes back copies draws in, plays the iteration on the current stream, and gives the terms, which are the caller's.
    RuntimeError if something cannot be recorded, or memory is short; the learner's tensors are then as they were.
    """
    inputs = Draws(*(None if value is None else value.clone() for value in draws))
    graph = torch.cuda.CUDAGraph()
    # the outer stream context gives the current stream back even if ending the recording fails
    with torch.cuda.device(learner.device), on_stream(stream), capturable(learner.optimisers.values()):
        with torch.cuda.graph(graph, stream=stream):
            logged = three_updates(learner, inputs)
            names, values = list(logged), torch.stack(list(logged.values()))

    def replay(fresh: Draws) -> dict[str, Tensor]:
        torch._foreach_copy_(*([value for value in part if value is not None] for part in (inputs, fresh)))
        graph.replay()
        return dict(zip(names, values.clone().unbind(), strict=True))

    return replay


@contextlib.contextmanager
def on_stream(stream: torch.cuda.Stream | None) -> Iterator[None]:
    """Put work in line behind the current stream's, on another stream, and the current one's later work behind it."""
    if stream is None:
        yield
        return
    before = torch.cuda.current_stream(stream.device)
    stream.wait_stream(before)
    with torch.cuda.stream(stream):
        yield
    before.wait_stream(stream)


@contextlib.contextmanager
def capturable(optimisers: Iterable[torch.optim.Optimizer]) -> Iterator[None]:
    """Tell optimisers that they are recorded.

    Fused ones keep their step counts on the device in any case; the flag is what they check, and outside a recording
    they warn of it.
    """
    groups = [group for optimiser in optimisers for group in optimiser.param_groups]
    before = [group["capturable"] for group in groups]
    try:
        for group in groups:
            group["capturable"] = True
        yield
    finally:
        for group, value in zip(groups, before, strict=True):
            group["capturable"] = value
