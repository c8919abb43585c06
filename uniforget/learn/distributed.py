"""Several processes (GPUs, machines) that learn one mask: each takes its rows of every batch, and sums are exchanged.

``accelerate launch`` or ``torchrun`` start the processes; the command line joins them (:func:`join`).
"""

from __future__ import annotations

import os

import torch
import torch.distributed as dist


def join() -> None:
    """Join the other processes, if a launcher started several of us."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        cuda = torch.cuda.is_available()
        if cuda:
            torch.cuda.set_device(local_rank())
        # Sums of both kinds of tensors are exchanged; NCCL takes those on GPUs only.
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")


def leave() -> None:
    """Part from the other processes."""
    if _several():
        dist.destroy_process_group()


def _several() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if _several() else 0


def local_rank() -> int:
    """Number of this process on its machine, from 0: which of the GPUs is its own."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if _several() else 1


def shard(items: list) -> list:
    """This process' part of `items`; those of all processes together are all of them."""
    return items[rank() :: world_size()]


def all_reduce(tensor: torch.Tensor) -> torch.Tensor:
    """Replace `tensor` by its sum over all processes; returns it."""
    if _several():
        dist.all_reduce(tensor)
    return tensor
