"""Sweeps for knowledge distillation: overrides in, a tidy summary CSV out."""

__version__ = "0.1.0"
