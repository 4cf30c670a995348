"""The models by name. A recipe says `model.name`; the class is imported when it is needed."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from verisim.errors import pick

if TYPE_CHECKING:
    from verisim.data.spec import ImageSpec
    from verisim.models.base import GenerativeModel

MODELS = {
    "dcgan": "verisim.models.adversarial.dcgan:DCGAN",
    "mlp_vae": "verisim.models.autoencoders.mlp_vae:MLPVAE",
    "conv_vae": "verisim.models.autoencoders.conv_vae:ConvVAE",
    "svae": "verisim.models.autoencoders.svae:SVAE",
    "vpga": "verisim.models.autoencoders.vpga:VPGA",
    "intro_vae": "verisim.models.autoencoders.intro_vae:IntroVAE",
    "soft_intro_vae": "verisim.models.autoencoders.soft_intro_vae:SoftIntroVAE",
    "hierarchical_vae": "verisim.models.autoencoders.hierarchical_vae:HierarchicalVAE",
    "vqvae": "verisim.models.autoencoders.vqvae:VQVAE",
    "pixelcnn": "verisim.models.autoregressive.pixelcnn:PixelCNN",
    "gated_pixelcnn": "verisim.models.autoregressive.gated_pixelcnn:GatedPixelCNN",
    "flow": "verisim.models.flows.flow:Flow",
    "position_regression": "verisim.models.anomaly.position_regression:PositionRegression",
    "dense_autoencoder": "verisim.models.anomaly.dense_autoencoder:DenseAutoencoder",
    "diffusion": "verisim.models.diffusion.denoising:DenoisingDiffusion",
    "diffusion_segmentation": "verisim.models.diffusion.segmentation:DiffusionSegmenter",
    "supervised_segmentation": "verisim.models.segmentation.supervised:SupervisedSegmenter",
    "age_guided": "verisim.models.diffusion.age_guided:AgeGuidedDiffusion",
    "development": "verisim.models.implicit.model:ImplicitDevelopment",
    "patch_diffusion": "verisim.models.diffusion.patches:PatchDiffusion",
    "slice_diffusion": "verisim.models.diffusion.slices:SliceDiffusion",
    "distilled": "verisim.models.diffusion.distilled:Distilled",
    "adversarial_steps": "verisim.models.diffusion.adversarial_steps:AdversarialSteps",
    "super_resolution": "verisim.models.diffusion.super_resolution:SuperResolution",
}

IMPORTED = {  # trained elsewhere: no recipe trains them, 'verisim import' makes their files
    "monai_unet": "verisim.hub.monai_models:MonaiUNet",
    "monai_autoencoder": "verisim.hub.monai_models:MonaiKL",
}


def model_class(name: str) -> type[GenerativeModel]:
    """The class behind a model name."""
    module, attribute = pick(MODELS | IMPORTED, name, "model").split(":")
    return getattr(importlib.import_module(module), attribute)


def build_model(
    name: str, settings: dict[str, Any], spec: ImageSpec, num_classes: int = 0
) -> GenerativeModel:
    """A fresh model: `settings` are the constructor arguments beside spec and num_classes."""
    return model_class(name)(spec=spec, num_classes=num_classes, **settings)
