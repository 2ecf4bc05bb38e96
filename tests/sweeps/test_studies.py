"""Settings merged from preset, file and command line."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from sharedenc.errors import SpecError
from sharedenc.presets import PRESETS
from sweeps.studies import Study, read_study_file, seeds_from, study_from


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
        ({"search_cell": "resnet18/dual", "kind": "lr-search"}, "leave search_cell out"),
        ({"search_cell": "resnet18/dual", "lr_search": "cell"}, "leave search_cell out"),
        (
            {"search_cell": "resnet18/baseline/seg", "lr_search": "backbone"},
            "is searched already, with its backbone's other baseline",
        ),
        ({"search_lrs": [1e-3, 2e-3]}, "search_lrs is set.*--lr-search backbone or cell"),
        ({"search_trials": 4}, "search_trials is set"),
        ({"lr_search": "backbon"}, "Did you mean 'backbone'"),
        ({"lr_search": "cell", "lr": {"*": 1e-3}}, "lr_search=cell has nothing to search"),
        ({"lr_search": "cell", "search_trials": 1}, "search_trials=1 must be at least 2"),
        ({"lr_search": "cell", "search_range": [1e-2, 1e-3]}, "the lower one first"),
        ({"lr_search": "cell", "search_lrs": [1e-3, 1e-3]}, "all different"),
        (
            {"lr_search": "cell", "search_lrs": [1e-3, 2e-3], "search_trials": 4},
            "names 2 rates, so search_trials must be left out",
        ),
        ({"lr_search": "cell", "search_schedulers": ["linear"]}, "plateau"),
        ({"lr_search": "cell", "search_schedulers": ["cosine", "cosine"]}, "twice"),
        ({"lr_search": "cell", "search_factor": 1}, "search_factor=1 must be at least 2"),
        ({"kind": "lr-search", "lr_search": "published"}, "kind lr-search searches"),
        ({"seeds": 0}, "seeds=0 must be a count"),
        ({"seeds": "0,1"}, "not of the right type"),
        ({"recipe": {"alpha": [1, 1.0]}}, "different values"),
        ({"recipe": {"alpha": []}}, "different values"),
        ({"recipe": {"alpah": [1, 2]}}, "Did you mean 'alpha'"),
        ({"axes": {"alpha": 3.0, "bn_mode": ["eval", "trian"]}}, "'train'"),
        ({"lr": {"*": 0.0}}, "above 0"),
        (
            {"search_epochs": 3, "preset": "demo", "only": ["*/dual"]},
            "search_epochs is set.*--search-cell",
        ),
        ({"only": ["resnet81/*"]}, "no backbone 'resnet81'. Did you mean 'resnet18'"),
        ({"only": ["*/duall"], "kind": "lr-search"}, "matches none"),
        ({"strategies": ["swap"], "freeze": ["none"]}, "leave no cell"),
        ({"rules": {"overlap": "ignor"}}, "Did you mean 'ignore'"),
        ({"rules": {"val_fracton": 0.1}}, "Did you mean 'val_fraction'"),
        ({"rules": {"val_fraction": "half"}}, "val_fraction='half' must be a number"),
    ],
)
def test_wrong_settings_are_told(layer: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        study_from(layer)


def test_a_count_of_seeds_is_their_first_numbers() -> None:
    assert study_from({"seeds": 3}).seeds == (0, 1, 2)
    assert study_from({"seeds": [0, 5]}).seeds == (0, 5)
    assert [seeds_from(text) for text in ("3", "0,5", "7,")] == [3, [0, 5], [7]]
    for text in ("", "a", "1,b", ","):
        with pytest.raises(SpecError, match="neither a count such as 3 nor a list"):
            seeds_from(text)


def test_a_list_of_a_recipe_setting_is_an_axis() -> None:
    study = study_from({"recipe": {"alpha": [1, 3], "batch_size": [4, 8], "epochs": [7]}})
    assert study.axes == {"alpha": (1, 3), "batch_size": (4, 8)}
    assert study.recipe.epochs == 7
    assert [(r.alpha, r.batch_size) for _, r in study.variants] == [
        (1.0, 4),
        (1.0, 8),
        (3.0, 4),
        (3.0, 8),
    ]
    single = study_from({"recipe": {"alpha": [1, 3]}}, {"recipe": {"alpha": 10}})
    assert (single.axes, single.recipe.alpha) == ({}, 10.0)


def names(study: Study) -> list[list[str]]:
    """The cells of each search, searches that share their rates together."""
    return [
        [cell.name for cell in cells] for cells in dict.fromkeys(s.cells for s in study.searches)
    ]


def test_the_default_is_the_published_rates_and_the_thesis_searched_each_backbone() -> None:
    assert study_from().preset == "standard"
    assert study_from().searches == []
    part = {"backbones": ["resnet18", "densenet121"]}
    thesis = study_from(part, preset="thesis")
    assert names(thesis) == [
        [f"{backbone}/baseline/det", f"{backbone}/baseline/seg"] for backbone in part["backbones"]
    ]
    assert {search.trials for search in thesis.searches} == {8}
    assert names(study_from(part, {"lr": {"resnet18": 1e-3}}, preset="thesis")) == [
        ["densenet121/baseline/det", "densenet121/baseline/seg"]
    ]
    given = study_from(part, {"lr": {"*": 1e-3}}, preset="thesis")
    assert (given.lr_search, given.searches) == ("published", [])


def test_a_backbone_without_baselines_is_searched_on_those_of_its_tasks() -> None:
    part = {"backbones": ["resnet18"], "lr_search": "backbone"}
    assert names(study_from(part, {"strategies": ["share"], "tasks": ["seg"]})) == [
        ["resnet18/baseline/seg"]
    ]
    assert names(study_from(part, {"only": ["*/dual"]})) == [
        ["resnet18/baseline/det", "resnet18/baseline/seg"]
    ]


def test_every_cell_can_have_a_search_of_its_own() -> None:
    study = study_from({"backbones": ["resnet18"], "lr_search": "cell"})
    assert names(study) == [[cell.name] for cell in study.cells]
    assert len(study.cells) == 11


def test_lr_search_of_other_cells_searches_those_very_cells() -> None:
    only = {"only": ["mobilenet_v3_large/share-frozen/*"]}
    study = study_from(only, kind="lr-search")
    assert names(study) == [
        ["mobilenet_v3_large/share-frozen/det"],
        ["mobilenet_v3_large/share-frozen/seg"],
    ]
    assert study.cells == []
    swap = study_from({"only": ["resnet18/swap-bias/seg"]}, kind="lr-search", preset="thesis")
    assert [cell.name for cell in swap.cells] == ["resnet18/baseline/det"]
    assert names(study_from({"backbones": ["resnet18"], "lr_search": "cell"}, kind="lr-search"))[
        :2
    ] == [["resnet18/baseline/det"], ["resnet18/baseline/seg"]]
    seeds = study_from(only, {"seeds": 2}, kind="lr-search")
    assert [cell.name for cell in seeds.cells] == [c[0] for c in names(study)]


def test_rates_that_a_preset_lists_give_way_to_proposals_that_are_asked_for() -> None:
    demo = study_from({"search_trials": 3}, preset="demo")
    assert [(search.lrs, search.trials) for search in demo.searches] == [((), 3)]


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
    assert names(study) == [["new/baseline/det", "new/baseline/seg"]]
    told = "'new' has no published.*--lr new=RATE.*--lr-search backbone.*lr-search --backbones new"
    with pytest.raises(SpecError, match=told):
        study.rate("new")
    with pytest.raises(SpecError, match=told):
        Study(kind="full-grid", lr_search="published")


def test_the_study_file_holds_plain_values() -> None:
    values = yaml.safe_load(study_from(kind="full-grid", preset="demo").to_yaml())
    assert values["synthetic_images"] == [64, 16, 32]
    assert values["recipe"]["batch_size"] == PRESETS["demo"].recipe["batch_size"]
