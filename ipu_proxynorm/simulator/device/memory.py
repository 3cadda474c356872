"""The memory of the machine that simulates: what is free, and what the allocator keeps."""

from __future__ import annotations

from typing import Optional

import torch

#: Just below the largest block that glibc's allocator learns from, 32 MiB, with its own header.
_LEARNT_FROM = (32 << 20) - 8192


def free_memory() -> Optional[int]:
    """Return how many bytes of memory the machine has free, None where it does not say."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def keep_freed_memory() -> None:
    """Let glibc's allocator keep up to 64 MiB of freed memory, instead of 256 KiB.

    A program makes and frees the same tensors again and again. Memory that goes back to the system
    in between comes anew, page by page: up to a fifth of a step. glibc keeps twice the largest
    block it has mapped for one tensor and got back ("dynamic mmap threshold", mallopt(3)), unless
    ``MALLOC_TRIM_THRESHOLD_`` or ``MALLOC_MMAP_THRESHOLD_`` says how much. So one is asked for
    here, which nobody writes to, and given back. Elsewhere than on glibc this does nothing.
    """
    torch.empty(_LEARNT_FROM, dtype=torch.uint8)
