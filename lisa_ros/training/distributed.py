# SPDX-License-Identifier: Apache-2.0
"""Data-parallel training with `torchrun`: process group, mean of gradients, shared decisions."""

from __future__ import annotations

import atexit
import contextlib
import datetime
import os
from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import nn


def init_distributed(device: str) -> tuple[int, int, str]:
    """Join the process group of `torchrun`, if there is one.

    Call it before a tensor is put on the device: each process uses a GPU of its own.

    Args:
        device: cpu or cuda.

    Returns:
        Rank, number of processes (world size), device of this process.
    """
    world_size = int(os.environ.get('WORLD_SIZE', '1'))
    if world_size == 1:
        return 0, 1, device
    if device.startswith('cuda'):
        device = f'cuda:{os.environ["LOCAL_RANK"]}'
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        backend = 'nccl' if device.startswith('cuda') else 'gloo'
        # long timeout: the other ranks wait while rank 0 validates and writes files
        dist.init_process_group(backend, timeout=datetime.timedelta(hours=3))
        atexit.register(
            dist.destroy_process_group
        )  # else its threads may abort the process at exit
    return dist.get_rank(), world_size, device


@contextlib.contextmanager
def rank_zero_first(rank: int, world_size: int) -> Iterator[None]:
    """Run the body in rank 0 first, then in all other ranks, which may read its files."""
    if rank > 0:
        dist.barrier()
    yield
    if rank == 0 and world_size > 1:
        dist.barrier()


def average_gradients(parameters: Sequence[nn.Parameter], world_size: int) -> None:
    """Replace every gradient by its mean over all processes; a missing gradient counts as zero."""
    if world_size == 1:
        return
    has_gradient = torch.tensor(
        [float(p.grad is not None) for p in parameters], device=parameters[0].device
    )
    dist.all_reduce(has_gradient)
    shared = [p for p, count in zip(parameters, has_gradient.tolist(), strict=True) if count]
    for p in shared:
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad
    flat = torch.cat([p.grad.flatten() for p in shared])
    dist.all_reduce(flat)
    means = flat.div_(world_size).split([p.numel() for p in shared])
    for p, mean in zip(shared, means, strict=True):
        p.grad.copy_(mean.view_as(p))


def any_rank(condition: bool, world_size: int, device: str) -> bool:
    """Return whether the condition holds in any process. All processes must call it."""
    if world_size == 1:
        return condition
    flag = torch.tensor(int(condition), device=device)
    dist.all_reduce(flag, dist.ReduceOp.MAX)
    return bool(flag)


def are_equal(value: int, world_size: int, device: str) -> bool:
    """Return whether all processes have the same value. All processes must call it."""
    if world_size == 1:
        return True
    bounds = torch.tensor([value, -value], device=device)
    dist.all_reduce(bounds, dist.ReduceOp.MAX)
    largest, negated_smallest = bounds.tolist()
    return largest == -negated_smallest
