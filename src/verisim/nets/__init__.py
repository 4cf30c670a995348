"""Networks that the peers lack or run more slowly: the U-Net of the diffusion models."""

from verisim.nets.unet import UNet

__all__ = ["UNet"]
