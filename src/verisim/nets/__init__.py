"""Networks that the peers lack or run more slowly: the backbones of the diffusion models."""

from verisim.nets.dit import DiT
from verisim.nets.unet import UNet

__all__ = ["DiT", "UNet"]
