"""Train a classifier by the cross entropy of its logits; the epoch with the least on the validation images is kept."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from rdcurve.state import Checkpoint
from rdcurve.training.trained import Progress, Trained, TrainingSettings, train_epochs, update

__all__ = ["Settings", "networks", "train"]


@dataclass(frozen=True, kw_only=True)
class Settings(TrainingSettings):
    """How a classifier is trained."""


def networks(module: ModuleType, arguments: Mapping[str, Any], settings: Settings) -> tuple[nn.Module]:
    """Classifier of an architecture."""
    return (module.Classifier(**arguments),)


def train(
    classifier: nn.Module,
    training: Tensor,
    validation: Tensor,
    settings: Settings,
    *,
    labels: Sequence[Tensor],
    checkpoint: Checkpoint | None = None,
    progress: Progress = lambda done, total: None,
) -> Trained:
    """Train a classifier with Adam.

    Args:
        classifier: [batch, n] -> logits [batch, n_classes].
        training: [N, n], on the device of the classifier.
        validation: [M, n].
        settings: how.
        labels: [N] and [M] int64, of the training and of the validation images.
        checkpoint: keeps the state.
        progress: called with (steps done, steps in all).

    Returns:
        The classifier of the best epoch. History: epoch, train_loss and validation_loss (nats per image),
        validation_accuracy (share of the images).

    Raises:
        FloatingPointError: training diverged; names the step and the loss.
        Interrupted: it was asked to stop; its state is saved.
    """
    optimiser = torch.optim.Adam(classifier.parameters(), lr=settings.learning_rate, fused=True)
    best, best_loss = copy.deepcopy(classifier), torch.tensor(math.inf, dtype=torch.float64)

    def step(index: Tensor) -> list[Tensor]:
        loss = cross_entropy(classifier(training[index]), labels[0][index])
        update(optimiser, loss)
        return [loss]

    @torch.no_grad()
    def measure() -> list[float]:
        logits = torch.cat([classifier(images) for images in validation.split(1000)])
        loss = float(cross_entropy(logits, labels[1]))
        if loss < best_loss:
            best.load_state_dict(classifier.state_dict())
            best_loss.fill_(loss)
        return [loss, float((logits.argmax(-1) == labels[1]).double().mean())]

    history = train_epochs(
        step,
        measure,
        settings,
        losses=["train_loss"],
        measures=["validation_loss", "validation_accuracy"],
        parts=[classifier, best, best_loss],
        optimisers=[optimiser],
        generator=torch.Generator(training.device).manual_seed(settings.seed),
        n_images=len(training),
        checkpoint=checkpoint,
        progress=progress,
    )
    return Trained(best, history, {"best": min(history, key=lambda row: row["validation_loss"])})
