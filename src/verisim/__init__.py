"""verisim: generative models for medical imaging, trained, used and honestly judged."""

__version__ = "0.1.0"
