# SPDX-License-Identifier: Apache-2.0
"""Training on several GPUs: process group and agreement of ranks."""

from __future__ import annotations

import atexit
import contextlib
import datetime
import os
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import nn


def init_distributed(device: str) -> tuple[int, int, str]:
    """Return (rank, number of processes, device) among those that `torchrun` has started.

    Call it before anything is put on the device: with several GPUs each process has its own.
    """
    world = int(os.environ.get('WORLD_SIZE', '1'))
    if world == 1:
        return 0, 1, device
    if device.startswith('cuda'):
        device = f'cuda:{os.environ["LOCAL_RANK"]}'
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        backend = 'nccl' if device.startswith('cuda') else 'gloo'
        # the first process validates and writes alone, which may take long
        dist.init_process_group(backend, timeout=datetime.timedelta(hours=3))
        atexit.register(dist.destroy_process_group)  # or its threads may abort the process
    return dist.get_rank(), world, device


@contextlib.contextmanager
def rank_zero_first(rank: int, world: int) -> Iterator[None]:
    """Let the first process do what is inside before the others do it, as files that it writes."""
    if rank > 0:
        dist.barrier()
    yield
    if rank == 0 and world > 1:
        dist.barrier()


def _share(parameters: list[nn.Parameter], world: int) -> None:
    """Put the mean of all processes' gradients in their place; none counts as zero."""
    if world == 1:
        return
    has = torch.tensor(
        [float(p.grad is not None) for p in parameters], device=parameters[0].device
    )
    dist.all_reduce(has)
    shared = [p for p, count in zip(parameters, has.tolist(), strict=True) if count]
    for p in shared:
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad
    flat = torch.cat([p.grad.flatten() for p in shared])
    dist.all_reduce(flat)
    means = flat.div_(world).split([p.numel() for p in shared])
    for p, mean in zip(shared, means, strict=True):
        p.grad.copy_(mean.view_as(p))


def _any(here: bool, world: int, device: str) -> bool:
    """Return whether any process says so; all must ask."""
    if world == 1:
        return here
    flag = torch.tensor(int(here), device=device)
    dist.all_reduce(flag, dist.ReduceOp.MAX)
    return bool(flag)
