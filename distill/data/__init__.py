"""Data sets: functions whose keyword-only parameters are the keys of their yamls.

Each returns the training inputs and labels and the test inputs and labels as tensors on the CPU:
images uint8 (N, H, W) or (N, channels, H, W), or features as floats (N, D); labels int64 (N,) from
0 to C - 1. One that has more to say, such as the names of its classes, returns a
`distill.data.dataset.Dataset`.

Letters: N examples, C classes, H and W an image's size, D features.
"""

from distill.data.arrays import arrays
from distill.data.downloaded import cifar10, cifar100, emnist, fashion_mnist, kmnist, mnist, svhn
from distill.data.embedded import mnist_5k
from distill.data.folders import image_folder
from distill.data.generated import synthetic
from distill.data.tables import table

__all__ = [
    "arrays",
    "cifar10",
    "cifar100",
    "emnist",
    "fashion_mnist",
    "image_folder",
    "kmnist",
    "mnist",
    "mnist_5k",
    "svhn",
    "synthetic",
    "table",
]
