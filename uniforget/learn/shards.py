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
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")


def leave() -> None:
    """Part from the other processes."""
    if _several():
        dist.destroy_process_group()


def _several() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if _several() else 0


def local() -> int:
    """Number of this process on its machine, from 0: which of the GPUs is its own."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def world() -> int:
    """Number of processes."""
    return dist.get_world_size() if _several() else 1


def mine(items: list) -> list:
    """This process' share of `items`; the shares of all processes together are all of them."""
    return items[rank() :: world()]


def total_(tensor: torch.Tensor) -> torch.Tensor:
    """Replace `tensor` by its sum over all processes; returns it."""
    if _several():
        dist.all_reduce(tensor)
    return tensor
