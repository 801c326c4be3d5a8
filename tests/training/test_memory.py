"""The heap: what a step frees, the next takes again, and at the end the system has it back."""

import resource

import psutil
import torch

from distill.system.memory import kept

BYTES = 100 * 2**20


def touch() -> int:
    """Page faults of filling and freeing a tensor of 100 MB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(BYTES, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def test_freed_memory_is_taken_again_and_given_back_at_the_end() -> None:
    process = psutil.Process()
    with kept():
        first, *again = (touch() for _ in range(8))
        held = process.memory_info().rss
    # Something small may come to lie in what was freed, so that it is once too small.
    assert min(again) < first / 4
    assert process.memory_info().rss < held - BYTES / 2
