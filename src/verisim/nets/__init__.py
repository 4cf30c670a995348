"""Networks: the U-Net of the diffusion models and the small classifier that judges samples."""

from verisim.nets.classifier import Classifier
from verisim.nets.unet import UNet

__all__ = ["Classifier", "UNet"]
