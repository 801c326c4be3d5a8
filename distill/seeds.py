"""Generators derived from a run's seed, one for each purpose and moment."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Generator, device


def derive(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed that follows from ``seed`` and what it is for."""
    text = "/".join(map(str, (seed, *purpose))).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "little") >> 1


def generator(seed: int, *purpose: str | int, on: device | None = None) -> Generator:
    """A generator, on the CPU or the device ``on``, that follows from ``seed`` and its purpose."""
    return Generator(on or "cpu").manual_seed(derive(seed, *purpose))


@contextmanager
def seeded(seed: int, on: device) -> Iterator[None]:
    """Within, torch's global generators of the CPU and of ``on`` start from ``seed``.

    After it they are as before.
    """
    gpus = [on] if on.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus):
        torch.default_generator.manual_seed(seed)
        for gpu in gpus:
            with torch.cuda.device(gpu):
                torch.cuda.manual_seed(seed)
        yield
