"""Brightness of tissues in magnetic resonance images, from their relaxation times and water content.

Typical values at 1.5 tesla; lesions are those of a glioma and of multiple sclerosis. Spin-echo signal:

    S = PD (1 - exp(-TR / T1)) exp(-TE / T2)
    S = PD |1 - 2 exp(-TI / T1) + exp(-TR / T1)| exp(-TE / T2)      after an inversion (FLAIR)
"""

from __future__ import annotations

import math

from verisim.errors import pick

# T1 (ms), T2 (ms), proton density (water = 1), T1 (ms) ten minutes after gadolinium
TISSUES = {
    "background": (1000.0, 50.0, 0.0, 1000.0),
    "csf": (2569.0, 329.0, 1.00, 2569.0),
    "grey": (833.0, 83.0, 0.86, 820.0),
    "white": (500.0, 70.0, 0.77, 495.0),
    "deep": (680.0, 76.0, 0.82, 670.0),  # thalamus, caudate, putamen
    "oedema": (1200.0, 140.0, 0.90, 1180.0),
    "core": (1900.0, 200.0, 0.93, 1850.0),  # necrosis
    "enhancing": (1100.0, 110.0, 0.88, 260.0),  # broken blood-brain barrier
    "ms": (1150.0, 150.0, 0.88, 1100.0),
}
# TR, TE (ms) of the sequences; FLAIR's TI follows from the CSF that it nulls
SEQUENCES = {
    "T1": (500.0, 15.0),
    "T1c": (500.0, 15.0),
    "T2": (4000.0, 90.0),
    "PD": (3000.0, 20.0),
    "FLAIR": (9000.0, 100.0),
}
WHITE = 0.85  # brightness of the brightest tissue, on [0, 1]; the rest is left for bias field and noise


def signal(tissue: str, contrast: str) -> float:
    """Signal S of a tissue of TISSUES under a contrast of SEQUENCES (equations above), in [0, 1]."""
    tr, te = pick(SEQUENCES, contrast, "MR contrast")
    t1, t2, density, t1_enhanced = pick(TISSUES, tissue, "tissue")
    if contrast == "T1c":
        t1 = t1_enhanced
    magnetisation = 1 - math.exp(-tr / t1)
    if contrast == "FLAIR":
        magnetisation = abs(1 - 2 * math.exp(-inversion_time() / t1) + math.exp(-tr / t1))
    return density * magnetisation * math.exp(-te / t2)


def inversion_time() -> float:
    """TI (ms) at which cerebrospinal fluid has no signal: T1 (ln 2 - ln(1 + exp(-TR / T1)))."""
    t1, tr = TISSUES["csf"][0], SEQUENCES["FLAIR"][0]
    return t1 * (math.log(2) - math.log1p(math.exp(-tr / t1)))


def brightness(contrast: str) -> dict[str, float]:
    """Tissue -> grey value on [0, 1]: its signal, with the brightest tissue of the contrast at 0.85."""
    signals = {tissue: signal(tissue, contrast) for tissue in TISSUES}
    return {tissue: WHITE * s / max(signals.values()) for tissue, s in signals.items()}
