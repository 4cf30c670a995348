"""What planted motions, grey values, readers and files have to give back, and what must not come back."""

from __future__ import annotations

from typing import Any

from verisim.reproductions.preprocessing_grey import CHANGES, MIRRORED
from verisim.reproductions.preprocessing_readers import MARGINS, TEXT
from verisim.reproductions.result import Claim

EVERYDAY = ("turn 5", "turn 10", "shift 10")  # how heads lie in a scanner
FAR = 90.0  # degrees
LEAST_DICE = {"left": 0.85, "right": 0.85, "skull": 0.80}
LOST, BACK = (
    0.05,
    0.03,
)  # Dice of halves that the largest tilt costs at least, and that registration may leave
TENTH = 0.1
WINDOW_MOVES, EXTREMES_MOVE = 0.05, 0.5  # share of the window's width
OUTLIERS = 0.005  # share above which the 99.5th percentile is an outlier itself
NEAR = 0.01  # of a closed form


def claims(numbers: dict[str, Any]) -> list[Claim]:
    """Registration, masks, grey values, readers, utilities."""
    found = []
    for dims, by_method in numbers["registration"].items():
        for method, rows in by_method.items():
            found += _registration(dims, method, rows)
    for dims, windows in numbers["masks"].items():
        for window, rows in windows.items():
            found += _masks(f"{dims}, {window}", rows)
    found += [*_changes(numbers["changes"]), *_grey(numbers)]
    found += [*_readers(numbers["readers"]), *_published(numbers["published"]), _table(numbers["margins"])]
    return [*found, *_pieces(numbers["pieces"]), *_tools(numbers), *_files(numbers)]


# --- registration and masks -----------------------------------------------------------------------


def _registration(dims: str, method: str, rows: dict[str, Any]) -> list[Claim]:
    levels, controls = rows["levels"], rows["controls"]
    name = f"{dims}-{method.split()[0]}"
    who = f"{dims}, {method}"
    daily = {k: v for k, v in levels.items() if k in EVERYDAY}
    missed = sum(not h["recovered"] for v in daily.values() for h in v["heads"])
    left = {k: v["degrees_after"] for k, v in daily.items()}
    lost = {k: 1 - v["recovered"]["value"] for k, v in levels.items()}
    reach = {kind: _reach(levels, kind) for kind in ("turn", "shift")}
    far = [v for k, v in lost.items() if k.startswith("turn") and float(k.split()[1]) >= FAR]
    own, other = ([h["correlation"] for h in controls[k]["heads"]] for k in ("own", "another head"))
    noise = [h["recovered"] for h in controls["noise"]["heads"]]
    text = "; ".join(
        f"{k}: {v['degrees_before']['value']:.1f} degrees and {v['head_mm_before']['value']:.1f} mm, after "
        f"{_interval(v['degrees_after'], 2)} and {_interval(v['head_mm_after'], 2)}"
        for k, v in daily.items()
    )
    return [
        Claim(f"recovered-{name}", f"{who}: turns and shifts of up to 10 degrees and 10 mm are found in every head",
              "spec 002, A.6", not missed, f"{missed} missed; {text}"),
        Claim(f"degrees-{name}", f"{who}: less than a degree of them is left", "spec 002, A.6",
              _below(left, 1.0),
              "; ".join(f"{k}: {_interval(v, 2)} degrees" for k, v in left.items())),
        Claim(f"range-{name}", f"{who}: it ends somewhere; turns of 90 degrees or more are lost in some heads", "control",
              any(v > 0 for v in far) if far else None,
              f"all heads recovered up to {reach['turn']:g} degrees and {reach['shift']:g} mm; lost: "
              + (", ".join(f"{k} {v:.0%}" for k, v in lost.items() if v) or "none")),
        Claim(f"other-{name}", f"{who}: another person's head never fits as well as the own", "control",
              min(own) > max(other), f"correlation {min(own):.3f} or more, {max(other):.3f} or less"),
        Claim(f"noise-{name}", f"{who}: with noise as the reference nothing is found", "control", not any(noise),
              f"{sum(noise):.0f} of {len(noise)} heads recovered; correlation up to "
              f"{max(h['correlation'] for h in controls['noise']['heads']):.3f}"),
    ]  # fmt: skip


def _reach(levels: dict[str, Any], kind: str) -> float:
    """The largest amount up to which every head is recovered, of ascending ones."""
    reach = 0.0
    for amount, row in sorted((float(k.split()[1]), v) for k, v in levels.items() if k.startswith(kind)):
        if row["recovered"]["value"] < 1:
            break
        reach = amount
    return reach


def _below(rows: dict[str, dict[str, float]], limit: float) -> bool | None:
    """True if all intervals lie below, False if one lies above, None if one covers the limit."""
    if all(r["high"] < limit for r in rows.values()):
        return True
    return False if any(r["low"] > limit for r in rows.values()) else None


def _interval(e: dict[str, float], digits: int) -> str:
    return f"{e['value']:.{digits}f} [{e['low']:.{digits}f}, {e['high']:.{digits}f}]"


def _masks(where: str, rows: dict[str, Any]) -> list[Claim]:
    name = where.replace(" HU", "").replace(", ", "-").replace(" to ", "..")
    lie = rows["as they lie"]
    tilts = [k for k in rows if k.startswith("tilted") and "," not in k]
    halves = {k: min(r["left"]["value"], r["right"]["value"]) for k, r in rows.items()}
    mended = {t: halves["as they lie"] - halves[f"{t}, registered"] for t in tilts}
    lost = halves["as they lie"] - halves[tilts[-1]]
    return [
        Claim(f"masks-{name}", f"{where}: halves and skull are the phantom's (Dice 0.85, 0.85, 0.80 in every head)",
              "spec 002, A.6", all(min(lie[k]["each"]) >= v for k, v in LEAST_DICE.items()),
              "; ".join(f"{k} {_interval(lie[k], 3)}, least {min(lie[k]['each']):.3f}" for k in LEAST_DICE)),
        Claim(f"tilt-{name}", f"{where}: a tilted head is cut at the wrong place: its halves lose {LOST:g} Dice", "control",
              lost >= LOST, "; ".join(f"{t}: {halves[t]:.3f}" for t in tilts)),
        Claim(f"mended-{name}", f"{where}: registration to another head mends that to within {BACK:g}", "spec 002, A.6",
              all(v <= BACK for v in mended.values()),
              f"as they lie {halves['as they lie']:.3f}; "
              + "; ".join(f"{t}, registered: {halves[f'{t}, registered']:.3f}, where interpolated "
                          f"{halves[f'{t}, interpolated']:.3f}" for t in tilts)),
    ]  # fmt: skip


# --- grey values ----------------------------------------------------------------------------------


def _changes(rows: dict[str, Any]) -> list[Claim]:
    found = []
    for name in CHANGES:
        r = rows[name]
        ratio = r["pixels_own"]["high"] / r["pixels_before"]["low"]
        found.append(Claim(f"equalised-{name}", f"{name} is undone by a scan's own histogram: less than a tenth is left",
                           "spec 002, A.6", ratio < TENTH,
                           f"pixels {_interval(r['pixels_before'], 3)} apart, after {_interval(r['pixels_own'], 3)}; "
                           f"histogram {r['histogram_before']['value']:.3f} from the reference's, after "
                           f"{r['histogram_own']['value']:.3f}"))  # fmt: skip
    fixed = {n: (rows[n]["pixels_before"]["value"], rows[n]["pixels_fixed"]["value"]) for n in CHANGES}
    m = rows[MIRRORED]
    return [
        *found,
        Claim("fixed", "The table of a fixed reference undoes none of them: pixels are further apart than before", "control",
              all(after > before for before, after in fixed.values()),
              "; ".join(f"{n} {a:.3f}, after {b:.3f}" for n, (a, b) in fixed.items())),
        Claim("mirrored", "A change that is not monotone is not undone", "control",
              m["pixels_own"]["low"] > m["pixels_before"]["high"],
              f"{MIRRORED}: pixels {_interval(m['pixels_before'], 3)} apart, after {_interval(m['pixels_own'], 3)}"),
    ]  # fmt: skip


def _grey(numbers: dict[str, Any]) -> list[Claim]:
    ranks, contrast, windows = numbers["ranks"], numbers["contrast"], numbers["windows"]
    few = {k: v for k, v in windows.items() if float(k) < OUTLIERS}
    many = {k: v for k, v in windows.items() if float(k) > OUTLIERS}
    return [
        Claim("ranks", "Any strictly increasing change of grey values leaves their ranks as they are, bit for bit",
              "spec 002, A.6", ranks["monotone"]["ranks_identical"] and not ranks["shuffled"]["ranks_identical"],
              f"{ranks['monotone']['levels']} grey values: identical, images {ranks['monotone']['most_apart']:.1g} apart; "
              f"shuffled: {ranks['shuffled']['most_apart']:.2g}"),
        Claim("contrast", "Equalised, brain takes ten times as much of black to white", "spec 002, A.6",
              contrast["after"] >= 10 * contrast["before"], f"{contrast['before']:.3f}, after {contrast['after']:.3f}"),
        Claim("outliers", "Outliers of less than half a percent move the percentile window by less than a twentieth",
              "spec 002, Q", all(v["percentiles"] < WINDOW_MOVES for v in few.values()),
              "; ".join(f"{k}: {v['percentiles']:.4f}" for k, v in few.items())),
        Claim("extremes", "Darkest and brightest pixel as the window are moved by more than half by any of them", "control",
              all(v["extremes"] > EXTREMES_MOVE for v in few.values()),
              "; ".join(f"{k}: {v['extremes']:.2f}" for k, v in few.items())),
        Claim("outliers-many", "and more outliers than that move the percentile window too: this is where it ends", "control",
              all(v["percentiles"] > WINDOW_MOVES for v in many.values()),
              "; ".join(f"{k}: {v['percentiles']:.2f}" for k, v in many.items())),
    ]  # fmt: skip


# --- readers --------------------------------------------------------------------------------------


def _readers(rows: dict[str, Any]) -> list[Claim]:
    found = []
    for name, r in rows.items():
        apart = [abs(r["kappa"] - r["expected"]["kappa"])]
        apart += [abs(a - b) for k in ("auroc", "auroc_truth") for a, b in zip(r[k], r["expected"][k])]
        found.append(Claim(f"readers-{name}", f"Kappa and AUROCs of {name} are those of the closed form (within {NEAR:g})",
                           "spec 002, A.7", max(apart) <= NEAR,
                           f"kappa {r['kappa']:.3f} of {r['expected']['kappa']:.3f}, 86 scans {r['kappa_of_86'][0]:.2f} to "
                           f"{r['kappa_of_86'][1]:.2f}; AUROC {_three(r['auroc'])} of {_three(r['expected']['auroc'])}"))  # fmt: skip
    guess = rows["all guess"]
    found.append(Claim("majority", "A reader who guesses has 0.5 against the truth, and more against a majority of which he is part",
                       "control", max(guess["auroc_truth"]) < 0.55 < 0.7 < min(guess["auroc"]),
                       f"against the truth {_three(guess['auroc_truth'])}, against the majority {_three(guess['auroc'])}"))  # fmt: skip
    return found


def _three(values: list[float]) -> str:
    return ", ".join(f"{v:.3f}" for v in values)


def _published(rows: dict[str, Any]) -> list[Claim]:
    means = {k: round(r["mean_of_printed"], 3) == r["mean"] for k, r in rows.items()}
    text = "; ".join(f"{k} {r['mean_of_printed']:.3f} of {r['mean']}" for k, r in rows.items())
    found = [
        Claim("means", "The printed mean AUROCs are those of the printed readers", "source 002, chapter 6",
              all(means.values()), text)
    ]  # fmt: skip
    for name, r in rows.items():
        low, high = r["possible_kappa"]
        found.append(Claim(f"kappa-{name}", f"{name}: the printed kappa is possible with the printed AUROCs on the 86 scans",
                           "source 002, chapter 6", low - 5e-3 <= r["kappa"] <= high + 5e-3,
                           f"printed {r['kappa']}; possible {low:.3f} to {high:.3f}"))  # fmt: skip
    return found


def _table(found: dict[str, int]) -> Claim:
    right = all(found[k] == v for k, v in MARGINS.items())
    differs = found["right"] != TEXT["right"] == found["without left"]
    adds_up = TEXT["train"] + TEXT["test"] == TEXT["healthy"]
    return Claim("table", "The table of test scans adds up, and the text's 47 right bleedings are its 47 without left ones",
                 "spec 002, T2", right and differs and not adds_up,
                 f"left {found['left']}, right {found['right']} (text {TEXT['right']}), fractures {found['fracture']}, healthy "
                 f"{found['healthy']}, all {found['all']}; without left {found['without left']}; text: {TEXT['train']} + "
                 f"{TEXT['test']} healthy scans are {TEXT['healthy']}")  # fmt: skip


# --- utilities ------------------------------------------------------------------------------------


def _pieces(r: dict[str, Any]) -> list[Claim]:
    drawn, learned = (r[k]["whole"] / r[k]["pieces"] for k in ("bytes_drawn", "bytes_learned"))
    return [
        Claim("pieces", f"A volume drawn in {r['pieces']} pieces is the volume drawn at once, bit for bit", "spec 002, K.10",
              r["image_apart"] == 0, f"{r['image_apart']:.2g} apart"),
        Claim("pieces-gradient", "and its gradient that of all points (1e-5); the first piece's alone is not",
              "spec 002, K.10", r["gradient_apart"] < 1e-5 and r["gradient_of_one_piece"] > 1e-2,
              f"{r['gradient_apart']:.2g} apart, alone {r['gradient_of_one_piece']:.2g}"),
        Claim("pieces-bytes", f"at less than {2 / r['pieces']:.3g} of the memory", "spec 002, T20",
              min(drawn, learned) > r["pieces"] / 2, f"drawing {drawn:.1f}, learning {learned:.1f} times less"),
    ]  # fmt: skip


def _tools(n: dict[str, Any]) -> list[Claim]:
    points, crop, e = n["points"], n["crops"], n["ensemble"]
    return [
        Claim("points", "Drawn voxels: 5 %, nine tenths inside, none twice, every time; drawn anywhere they are not",
              "spec 002, T16", points["right"] == points["draws"] and points["uniform_inside"] < 0.6,
              f"{points['right']} of {points['draws']}; anywhere {points['uniform_inside']:.2f} inside"),
        Claim("crops", "Crops begin where the trapezoid says (chi-square below 1.5 per degree of freedom); uniform ones do not",
              "spec 002, T4", crop["trapezoid"] < 1.5 and crop["uniform"] > 10,
              f"{crop['trapezoid']:.2f}, uniform {crop['uniform']:.0f}"),
        Claim("coordinates", "A crop's coordinates are those of the whole image there; made anew for the crop they are others",
              "spec 002, D.9", crop["coordinates_equal"] and crop["made_anew_apart"] > 0.1,
              f"equal; made anew {crop['made_anew_apart']:.2f} apart"),
        Claim("ensemble", "Mean and variance are the members' (1e-5); one member is another thing", "spec 002, C.4",
              max(e["mean_apart"], e["variance_apart"]) < 1e-5 < e["variance"] and e["one_member_apart"] > 0.1,
              f"{e['mean_apart']:.1g} and {e['variance_apart']:.1g} apart, a member {e['one_member_apart']:.2f}"),
    ]  # fmt: skip


def _files(n: dict[str, Any]) -> list[Claim]:
    o, r = n["orientations"], n["resuming"]
    return [
        Claim("resuming", "Training stopped half way and gone on with ends bit for bit as if it had not; half of it does not",
              "spec 002, Q", r["same"] and not r["half_the_same"], f"same: {r['same']}; half: {r['half_the_same']}"),
        Claim("orientations", "Voxels and affine survive NIfTI in all 48 orientations", "spec 002, Q",
              o["equal"] == o["orientations"] == 48, f"{o['equal']} of {o['orientations']}"),
        Claim("sides", "The patient's side is told by the affine, or refused where columns do not run across", "spec 002, A.6",
              o["right"] == o["told"] > 0 and o["told"] + o["refused"] == o["orientations"],
              f"{o['right']} of {o['told']} right, {o['refused']} refused"),
        Claim("mirrored-sides", "Ignoring the affine mixes up sides in half of them", "control",
              2 * o["right_without_affine"] == o["told"], f"{o['right_without_affine']} of {o['told']} right"),
    ]  # fmt: skip
