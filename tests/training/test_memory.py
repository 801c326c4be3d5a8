"""The heap: what a step frees, the next takes again, and at the end the system has it back."""

import subprocess
import sys

import pytest

# In a process of its own: what others left in the heap may leave no place for 100 MB in it.
CODE = """
import resource, psutil, torch
from distill.system.memory import kept

BYTES = 100 * 2**20

def touch():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(BYTES, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

process = psutil.Process()
with kept():
    first, *again = [touch() for _ in range(8)]
    held = process.memory_info().rss
print(first, min(again), held - process.memory_info().rss - BYTES // 2)
"""


@pytest.mark.slow
def test_freed_memory_is_taken_again_and_given_back_at_the_end() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, check=True, text=True)
    first, again, returned = map(int, done.stdout.split())
    # Something small may come to lie in what was freed, so that once it is too small: the least.
    assert again < first / 4
    assert returned > 0
