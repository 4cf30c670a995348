"""How well text and image can be compared at all: the ruler on phantoms, and the judge of pairs on held-out real pairs.

    python benchmarks/text_consistency.py [FOLDER COLUMN]      e.g. $VERISIM_DATA/cxr_notes clinical_notes

Prints, for phantoms, the share of reports that the ruler confirms, beside the floor of shuffled reports; then
R-precision (R = 10) of a judge trained on the other four fifths of the people, beside the same with shuffled texts.
"""

from __future__ import annotations

import sys

import torch

from verisim.data.folder import load_images
from verisim.data.spec import Images
from verisim.metrics.text_consistency import text_consistency
from verisim.metrics.text_judge import TextJudgeSettings, fit_text_judge, r_precision
from verisim.training.source import DataSettings, open_dataset

SIZE = 32


def with_text(images: Images) -> Images:
    """Those images that have a text."""
    return images.subset(torch.tensor([bool(t.strip()) for t in images.texts or ()]))


def judged(name: str, train: Images, test: Images) -> None:
    judge = fit_text_judge(train, TextJudgeSettings(steps=300))
    texts = test.texts or ()
    for what, asked in (("own texts", texts), ("shuffled texts", (*texts[1:], texts[0]))):
        e = r_precision(judge, test, asked, groups=test.patients)
        print(
            f"{name}, {what}: R-precision {e.value:.3f} [{e.low:.3f}, {e.high:.3f}], chance 0.100, n {len(test)}"
        )


def main() -> None:
    for size in (SIZE, 64):
        data = open_dataset(DataSettings(phantom="chest_findings", count=2000, size=size, text="report"))
        for factor, a in text_consistency(data["test"]).items():
            print(
                f"phantoms {size} px, {factor}: {a.accuracy.value:.3f} [{a.accuracy.low:.3f}, {a.accuracy.high:.3f}], "
                f"floor {a.chance:.3f}; mean over states {a.balanced:.3f}, floor {a.balanced_chance:.3f}, n {a.asked}"
            )
        if size == SIZE:
            judged(f"phantoms {size} px", data["train"], data["test"])
    if len(sys.argv) == 3:
        found = load_images(sys.argv[1], SIZE, text=sys.argv[2], on_error="skip", progress=False)
        judged(f"{sys.argv[2]} {SIZE} px", with_text(found["train"]), with_text(found["test"]))


if __name__ == "__main__":
    main()
