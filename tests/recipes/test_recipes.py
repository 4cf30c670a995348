"""The catalogue: every recipe builds, names real settings, and refuses what it does not know."""

from pathlib import Path

import pytest

from verisim.cli.train import build_parser
from verisim.data.spec import ImageSpec
from verisim.errors import VerisimError
from verisim.hub.weights import ModelCard, save_model
from verisim.models import MODELS, build_model
from verisim.recipes import catalogue, load_recipe, parse
from verisim.training.source import DataSettings

RECIPES = catalogue()
VARIANTS = [(r.id, v) for r in RECIPES.values() if r.model for v in ["source", *r.variants]]


@pytest.mark.parametrize(("recipe", "variant"), VARIANTS)
def test_every_variant_is_understood(recipe, variant):
    """All settings of all variants are known to the classes they fill; a misspelt one would raise."""
    build_parser(recipe, variant)


def test_files_are_named_by_their_id():
    """load_recipe finds a recipe by its file's name, in any case."""
    assert all(name == recipe.id for name, recipe in RECIPES.items())
    assert load_recipe("x-d-FIX") == RECIPES["X-D-fix"]


FIRST_STAGE = {"W-C5c": "W-C5b", "W-C5d": "W-C5b"}  # of recipes whose first stage is a system of its own
SMALL = [(r, v) for r, v in VARIANTS if v in ("small", "small-3d", "small-adversarial", "pixels")]


@pytest.mark.parametrize(("recipe", "variant"), SMALL)
def test_small_variants_build(recipe, variant, tmp_path):
    """The small variants of every model can be constructed at their own size, after their first stage if they have one."""
    settings = RECIPES[recipe].settings(variant)
    model = dict(settings["model"])
    spec = ImageSpec(DataSettings(**settings["data"]).shape)
    if model.get("representation") == "latent":
        first = RECIPES[FIRST_STAGE.get(recipe, f"{recipe}.1")].settings(variant)
        assert first["data"] == {k: v for k, v in settings["data"].items() if k != "text"}
        model["first_stage"] = str(saved_stage(tmp_path / "w", dict(first["model"]), spec))
    if model["name"] == "distilled":
        teacher = {"name": "diffusion", "channels": (8, 8), "blocks": 1, "attention": (False, False)}
        model["teacher"] = str(saved_stage(tmp_path / "t", teacher, spec))
    build_model(model.pop("name"), model, spec)


def saved_stage(path, settings, spec):
    name = settings.pop("name")
    save_model(path, build_model(name, settings, spec), ModelCard(name, settings, spec))
    return path


def test_every_model_has_a_recipe():
    """A model nobody can train from the catalogue would be hidden."""
    assert {r.model["name"] for r in RECIPES.values() if r.model} == set(MODELS)


def test_done_means_reproducible():
    """A system that calls itself done names its reproduction and its page."""
    from pathlib import Path

    from verisim.reproductions import REPRODUCTIONS

    root = Path(__file__).parents[2]
    for r in RECIPES.values():
        if r.status == "done":
            assert r.reproduction in REPRODUCTIONS, r.id
            assert (root / r.page).exists(), f"{r.id}: {r.page}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id: a\ntitle: b\nstatus: done\nmodle: {}", "unknown key 'modle'.*Did you mean 'model'"),
        ("id: a\nstatus: done", "lacks title"),
        ("id: a\ntitle: b\nstatus: finished", "status is 'finished'"),
        ("- 1", "not a recipe"),
        ("a: !!python/object/apply:os.system ['true']", "not plain YAML"),
        ("extends: nothing\nid: a", "extends 'nothing'"),
    ],
)
def test_bad_recipes_are_refused(text, message):
    """Unknown keys, missing ones, code in YAML: one sentence each, nothing executed."""
    with pytest.raises(VerisimError, match=message):
        parse(text, "mine.yaml")


def test_unknown_recipe_suggests_the_nearest():
    """A typing error in an id names what was probably meant."""
    with pytest.raises(VerisimError, match="Did you mean 'X-G-fix'"):
        load_recipe("X-G-fxi")


def test_extends_takes_over_and_changes():
    """A sweep keeps the baseline's settings but for its own."""
    base, sweep = RECIPES["X-G0"].settings("source"), RECIPES["X-G-lr"].settings("full")
    assert sweep["model"] == {**base["model"], "lr": 1e-5} and sweep["data"] == base["data"]


@pytest.mark.parametrize("name", sorted(n for n, r in catalogue().items() if r.status == "done"))
def test_done_means_that_results_are_committed(name):
    """A system is done when what its reproduction measured is there to be read."""
    root = Path(__file__).parents[2] / "results"
    wanted = catalogue()[name].reproduction
    assert wanted and list(root.glob(f"{wanted}.*.json")), f"{name}: nothing in results/ of '{wanted}'"
