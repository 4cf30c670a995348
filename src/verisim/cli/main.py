"""`verisim VERB ...`: finds the verb's module, runs it, and turns errors into one clear sentence."""

from __future__ import annotations

import importlib
import sys

from verisim import __version__
from verisim.errors import VerisimError, nearest

VERBS = {
    "list": "print the catalogue of systems and what state each is in",
    "info": "tell about a recipe, a run or a weights file",
    "data": "check a folder of images: what is in it and what is wrong with it",
    "train": "train a model from a recipe, or resume a run",
    "profile": "count parameters, memory and seconds of a training step of any recipe",
    "sample": "make images with a trained model",
    "export": "write a trained model to one file that others can sample from",
    "import": "take over a network that was trained elsewhere (MONAI) as a model of verisim",
    "evaluate": "judge one generator against held-out real images",
    "compare": "judge several generators side by side and write an HTML report",
    "segment": "segment cases, with mean and variance of an ensemble of masks",
    "detect": "map what is unusual in images, calibrated on held-out normal ones",
    "grow": "show the brain of a scan at other ages, with its growth curve",
    "explore": "look into the latent space of an autoencoder: traverse, interpolate, probe",
    "readers": "let people judge, blinded: make a reader study, serve it, score it",
    "utility": "train classifiers with synthetic images, test them on real ones",
    "reproduce": "re-run a published table or figure and check its claims",
}
MODULES = {"import": "importing"}  # where the verb is no name that a module can have

HELP = """verisim {version}: generative models for medical imaging, trained, used and honestly judged.

usage: verisim VERB [options]        'verisim VERB --help' explains each, with examples

{verbs}

first steps (no data needed):
  verisim train X-D-fix --variant small --out runs/first
  verisim sample runs/first -n 16 --out samples
  verisim evaluate runs/first --out judged
"""


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code (2 = a problem the user can mend, 130/143 = stopped by a signal)."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help", "help"):
        verbs = "\n".join(f"  {name:10} {text}" for name, text in VERBS.items())
        print(HELP.format(version=__version__, verbs=verbs))
        return 0
    if argv[0] == "--version":
        print(__version__)
        return 0
    try:
        if argv[0] not in VERBS:
            raise VerisimError(
                f"There is no verb '{argv[0]}'.{nearest(argv[0], VERBS)} See 'verisim --help'."
            )
        return importlib.import_module(f"verisim.cli.{MODULES.get(argv[0], argv[0])}").main(argv[1:])
    except VerisimError as e:
        print(f"verisim: {e}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("verisim: stopped.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 0


if __name__ == "__main__":
    sys.exit(main())
