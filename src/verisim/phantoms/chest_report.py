"""Reports of chest phantoms: from factors to sentences, and from sentences back to what they state.

    heart enlarged, large effusion on the left  ->  "Cardiomegaly. Large left-sided pleural effusion."

Which of several wordings an image gets, and in which order, follows from a hash of its own factors: the report is
the same for ever. Heart and effusion are always stated; of absent findings some are denied, some not mentioned.
Sides are the patient's: left is at the right of the image.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from verisim.errors import VerisimError
from verisim.phantoms.chest import CARDIOMEGALY
from verisim.text.words import split_words

NORMAL_RATIO = 0.50  # cardiothoracic ratio up to which the heart size is called normal
LARGE = 0.30  # height of the fluid / height of the lung from which an effusion is called large
SIDES = ("right", "left")  # the patient's

# What a report can state of each factor, by class index
STATES: dict[str, tuple[str, ...]] = {
    "heart": ("normal", "borderline", "enlarged"),
    "effusion": ("none", "small right", "large right", "small left", "large left"),
    "nodule": ("none", "right", "left"),
    "opacity": ("none", "right", "left"),
    "device": ("none", "line"),
}
ALWAYS = ("heart", "effusion")  # stated in every report
HEART = {
    "normal": (
        "Heart size is normal.",
        "The heart is not enlarged.",
        "Normal cardiac silhouette.",
        "No cardiomegaly.",
    ),
    "borderline": (
        "Heart size is borderline.",
        "The heart is at the upper limit of normal.",
        "Borderline cardiac silhouette.",
    ),
    "enlarged": ("The heart is enlarged.", "Cardiomegaly.", "Enlarged cardiac silhouette."),
}
NONE = {
    "effusion": (
        "No pleural effusion.",
        "The costophrenic angles are clear.",
        "Lungs without pleural effusion.",
    ),
    "nodule": ("No nodule.", "No pulmonary nodule is seen."),
    "opacity": ("No focal opacity.", "No consolidation."),
    "device": ("No central line.", "No lines or tubes."),
}
SOME = {
    "effusion": (
        "{size} {side}-sided pleural effusion.",
        "There is a {size} pleural effusion on the {side}.",
        "{size} effusion at the {side} lung base.",
    ),
    "nodule": ("Nodule in the {side} lung.", "{side} pulmonary nodule.", "A nodule is seen on the {side}."),
    "opacity": (
        "Patchy opacity in the {side} lung.",
        "{side}-sided consolidation.",
        "Focal opacity on the {side}.",
    ),
    "device": ("Central line in place.", "A central venous line is seen."),
}
TOPICS = {  # words by which a sentence shows what it is about
    "heart": {"heart", "cardiac", "cardiomegaly"},
    "effusion": {"effusion", "costophrenic"},
    "nodule": {"nodule"},
    "opacity": {"opacity", "consolidation"},
    "device": {"line", "lines"},
}
DENIALS = {"no", "not", "without", "clear"}


def states(factors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Class indices (n,) int64 into STATES of what a full report would state of each phantom."""
    ratio, fluid = factors["cardiothoracic_ratio"], factors["effusion_size"]
    heart = (ratio > NORMAL_RATIO).long() + (ratio > CARDIOMEGALY).long()
    effusion = effusion_state(fluid * (factors["effusion_side"] < 0), fluid * (factors["effusion_side"] > 0))
    sided = {
        k: torch.where(factors[f"{k}_side"] < 0, 1, 2) * factors[k].long() for k in ("nodule", "opacity")
    }
    return {"heart": heart, "effusion": effusion, **sided, "device": factors["device"].long()}


def effusion_state(right: Tensor, left: Tensor, least: float = 0.0, large: float = LARGE) -> Tensor:
    """Class index (n,) into STATES["effusion"] from the heights of the fluid on both sides; above `least` counts."""
    height = torch.maximum(right, left)
    side = torch.where(left > right, 3, 1)
    return torch.where(height > least, side + (height >= large).long(), 0)


def report(factors: dict[str, Tensor]) -> tuple[str, ...]:
    """A report for each phantom of verisim.phantoms.chest, the same for the same factors."""
    stated = {k: v.tolist() for k, v in states(factors).items()}
    keys = torch.stack(
        [factors["cardiothoracic_ratio"], factors["rib_phase"], factors["exposure"]], 1
    ).tolist()
    return tuple(
        sentences({k: STATES[k][v[i]] for k, v in stated.items()}, f"{keys[i]}") for i in range(len(keys))
    )


def sentences(stated: dict[str, str], key: str = "") -> str:
    """The report that states factor -> state (of STATES); `key` decides wording, order and what is not mentioned."""
    dice = hashlib.sha256(key.encode()).digest()
    chosen: list[tuple[int, str]] = []
    for k, (factor, state) in enumerate(stated.items()):
        if factor not in STATES or state not in STATES[factor]:
            raise VerisimError(
                f"A chest report cannot state {factor} = '{state}'. It states: "
                + "; ".join(f"{f} {', '.join(s)}" for f, s in STATES.items())
            )
        if state == "none" and factor not in ALWAYS and dice[k] < 128:
            continue
        chosen.append((dice[8 + k], _sentence(factor, state, dice[16 + k])))
    return " ".join(text for _, text in sorted(chosen))


def _sentence(factor: str, state: str, dice: int) -> str:
    if factor == "heart":
        forms = HEART[state]
        return forms[dice % len(forms)]
    forms = NONE[factor] if state == "none" else SOME[factor]
    words = state.split()
    text = forms[dice % len(forms)].format(size=words[0], side=words[-1])
    return text[0].upper() + text[1:]


def read_report(text: str) -> dict[str, str]:
    """Factor -> state (of STATES) that a report states; what it does not mention, or not fully, is left out."""
    found: dict[str, str] = {}
    for sentence in text.split("."):
        words = split_words(sentence)
        for factor, topic in TOPICS.items():
            state = _state(factor, words) if topic.intersection(words) else None
            if state is not None:
                found[factor] = state
    return found


def _state(factor: str, words: Sequence[str]) -> str | None:
    denied = bool(DENIALS.intersection(words))
    if factor == "heart":
        if "borderline" in words or "limit" in words:
            return "borderline"
        if denied or "normal" in words:
            return "normal"
        return "enlarged" if {"enlarged", "cardiomegaly"}.intersection(words) else None
    if denied:
        return "none"
    if factor == "device":
        return "line"
    side = next((w for w in words if w in SIDES), None)
    size = next((w for w in words if w in ("small", "large")), None)
    if side is None or (factor == "effusion" and size is None):
        return None
    return f"{size} {side}" if factor == "effusion" else side


def balanced_reports(n: int) -> tuple[str, ...]:
    """n reports that ask for every heart size and every effusion equally often, with varying words; always the same.

    For judging a model: the states that are rare in training are asked for as often as the others.
    """
    pairs = [(h, e) for e in STATES["effusion"] for h in STATES["heart"]]
    return tuple(sentences(dict(zip(ALWAYS, pairs[i % len(pairs)])), f"balanced/{i}") for i in range(n))
