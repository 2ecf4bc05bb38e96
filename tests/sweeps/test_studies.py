"""Settings merged from preset, file and command line."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from sharedenc.errors import SpecError
from sharedenc.presets import PRESETS
from sweeps.studies import Study, default_rungs, read_study_file, study_from


def test_later_layers_win_and_recipes_merge_by_name() -> None:
    file = {"kind": "full-grid", "preset": "quick", "recipe": {"epochs": 7, "alpha": 3}}
    study = study_from(file, {"recipe": {"alpha": 10}, "seeds": [1, 2]}, kind="lr-search")
    assert study.kind == "lr-search"
    assert (study.recipe.epochs, study.recipe.alpha, study.seeds) == (7, 10.0, (1, 2))
    assert study.recipe.batch_size == PRESETS["quick"].recipe["batch_size"]


def test_the_printed_study_is_the_same_study(tmp_path: Path) -> None:
    for preset in PRESETS:
        study = study_from({"lr": {"resnet18": 1e-3}}, kind="full-grid", preset=preset)
        file = tmp_path / f"{preset}.yaml"
        file.write_text(study.to_yaml())
        assert study_from(read_study_file(file)) == study


def test_the_demo_is_44_cells_and_one_search_of_four_rates() -> None:
    study = study_from(kind="full-grid", preset="demo")
    assert len(study.cells) == 44
    assert [len(search.lrs) for search in study.searches] == [4]
    assert (study.recipe.epochs, study.recipe.image_px, study.weights) == (1, 320, "none")


def test_a_presets_search_goes_with_its_cell() -> None:
    part = {"only": ["resnet18/baseline/*"]}
    without = study_from(part, kind="full-grid", preset="demo")
    assert without.searches == []
    assert study_from(yaml.safe_load(without.to_yaml())) == without
    asked = {**part, "search_cell": "resnet18/swap-frozen/seg"}
    study = study_from(asked, kind="full-grid", preset="demo")
    assert [str(search.cell) for search in study.searches] == ["resnet18/swap-frozen/seg"]


def test_lr_search_searches_the_baselines_and_trains_nothing_else() -> None:
    study = study_from({"backbones": ["resnet18"]}, kind="lr-search", preset="quick")
    assert study.cells == []
    assert [str(search.cell) for search in study.searches] == [
        "resnet18/baseline/det",
        "resnet18/baseline/seg",
    ]


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ({"backbone": ["resnet18"]}, "no setting 'backbone'. Did you mean 'backbones'"),
        ({"recipe": {"epoch": 3}}, "no recipe setting 'epoch'. Did you mean 'epochs'"),
        ({"backbones": "resnet18"}, "backbones='resnet18' is not of the right type"),
        ({"seeds": ["a"]}, "seeds=.* is not of the right type"),
        ({"lr": {"resnet19": 1.0}}, "Did you mean 'resnet18'"),
        ({"seeds": [1, 1]}, "different numbers"),
        ({"name": "../x"}, "must begin with a letter or digit"),
        ({"search_cell": "resnet18/dual", "search_lrs": [1e-3]}, "two or more rates"),
        ({"search_cell": "resnet18/dual", "search_rungs": [2, 1]}, "rising epochs"),
        ({"search_cell": "resnet81/dual"}, "Did you mean 'resnet18'"),
        ({"search_cell": "resnet18/dual", "kind": "lr-search"}, "every chosen baseline"),
        ({"search_lrs": [1e-3, 2e-3]}, "search_lrs is set.*--search-cell CELL"),
        (
            {"search_epochs": 3, "preset": "demo", "only": ["*/dual"]},
            "search_epochs.*--search-cell",
        ),
        ({"only": ["resnet81/*"]}, "no backbone 'resnet81'. Did you mean 'resnet18'"),
        ({"only": ["*/duall"], "kind": "lr-search"}, "matches none"),
        ({"only": ["*/dual"], "kind": "lr-search"}, "has none"),
        ({"strategies": ["swap"], "freeze": ["none"]}, "leave no cell"),
        ({"rules": {"overlap": "ignor"}}, "Did you mean 'ignore'"),
        ({"rules": {"val_fracton": 0.1}}, "Did you mean 'val_fraction'"),
        ({"rules": {"val_fraction": "half"}}, "val_fraction='half' must be a number"),
    ],
)
def test_wrong_settings_are_told(layer: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        study_from(layer)


def test_unusable_study_files_are_told(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="cannot be read"):
        read_study_file(tmp_path / "none.yaml")
    for text, message in (("a: [", "not valid YAML"), ("- a", "must be a mapping")):
        file = tmp_path / "study.yaml"
        file.write_text(text)
        with pytest.raises(SpecError, match=message):
            read_study_file(file)


def test_rates_are_published_given_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from sharedenc.spec import BACKBONES, BackboneInfo

    monkeypatch.setitem(BACKBONES, "new", BackboneInfo("new", None))
    study = Study(kind="full-grid", lr={"resnet18": 1e-3})
    assert (study.rate("resnet18"), study.rate("mobilenet_v3_large")) == (1e-3, 8e-4)
    assert Study(kind="full-grid", lr={"*": 3e-4}).rate("new") == 3e-4
    with pytest.raises(SpecError, match="'new' has no published learning rate"):
        study.rate("new")


def test_rungs_follow_the_budget() -> None:
    assert default_rungs(4, 2) == (1, 2)
    assert default_rungs(1000, 3) == (24, 72, 216, 648)
    assert default_rungs(1, 2) == ()


def test_the_study_file_holds_plain_values() -> None:
    values = yaml.safe_load(study_from(kind="full-grid", preset="demo").to_yaml())
    assert values["synthetic_images"] == [64, 16, 32]
    assert values["recipe"]["batch_size"] == PRESETS["demo"].recipe["batch_size"]
