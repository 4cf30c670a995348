"""One validated set of weights per run: the best on patients held out of the training split (source 001, K-E5).

The source took, for every metric apart, the best epoch on its test images. Here a part of the training
patients is set aside and never trained on; every so many steps the averaged weights are scored on them by
the model's own loss, in float32 and with the same noise each time, and the best weights are kept. The test
split is not looked at.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from verisim.data.spec import Images
from verisim.errors import VerisimError
from verisim.metrics.judges import split_groups
from verisim.models.base import GenerativeModel
from verisim.seeding import derive_seed, generator
from verisim.training.callbacks import StepCallback
from verisim.training.settings import TrainSettings


def hold_out(images: Images, settings: TrainSettings) -> tuple[Images, Images | None]:
    """(images to train on, images to select by or None); nobody's images are in both.

    Who is held out depends on training.seed alone. VerisimError if nobody is left on one side.
    """
    if settings.select == "last":
        return images, None
    rng = generator("selection", settings.seed)
    rest, held = split_groups(len(images), settings.select_share, rng, images.patients)
    if not len(rest) or not len(held):
        people = len(images) if images.patients is None else len(set(images.patients))
        raise VerisimError(
            f"training.select best needs patients to hold out, but {people} patient(s) with {len(images)} "
            f"image(s) cannot be divided at training.select_share {settings.select_share:g}. Raise the share, add "
            f"patients, or set training.select last."
        )
    return images.subset(rest), images.subset(held)


def check_selectable(model: GenerativeModel, settings: TrainSettings) -> None:
    """VerisimError if the best weights are asked of a model whose losses do not say which are better."""
    if settings.select == "best" and not model.automatic_optimization:
        raise VerisimError(
            f"training.select best does not work for a {type(model).__name__}: its networks play against each "
            f"other, so no loss of theirs falls as the images get better. Set training.select last."
        )


@contextmanager
def _as_trained(model: GenerativeModel) -> Iterator[None]:
    """The model as it stood in the step just done, in evaluation mode, with its averaged network for `net`.

    Training's own random numbers are not touched.
    """
    modes = [(m, m.training) for m in model.modules()]
    net, step = model.net, model.step
    with torch.random.fork_rng():
        try:
            model.net, model.step = model.sampling_net, step - 1
            model.eval()
            yield
        finally:
            model.net, model.step = net, step
            for module, was in modes:
                module.training = was


@torch.no_grad()
def held_out_loss(model: GenerativeModel, images: Images, batch: int) -> tuple[float, int]:
    """The mean of the model's training loss over `images` with its averaged weights, and its phase."""
    total = 0.0
    with _as_trained(model):
        torch.manual_seed(derive_seed("selection noise", model.seed))
        for index in torch.arange(len(images)).split(batch):
            label = None if images.labels is None else images.labels[index].to(model.device)
            loss = model.training_loss(images.pixels[index].to(model.device), label)[0]
            total += float(loss.double().sum())
        return total / len(images), model.phase


class Selection(StepCallback):
    """Looks at the held-out patients every training.select_steps steps. Comes after Steps, before Checkpoints."""

    def __init__(self, images: Images, settings: TrainSettings) -> None:
        self.images, self.steps, self.batch = images, settings.select_steps, settings.batch_size

    def after_step(self, trainer: Any, model: Any) -> None:
        if model.step % self.steps:
            return
        loss, phase = held_out_loss(model, self.images, self.batch)
        model.keep_if_best(loss, phase)
        for logger in trainer.loggers:
            logger.log_metrics({"validation_loss": loss}, model.step)


def take_selected(model: GenerativeModel, held: Images | None, settings: TrainSettings) -> dict[str, Any]:
    """Put the best weights into the sampling network; what the model card says about them.

    Warns, and leaves the last weights, where none were validated in the phase that training ended in.
    """
    if held is None:
        return {}
    best, facts = model.best, {"validation_images": len(held)}
    if best is None or best.phase != model.last_phase:
        warnings.warn(
            f"No weights were validated in the last phase of training, which ended at step {model.step}: those of "
            f"the last step are kept. Lower training.select_steps (now {settings.select_steps}).",
            stacklevel=2,
        )
        return {**facts, "selected_step": model.step, "validation_loss": None}
    model.take_best()
    return {**facts, "selected_step": best.step, "validation_loss": best.loss}
