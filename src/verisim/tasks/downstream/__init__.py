"""Downstream users of chest X-rays as source 004 surveys them (spec 004, section 1): who may profit from synthetic images."""

from verisim.tasks.downstream.base import Downstream, DownstreamSettings, normal_class
from verisim.tasks.downstream.classifiers import LEAST_SIDE, fit_classifier, fit_densenet
from verisim.tasks.downstream.confidence import fit_confidence
from verisim.tasks.downstream.one_class_gan import fit_one_class_gan
from verisim.tasks.downstream.reconstruction import fit_reconstruction, fit_residual
from verisim.tasks.downstream.uncertainty import fit_uncertainty

__all__ = ["DOWNSTREAM", "Downstream", "DownstreamSettings", "normal_class"]

DOWNSTREAM: dict[str, Downstream] = {
    "classifier": Downstream(
        fit_classifier, "logits", "labels", "Small classifier",
        "A small network that tells the classes apart.", needs_normal=False,
    ),
    "densenet121": Downstream(
        fit_densenet, "logits", "labels", "Large classifier (DenseNet-121, as CheXNet)",
        "A network of 121 layers that tells the classes apart, as widely used for chest X-rays. It starts from random "
        "weights.", needs_normal=False, least_side=LEAST_SIDE,
    ),
    "reconstruction": Downstream(
        fit_reconstruction, "scores", "normal images", "Detector by redrawing",
        "A network that has only seen normal images redraws an image from a short summary. What it redraws badly "
        "counts as abnormal.",
    ),
    "residual": Downstream(
        fit_residual, "logits", "labels", "Classifier of what redrawing leaves over",
        "A redrawing network that has seen half of the normal images, and a small classifier that looks at the difference between image and redrawn "
        "image.",
    ),
    "uncertainty": Downstream(
        fit_uncertainty, "scores", "normal images", "Detector by redrawing, with expected errors",
        "A redrawing network that also says how well it expects to redraw each place, so that sharp borders of organs "
        "raise no false alarm. Errors beyond what it expects count as abnormal.",
    ),
    "confidence": Downstream(
        fit_confidence, "scores", "labels", "Detector that knows when it is unsure",
        "A network that has seen normal and abnormal images flags an image if it looks abnormal, or if the network is "
        "unsure about it.",
    ),
    "one_class_gan": Downstream(
        fit_one_class_gan, "scores", "normal images", "Detector by redrawing, with an opponent",
        "A redrawing network trained on normal images against a second one that tries to tell its pictures from true "
        "ones. Images whose picture, summary or impression on the opponent change much count as abnormal.",
    ),
}  # fmt: skip
