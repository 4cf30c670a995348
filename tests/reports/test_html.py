"""The HTML report: complete, self-contained, safe, and without real images when asked."""

import json
import re
from html.parser import HTMLParser

import pytest

from verisim.errors import VerisimError
from verisim.reports.figures import grid_png, pairs_png
from verisim.reports.html import comparison_report

HOSTILE = '<script>alert("x")</script>$\\frac{'


class Page(HTMLParser):
    """Collects tags, attributes and text."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.links, self.sources, self.handlers, self.words = [], [], [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for key, value in attrs:
            if key == "href":
                self.links.append(value)
            if key in ("src", "srcset", "data", "poster", "action"):
                self.sources.append(value)
            if key.startswith("on"):
                self.handlers.append(key)

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def report(example, tmp_path_factory):
    """A function that writes a report and returns its HTML and the image sets in it."""
    folder = tmp_path_factory.mktemp("report")
    curves = folder / "metrics.jsonl"
    lines = [json.dumps({"step": s, "seconds": s, "loss": 1 / (s + 1)}) for s in range(5)]
    curves.write_text("\n".join(lines) + '\n{"step": 5, "lo')

    def write(generators, **options):
        samples = {n: example.images(8, 7) for n in generators}
        runs = {
            n: {
                "title": f"Title of {n.split('@')[0]}",
                "family": "vae",
                "parameters": 1234,
                "seconds": 90.0,
                "samples_per_second": 5.0,
                "likelihood": None,
                "metrics": curves,
            }
            for n in generators
        }
        real, train = example.images(30, 1), example.images(30, 2)
        path = folder / "deep" / "report.html"
        results = {**example.results(generators), **options.pop("extra", {})}
        comparison_report(
            path, results, samples=samples, real=real, runs=runs, title="Comparison", notes=["A note."],
            train=train, **options,
        )  # fmt: skip
        return path.read_text(), real, train, samples

    return write


@pytest.fixture(scope="module")
def usual(example, report):
    rows = {
        "good@0": example.row("generator", 0.52),
        "good@1": example.row("generator", 0.53),
        "fair@0": example.row("generator", 0.80),
        "same@0": example.row("generator", 0.81),
        "copier@0": example.row("generator", 0.95, copies=True, mirrored=True),
        "few@0": example.row("generator", 0.5, n=4, few="4 images, at least 20 are needed"),
    }
    return report(rows)


def test_nothing_is_loaded_from_elsewhere(usual):
    """It must open offline, in a hospital: no script, no style sheet, no font, no image from elsewhere."""
    page = Page(usual[0])
    assert not {"script", "link", "iframe", "object", "embed", "form", "base"} & set(page.tags)
    assert page.sources and all(s.startswith("data:image/png;base64,") for s in page.sources)
    assert all(link.startswith("#") for link in page.links) and not page.handlers
    assert not re.search(r"url\(|@import|https?://", usual[0])


def test_every_row_is_there(usual):
    """Generators and controls alike, by title."""
    text = Page(usual[0]).text
    for name in ("good", "fair", "same", "copier", "few"):
        assert f"Title of {name}" in text
    for control in ("Real against real", "Copies of training images", "Real images, blurred", "Noise"):
        assert control in text


def test_all_sections(usual):
    """What a reader looks for has a heading."""
    text = Page(usual[0]).text
    for heading in ("Verdict", "Before you believe it", "Look at them", "Nearest training images", "Learning curves",
                    "Cost and likelihood", "What the measures mean", "Settings, data and environment"):  # fmt: skip
        assert heading in text, heading
    assert "1 unreadable line(s) were left out" not in text and "unreadable line(s)" in text


def test_verdict_in_plain_words(usual):
    """The winner, the tie, and faults that a rank would hide come first."""
    text = Page(usual[0]).text
    assert "Of 5 generators, Title of good is hardest to tell from real images." in text
    assert "Title of fair and Title of same (a tie); Title of copier" in text
    assert "Title of copier may have copied training images." in text
    assert "Title of copier mixed up left and right." in text
    assert "Not judged: Title of few" in text


def test_missing_numbers_have_a_reason(usual):
    """A number that is not there is shown as a dash, with why."""
    assert re.search(r'class="missing">–<small>4 images, at least 20 are needed</small>', usual[0])
    assert "this kind of model has no likelihood" in usual[0]
    assert "None" not in Page(usual[0]).text and "nan" not in Page(usual[0]).text


def test_real_images_and_neighbours_are_shown(usual):
    """Sample grids stand beside real images; the closest pairs are shown, sample above training image."""
    html, real, train, samples = usual
    assert encoded(grid_png(real)) in html
    pair = pairs_png(samples["good@0"].subset(index(3, 0)), train.subset(index(1, 2)))
    assert encoded(pair) in html


def test_show_real_false_hides_every_real_image(example, report):
    """Committed reports must not hold a patient's image: samples stay, real grids and pairs go."""
    rows = {"good@0": example.row("generator", 0.52)}
    html, real, train, samples = report(rows, show_real=False)
    shown = set(re.findall(r"base64,([A-Za-z0-9+/=]+)", html))
    assert encoded(grid_png(samples["good@0"])) in shown
    assert encoded(grid_png(real)) not in shown and encoded(grid_png(train)) not in shown
    assert "Nearest training images" not in html and "are left out of this report" in html
    assert len(shown) == 3  # samples, learning curve, dot plot


def test_hostile_names_are_only_text(example, report):
    """Names come from folders and files: they must not become HTML, nor break a figure."""
    html, *_ = report({f"{HOSTILE}@0": example.row("generator", 0.6)})
    page = Page(html)
    assert "script" not in page.tags and HOSTILE in page.text
    assert "&lt;script&gt;" in html


def test_hostile_warnings_and_reasons(example, report):
    """Texts of the evaluation are escaped as well."""
    rows = {"a@0": example.row("generator", 0.6, few="<img src=x onerror=alert(1)>")}
    html, *_ = report(
        rows, extra={"warnings": ["<b>bold</b>"], "anatomy": {"real": {"<i>": {"mean": 1, "std": 0}}}}
    )
    page = Page(html)
    assert not page.handlers and not {"b", "i"} & set(page.tags)


def test_no_generator_could_be_judged(example, report):
    """Then the report says so instead of naming a winner."""
    html, *_ = report({"a@0": example.row("generator", 0.6, few="too few")})
    assert "There is no verdict" in html


def test_a_failed_control_is_said_aloud(example, report):
    """If the judge misses noise, the reader must not trust the table."""
    broken = example.results({"a@0": example.row("generator", 0.6)})
    broken["controls"]["noise"]["c2st"]["auc"] = example.estimate(0.7)
    html, *_ = report({"a@0": example.row("generator", 0.6)}, extra={"controls": broken["controls"]})
    assert "Take care, a control failed" in html and "The judge works" not in html


def test_optional_tables(example, report):
    """Anatomy and usefulness appear when they were measured."""
    auc = {"auc": example.estimate(0.8)}
    extra = {
        "anatomy": {k: {"laterality": {"mean": 0.3, "std": 0.1}} for k in ("real", "a@0")},
        "utility": {"a@0": {"trtr": auc, "tstr": auc, "gain_auc": example.estimate(0.01)}},
    }
    html, *_ = report({"a@0": example.row("generator", 0.6)}, extra=extra)
    text = Page(html).text
    assert "Heart side" in text and "Are the images useful?" in text and "not measured" in text


def test_wrong_results_are_refused(example, tmp_path):
    """A JSON of something else: the error says what is missing and where it comes from."""
    with pytest.raises(VerisimError, match=r"have no 'rows'.*evaluate_fair"):
        comparison_report(
            tmp_path / "x.html", {}, samples={}, real=example.images(2, 0), runs={}, title="", notes=[]
        )
    assert not (tmp_path / "x.html").exists()


def encoded(png):
    import base64

    return base64.b64encode(png).decode()


def index(*i):
    import torch

    return torch.tensor(i)
