"""Data sets: functions whose keyword-only parameters are the keys of their yamls.

Each returns the training inputs and labels and the test inputs and labels as tensors on the CPU:
images uint8 (N, H, W) or (N, channels, H, W), or features as floats (N, D); labels int64 (N,) from
0 to C - 1. One that has more to say, such as the names of its classes, returns a
`distill.data.dataset.Dataset`.

Letters: N examples, C classes, H and W an image's size, D features.
"""

from distill.data.downloaded import fashion_mnist, mnist
from distill.data.embedded import mnist_5k
from distill.data.generated import synthetic

__all__ = ["fashion_mnist", "mnist", "mnist_5k", "synthetic"]
