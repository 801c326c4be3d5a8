"""The loop of the post that the project starts from, written anew from its description.

A DataLoader with as many workers as cores, torchvision's RandomAffine on each image, the teacher
evaluated within the loop, batches of 8,192, Adam: what most public distillation code does.
"""

import os
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

BATCH, TEMPERATURE, ALPHA = 8192, 20.0, 0.7


def mlp(width: int) -> nn.Sequential:
    """784-width-width-10."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(),
        nn.Linear(width, 10),
    )  # fmt: skip


class Post:
    """One student of ``width`` units and its teacher; `epoch` trains for one and times it."""

    def __init__(self, root: Path, width: int) -> None:
        transform = transforms.Compose(
            [
                transforms.ToTensor(),
                transforms.RandomAffine(degrees=0, translate=(2 / 28, 2 / 28)),
                transforms.Normalize((0.5,), (0.5,)),
            ]
        )
        workers = len(os.sched_getaffinity(0))
        self.loader = DataLoader(
            datasets.MNIST(str(root), train=True, transform=transform),
            batch_size=BATCH,
            shuffle=True,
            num_workers=workers,
            pin_memory=torch.cuda.is_available(),
        )
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.student, self.teacher = mlp(width).to(self.device), mlp(1200).eval().to(self.device)
        self.optimizer = torch.optim.Adam(self.student.parameters(), lr=1e-3)

    def epoch(self) -> float:
        """Seconds of one epoch."""
        start, total = time.perf_counter(), 0.0
        for batch in self.loader:
            inputs, labels = (part.to(self.device, non_blocking=True) for part in batch)
            with torch.no_grad():
                soft = F.softmax(self.teacher(inputs) / TEMPERATURE, -1)
            logits = self.student(inputs)
            kl = F.kl_div(F.log_softmax(logits / TEMPERATURE, -1), soft, reduction="batchmean")
            loss = ALPHA * TEMPERATURE**2 * kl + (1 - ALPHA) * F.cross_entropy(logits, labels)
            self.optimizer.zero_grad()
            torch.autograd.backward(loss)
            self.optimizer.step()
            total += loss.item() * len(labels)
        return time.perf_counter() - start
