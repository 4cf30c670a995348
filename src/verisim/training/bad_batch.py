"""Keeps the batch on which training broke down, so that it can be looked at and replayed."""

from __future__ import annotations

from pathlib import Path

from verisim.data.spec import Images
from verisim.data.stream import BatchStream
from verisim.errors import LossError
from verisim.models.base import GenerativeModel
from verisim.training.checkpoint import save_state
from verisim.training.run_folder import RunFolder


def save_bad_batch(
    run: RunFolder, model: GenerativeModel, images: Images, stream: BatchStream, error: LossError
) -> Path:
    """Write bad-batch-STEP.safetensors into the run folder and return its path.

    checkpoint.load_state gives back: index (B,) into the training images, names and patients of these (or
    None), image (B, C, *S) in [-1, 1], label (B,) or None, mask (B, 1, *S) uint8 or None, loss (as the model gave it), step, rank and
    noise_seed. The step is replayed by torch.manual_seed(noise_seed), then model.training_loss(image, label).
    """
    index = stream.indices(model.step)
    batch = images.subset(index)
    rank = f"-rank{model.global_rank}" if model.global_rank else ""
    path = run.path / f"bad-batch-{model.step:09d}{rank}.safetensors"
    state = {
        "index": index,
        "names": None if batch.names is None else list(batch.names),
        "patients": None if batch.patients is None else list(batch.patients),
        "image": batch.pixels,
        "label": batch.labels,
        "mask": batch.segmentation,
        "loss": error.loss,
        "step": model.step,
        "rank": model.global_rank,
        "noise_seed": model.step_seed,
    }
    save_state(path, state)
    return path
