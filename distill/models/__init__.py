"""Models of one member: any module from a batch of images to logits (B, C).

A model has parameters of these names as it needs them:

- ``inputs``, the shape (channels, H, W) of an image, or (D,) of D features;
- ``classes``, C, the number of classes.

All its others are its hyperparameters and the keys of its yaml. Buffers, such as the statistics of
BatchNorm, belong to each member of a stack as its parameters do; parameters that need no gradient
stay as they are. Randomness in training comes from torch's generators, which the trainer seeds; a
`Dropout` from `distill.models.dropout` draws its masks faster. A method ``constrain_(parameters)``
may project the parameters in place after each step, and returns whether it did; they may carry
leading member axes. One whose options say more than its name is called by them
(`distill.models.parts.known_as`). ``features``, a key that every model has, names the modules whose
outputs a loss may ask for.
"""

from distill.models.cnn import CNN
from distill.models.library import timm, torchvision
from distill.models.mlp import MLP
from distill.models.mobilenet import MobileNetV2
from distill.models.resnet import ResNet
from distill.models.shufflenet import ShuffleNetV2
from distill.models.vgg import VGG
from distill.models.wrn import WRN

__all__ = [
    "CNN",
    "MLP",
    "VGG",
    "WRN",
    "MobileNetV2",
    "ResNet",
    "ShuffleNetV2",
    "timm",
    "torchvision",
]
