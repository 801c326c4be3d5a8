"""Generators derived from a run's seed, one for each purpose and moment."""

import hashlib

from torch import Generator, device


def derive(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed that follows from ``seed`` and what it is for."""
    text = "/".join(map(str, (seed, *purpose))).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "little") >> 1


def generator(seed: int, *purpose: str | int, on: device | None = None) -> Generator:
    """A generator, on the CPU or the device ``on``, that follows from ``seed`` and its purpose."""
    return Generator(on or "cpu").manual_seed(derive(seed, *purpose))
