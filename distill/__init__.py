"""Sweeps for knowledge distillation: overrides in, a tidy summary CSV out."""

import os

from distill import machine

# Large tensors on the CPU in huge pages: torch reads it at its first allocation.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
machine.prepare()

__version__ = "0.1.0"
