"""What chapter 6 of source 002 claims of position regression and its baselines, held against our numbers."""

from __future__ import annotations

from typing import Any

from verisim.metrics.bootstrap import Estimate, pool, tie
from verisim.reproductions.result import Claim

PPR, SHUFFLED, AE, THRESHOLD = "B-A", "B-A:shuffled", "B-B", "B-S5"
LEARNED = 0.05  # edges: position error of a network that has learned (spec 002, A.10)
QUESTIONS = {"blood": "haemorrhages", "fracture": "fractures"}


def claims(rows: dict[str, dict[str, Any]]) -> list[Claim]:
    """All claims of the comparison; rows 'SYSTEM@SEED'."""
    found = [_smaller(rows), _less_memory(rows), _position(rows)]
    for question, what in QUESTIONS.items():
        auroc = {s: _pooled(rows, s, question) for s in (PPR, SHUFFLED, AE, THRESHOLD)}
        found += [
            _above(auroc, PPR, AE, f"{question}-autoencoder", f"Position regression finds {what} better than the autoencoder",
                   "source 002, chapter 6, Fig. 3 (spec 002, A.8; section S expects the opposite on phantoms)"),
            _above(auroc, PPR, THRESHOLD, f"{question}-threshold", f"Position regression finds {what} better than an intensity threshold",
                   "spec 002, 1.5: a baseline that must be reported"),
            _chance(auroc[PPR], f"{question}-chance", f"Position regression finds {what} better than chance"),
            _control(auroc[SHUFFLED], question, what),
        ]  # fmt: skip
    return [*found, _kinds(rows)]


def _pooled(rows: dict[str, dict[str, Any]], system: str, question: str) -> Estimate:
    """Mean over training seeds."""
    return pool([Estimate.from_dict(r[question]) for n, r in rows.items() if n.split("@")[0] == system])


def _text(name: str, e: Estimate) -> str:
    return f"{name} {e.value:.3f} [{e.low:.3f}, {e.high:.3f}]"


def _smaller(rows: dict[str, dict[str, Any]]) -> Claim:
    a, b = rows[f"{PPR}@0"]["parameters"], rows[f"{AE}@0"]["parameters"]
    text = f"{a:,} against {b:,} parameters, {b / a:.1f} times fewer"
    return Claim("parameters", "Position regression has at most a tenth of the autoencoder's parameters",
                 "source 002, chapter 6: one to two orders of magnitude fewer", 10 * a <= b, text)  # fmt: skip


def _less_memory(rows: dict[str, dict[str, Any]]) -> Claim:
    a, b = (rows[f"{s}@0"]["saved_bytes"] for s in (PPR, AE))
    text = f"{a / 2**20:.1f} against {b / 2**20:.1f} MiB kept by a training step, {b / a:.1f} times less"
    return Claim("memory", "Position regression needs at most half of the autoencoder's memory",
                 "source 002, chapter 6, Table 1: 2.8 and 4.5 times less", 2 * a <= b, text)  # fmt: skip


def _position(rows: dict[str, dict[str, Any]]) -> Claim:
    right = [r["position_error"] for n, r in rows.items() if n.startswith(f"{PPR}@")]
    wrong = [r["position_error"] for n, r in rows.items() if n.startswith(f"{SHUFFLED}@")]
    text = f"held-out normal heads: {max(right):.3f} edges at most; shuffled {min(wrong):.3f} at least"
    holds = max(right) < LEARNED and min(wrong) > 3 * LEARNED
    return Claim("position", "It learns where a patch sits, and with shuffled positions it does not",
                 "spec 002, A.10: below 0.05 edges", holds, text)  # fmt: skip


def _above(auroc: dict[str, Estimate], a: str, b: str, name: str, statement: str, source: str) -> Claim:
    x, y = auroc[a], auroc[b]
    return Claim(
        name,
        statement,
        source,
        None if tie(x, y) else x.value > y.value,
        f"AUROC: {_text(a, x)}, {_text(b, y)}",
    )


def _chance(e: Estimate, name: str, statement: str) -> Claim:
    holds = None if e.low <= 0.5 <= e.high else e.low > 0.5
    return Claim(
        name, statement, "source 002, chapter 6: 0.81 and 0.79 on CQ500", holds, f"AUROC: {_text(PPR, e)}"
    )


def _control(e: Estimate, question: str, what: str) -> Claim:
    return Claim(f"{question}-shuffled", f"With shuffled positions {what} are found no better than by chance",
                 "negative control (spec 002, A.10)", e.low <= 0.5, f"AUROC: {_text(SHUFFLED, e)}")  # fmt: skip


def _kinds(rows: dict[str, dict[str, Any]]) -> Claim:
    """Is there a kind of finding for which position regression is ahead, beyond the intervals?"""
    kinds = list(rows[f"{PPR}@0"]["kinds"])
    parts, ahead = [], []
    for kind in kinds:
        x, y = (
            pool([Estimate.from_dict(r["kinds"][kind]) for n, r in rows.items() if n.startswith(f"{s}@")])
            for s in (PPR, AE)
        )
        word = "tie" if tie(x, y) else "position regression" if x.value > y.value else "autoencoder"
        ahead.append(word)
        parts.append(f"{kind} {x.value:.2f} / {y.value:.2f} ({word})")
    holds = True if "position regression" in ahead else None if "tie" in ahead else False
    return Claim("kinds", "There are kinds of findings for which position regression is ahead of the autoencoder",
                 "ours: who is better at what", holds, "AUROC against normal heads: " + ", ".join(parts))  # fmt: skip


# --- the width sweep ------------------------------------------------------------------------------


def sweep_claims(rows: dict[str, dict[str, Any]], paper: dict[str, dict[str, Any]]) -> list[Claim]:
    """The source's rule (fewer parameters and less memory than the best autoencoder), and memory at its own scale."""
    found = []
    for question, what in QUESTIONS.items():
        best = max((n for n in rows if n.startswith(AE)), key=lambda n: rows[n][question]["value"])
        limit = rows[best]
        small = [
            n for n, r in rows.items()
            if n.startswith(PPR) and r["parameters"] < limit["parameters"] and r["saved_bytes"] < limit["saved_bytes"]
        ]  # fmt: skip
        statement = f"A position regression with fewer parameters and less memory than the best autoencoder finds {what} better"
        if not small:
            found.append(
                Claim(
                    f"best-{question}",
                    statement,
                    "source 002, Table 1",
                    False,
                    f"none is smaller than {best}",
                )
            )
            continue
        mine = max(small, key=lambda n: rows[n][question]["value"])
        x, y = (Estimate.from_dict(rows[n][question]) for n in (mine, best))
        text = f"AUROC: {_text(mine, x)}, {_text(best, y)}"
        found.append(Claim(f"best-{question}", statement, "source 002, Table 1", None if tie(x, y) else x.value > y.value, text))  # fmt: skip
    widths = sorted({r["width"] for r in paper.values()})
    ratio = {
        m: paper[f"{AE} m={m}"]["saved_bytes"]["4"] / paper[f"{PPR} m={m}"]["saved_bytes"]["256"]
        for m in widths
    }
    text = ", ".join(f"m={m}: {r:.1f}" for m, r in ratio.items())
    found.append(Claim("memory-at-scale", "At equal width 256 patches need at most half of the memory of 4 volumes",
                       "source 002, Table 1 (2.8 and 4.5 at its best widths)", min(ratio.values()) >= 2,
                       f"256^3, 31^3, times less: {text}"))  # fmt: skip
    return found


# --- the sizes of the patch -----------------------------------------------------------------------


def patch_claims(rows: dict[str, dict[str, Any]]) -> list[Claim]:
    """What the source says of small and large patches; rows 'B-A SIDE' and the control with shuffled positions."""
    sizes = {int(n.split()[1]): r for n, r in rows.items() if n.startswith(f"{PPR} ")}
    blood = {n: Estimate.from_dict(r["blood"]) for n, r in sorted(sizes.items())}
    values = [e.value for e in blood.values()]
    alike = all(tie(a, b) for a in blood.values() for b in blood.values())
    errors = [r["position_error"] for _, r in sorted(sizes.items())]
    control = Estimate.from_dict(rows[SHUFFLED]["blood"])
    text = ", ".join(_text(f"{n}:", e) for n, e in blood.items())
    return [
        Claim("patch-auroc", "The size of the patch makes no difference to how well haemorrhages are found",
              "source 002, chapter 6 (spec 002, A.9): about 0.06, negligible", alike,
              f"AUROC by voxels per side: {text}; they differ by {max(values) - min(values):.3f}"),
        Claim("patch-position", "The larger the patch, the better its place is known", "source 002, chapter 6 (spec 002, A.9)",
              errors == sorted(errors, reverse=True),
              "edges off: " + ", ".join(f"{n}: {e:.3f}" for n, e in zip(blood, errors, strict=True))),
        Claim("patch-control", "Every size finds haemorrhages better than a network with shuffled positions",
              "negative control", all(e.low > control.high for e in blood.values()), f"AUROC: {_text(SHUFFLED, control)}"),
    ]  # fmt: skip
