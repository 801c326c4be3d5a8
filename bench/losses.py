"""`python -m bench losses`: what a step with each loss of logits costs against one with kd."""

from collections.abc import Iterator

from bench.ours import Epochs, config, job, spread
from distill.system.conf import CONF

STACK = ("data=mnist_5k", "model.width=30", "train.batch_size=512", "train.epochs=1")
MEMBERS = 64


def against_kd(repeats: int) -> Iterator[tuple[str, ...]]:
    """A row for each loss of logits: its step in a stack of 64 x 30 units, beside that with kd."""
    plain = Epochs(job(*STACK, "loss=kd"), MEMBERS)
    steps = -(-plain.examples // 512)
    names = sorted(path.stem for path in (CONF / "loss").glob("*.yaml"))
    for name in names:
        if name in ("kd", "sum") or "student_features" in config(f"loss={name}").loss.takes:
            continue
        own = Epochs(job(*STACK, f"loss={name}"), MEMBERS)
        own.epoch()
        both = [(plain.epoch(), own.epoch()) for _ in range(repeats)]
        yield (
            f"a step of 64 students of 30 units, loss={name}",
            f"{spread([1e3 * b / steps for _, b in both])} ms",
            f"loss=kd: {spread([1e3 * a / steps for a, _ in both])} ms",
            f"{spread([b / a for a, b in both])}x",
            "at most 1.3x",
        )
