"""Models of one member: any module from a batch of images to logits (B, C).

A model has parameters of these names as it needs them:

- ``inputs``, the shape (channels, H, W) of an image;
- ``classes``, C, the number of classes.

All its others are its hyperparameters and the keys of its yaml. Buffers, such as the statistics of
BatchNorm, belong to each member of a stack as its parameters do; parameters that need no gradient
stay as they are. Randomness in training comes from torch's generators, which the trainer seeds; a
`Dropout` from `distill.models.dropout` draws its masks faster. A method ``constrain_(parameters)``
may project the parameters in place after each step, and returns whether it did; they may carry
leading member axes.
"""

from distill.models.cnn import CNN
from distill.models.mlp import MLP

__all__ = ["CNN", "MLP"]
