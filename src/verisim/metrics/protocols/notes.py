"""What a reader must know before believing the table: the data, and warnings in plain words."""

from __future__ import annotations

from collections.abc import Mapping

from verisim.data.spec import Images
from verisim.metrics.protocols.bench import Bench, FairSettings


def describe(train: Images, test: Images, bench: Bench) -> dict:
    def people(images: Images) -> int | None:
        return None if images.patients is None else len(set(images.patients))

    return {
        "size": list(train.spec.size),
        "channels": train.spec.channels,
        "range": [-1.0, 1.0],
        "levels": 256,
        "n_train": len(train),
        "n_test": len(test),
        "patients_train": people(train),
        "patients_test": people(test),
        "n_fake_distribution": bench.n_fake,
    }


def data_warnings(
    fakes: Mapping[str, Images], train: Images, test: Images, settings: FairSettings
) -> list[str]:
    out = []
    if train.patients is None or test.patients is None:
        out.append(
            "No patient identifiers: images were treated as independent, so intervals may be too narrow and "
            "a patient may be on both sides of a split."
        )
    need = len(train) + len(test)
    for name, images in fakes.items():
        if len(images) < need and len(images) < settings.max_fakes:
            out.append(
                f"{name}: {len(images)} samples; {need} ({len(train)} + {len(test)}) would let its judge see as "
                f"many fakes as real images."
            )
    if len(test) < 100:
        out.append(f"Only {len(test)} held-out images: expect wide intervals (100 or more are better).")
    if settings.n_seeds < 3:
        out.append(f"{settings.n_seeds} judge(s) per entry: a quick look. Use 3 or more for a verdict.")
    seeds: dict[str, int] = {}
    for name in fakes:
        base = name.split("@")[0]
        seeds[base] = seeds.get(base, 0) + 1
    few = [n for n, c in seeds.items() if c < 3]
    if few:
        out.append(
            f"Fewer than three training seeds: {', '.join(few)}. The intervals leave out how much results "
            f"change from one training to the next."
        )
    return out


def row_warnings(rows: Mapping[str, dict]) -> list[str]:
    """Controls that failed, samples that look like copies, left and right mixed up."""
    out = []
    real, noise = rows["real"]["c2st"], rows["noise"]["c2st"]
    if "auc" in real and real["auc"]["low"] > 0.5:
        out.append(
            f"Control failed: judges tell real images from real images (AUC {real['auc']['value']:.2f}). "
            f"Training and held-out images may come from different sources."
        )
    if "auc" in noise and noise["auc"]["value"] < 0.99:
        out.append(
            f"Control failed: judges miss noise (AUC {noise['auc']['value']:.2f}, 0.99 needed). Their verdicts "
            f"mean little; raise c2st_steps or give more images."
        )
    blur_flag = rows["blurred"]["memorisation"]["image"].get("flag")
    for name, row in rows.items():
        if row["kind"] != "generator":
            continue
        memory = row["memorisation"]["image"]
        if memory.get("flag"):
            why = " Blurred new patients are flagged too, so smoothness may explain it." if blur_flag else ""
            out.append(
                f"{name}: samples lie closer to training images than new patients do.{why} Look at the pairs."
            )
        elif memory.get("share_low", 0) > 0.05:
            share = 100 * memory["share_below"]
            out.append(
                f"{name}: {share:.0f} % of the samples are very close to a training image. Look at the pairs."
            )
        if row["laterality"].get("flag"):
            out.append(
                f"{name}: left and right are mixed up (asymmetry {row['laterality']['score_ratio']:.2f} of the real "
                f"one). Were training images mirrored?"
            )
    return out
