"""One training on several processes, each with a GPU of its own or a thread, started by ``torchrun``.

    torchrun --nproc_per_node 2 -m labkit train --model sigmarat2 --cohort phantom

Every process draws the whole batch, the same by the same generator, and computes its part of it; gradients are averaged
between backward and step. So a batch of 4 on two processes is the batch of 4 on one, whatever the loss, and a run goes
on with another number of processes. The first process alone writes. On CPUs each has one thread, unless OMP_NUM_THREADS
says otherwise.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class TeamError(RuntimeError):
    """The processes of a training lost each other."""


@dataclass(frozen=True)
class Team:
    """The processes of a training, as one of them sees them: its number, and how many there are."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def part(self, batch: Tensor) -> Tensor:
        """Share of a batch that falls to this process, (B, ...) -> (B / size, ...)."""
        return batch.chunk(self.size)[self.rank]

    def average_gradients(self, networks: Iterable[nn.Module]) -> None:
        """Give every process the gradients of the whole batch: the mean over all parts."""
        if self.size > 1:
            self.average([p.grad for network in networks for p in network.parameters() if p.grad is not None])

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Put the mean over all processes in place of tensors, which each of them has in the same order."""
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        with _others_there():
            dist.all_reduce(flat)
        for tensor, mean in zip(tensors, flat.div_(self.size).split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(mean.view_as(tensor))

    def gathered(self, part: Tensor) -> Tensor:
        """All processes' parts, one after the other."""
        if self.size == 1:
            return part
        parts = [torch.empty_like(part) for _ in range(self.size)]
        with _others_there():
            dist.all_gather(parts, part.contiguous())
        return torch.cat(parts)

    def any(self, one: bool, device: torch.device) -> bool:
        """Whether any process says so, which all of them have to ask."""
        if self.size == 1:
            return one
        said = torch.tensor(float(one), device=device)
        with _others_there():
            dist.all_reduce(said)
        return bool(said > 0)

    def check_alike(self, numbers: Sequence[int], what: str, device: torch.device) -> None:
        """Refuse to go on where processes hold other numbers, whole ones below 2^53, than each other."""
        own = torch.tensor([float(number) for number in numbers], dtype=torch.float64, device=device)
        if self.size > 1 and len(self.gathered(own[None]).unique(dim=0)) > 1:
            raise TeamError(f"the processes of this training differ in {what}: do all of them see the same run folder?")

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            with _others_there():
                dist.barrier()


@contextlib.contextmanager
def _others_there() -> Iterator[None]:
    """Say what it means that processes do not find each other."""
    try:
        yield
    except RuntimeError as error:
        raise TeamError(
            "another process of this training has ended, or cannot be reached: its own message says why. Start the "
            f"same command again, and it goes on from the last checkpoint ({str(error).splitlines()[0][:120]})"
        ) from error


ALONE = Team()


def started() -> int:
    """How many processes ``torchrun`` started with this one.

    A notebook's kernel is alone whatever its environment says: the others might never come, and it would wait for them.
    """
    ipython = sys.modules.get("IPython")
    in_kernel = ipython is not None and hasattr(ipython.get_ipython(), "kernel")
    return 1 if in_kernel else int(os.environ.get("WORLD_SIZE", "1"))


def launch(processes: int, settings: Mapping[str, Any], **options: Any) -> None:
    """Train in several processes of this machine and wait for them, as ``torchrun -m labkit train`` does.

    Parameters
    ----------
    processes : int
        One for each GPU, or for each of some threads.
    settings : mapping
        Of variant and scale, by name.
    **options
        What ``python -m labkit train --help`` lists, with underscores; None is left out.

    Raises
    ------
    TeamError
        The training ended before its last iteration: with what it said at the end.
    """
    words = [part for name, value in options.items() if value is not None for part in
             (f"--{name.replace('_', '-')}", value if isinstance(value, str) else json.dumps(value))]  # fmt: skip
    words += [part for name, value in settings.items() for part in ("--set", f"{name}={json.dumps(value)}")]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    process = subprocess.Popen(
        [*command, "-m", "labkit", "train", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,  # whoever interrupts a cell interrupts this process, which asks the others to stop
    )  # fmt: skip
    try:
        said, _ = process.communicate()
    except BaseException:
        process.terminate()  # they write a checkpoint
        process.wait()
        raise
    if process.returncode:
        own = [line for line in said.splitlines() if line.startswith("labkit train:")] or said.splitlines()[-5:]
        raise TeamError("\n".join(dict.fromkeys(own)))


def join(device: torch.device, batch: int) -> Team:
    """The team that ``torchrun`` started this process in, or :data:`ALONE`.

    Raises
    ------
    ValueError
        A batch that the processes cannot share evenly.
    """
    size = started()
    if size == 1:
        return ALONE
    if batch % size:
        fitting = [n for n in range(1, batch + 1) if not batch % n]
        raise ValueError(
            f"a batch of {batch} cannot be shared by {size} processes: take {', '.join(map(str, fitting))} processes, "
            "or another batch_size"
        )
    if not dist.is_initialized():
        on_gpu = device.type == "cuda"
        dist.init_process_group("nccl" if on_gpu else "gloo", device_id=device if on_gpu else None)
    return Team(dist.get_rank(), size)


def leave() -> None:
    """Take leave of the others, if there are any."""
    if dist.is_initialized():
        dist.destroy_process_group()


def own_device(device: torch.device) -> torch.device:
    """Of a process that ``torchrun`` started: the GPU of its number on this machine; otherwise as it is.

    ValueError where one GPU is named for all, or there are fewer than processes.
    """
    if device.type != "cuda" or started() == 1:
        return device
    if device.index is not None:
        raise ValueError(f"device '{device}' for several processes: take 'cuda', and each gets a GPU of its own")
    number, there = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if number >= there:
        raise ValueError(
            f"process {number + 1} on this machine has no GPU of its own, there are {there}: start at most {there} "
            "here, or pass device='cpu'"
        )
    own = torch.device("cuda", number)
    torch.cuda.set_device(own)
    return own
