"""Which part of a key differs, and from which finished trial."""

from __future__ import annotations

import json
from typing import Any

from sharedenc.tracking import RunRecord
from sweeps.differences import content_of, differences, flat, nearest, told

NOW = {
    "cell": "resnet18/dual",
    "recipe": {"epochs": 24, "alpha": 6.0, "augment": True},
    "lr": 0.0002,
    "seed": 0,
    "data": "d" * 64,
    "weights": "w" * 64,
    "components": {"data": 1},
}


def run(content: dict[str, Any] | None = None, **values: Any) -> RunRecord:
    tags = {} if content is None else {"sharedenc.content": json.dumps(content)}
    return RunRecord("id", "", tags | values.pop("tags", {}), values, {}, "FINISHED", 0, 0)


def test_each_part_is_named_with_what_it_was_and_is() -> None:
    had = NOW | {"recipe": {"epochs": 12, "alpha": 6.0}, "parent": "p" * 64}
    found = differences(flat(had), flat(NOW))
    assert [str(part) for part in found] == [
        "parent pppppppppppp -> none",
        "recipe.augment none -> True",
        "recipe.epochs 12 -> 24",
    ]


def test_many_differences_are_counted() -> None:
    had = NOW | {"recipe": {f"p{n}": n for n in range(5)}}
    assert told(differences(flat(had), flat(NOW))).endswith(" and 4 more")
    assert "another version" in told([])


def test_the_nearest_finished_trial_is_compared_with() -> None:
    other_data = run(NOW | {"data": "e" * 64})
    two_settings = run(NOW | {"lr": 0.1, "seed": 3})
    one_setting = run(NOW | {"seed": 5})
    now = flat(NOW)
    found = nearest(now, [other_data, two_settings, one_setting])
    assert found is not None
    assert told(found) == "seed 5 -> 0"
    found = nearest(now, [other_data, two_settings])
    assert found is not None
    assert told(found) == "lr 0.1 -> 0.0002, seed 3 -> 0"
    assert nearest(now, []) is None


def test_a_run_without_the_tag_is_compared_by_its_params() -> None:
    params = {"recipe.epochs": "12", "recipe.alpha": "6.0", "recipe.augment": "True"}
    params |= {"lr": "0.0002", "seed": "0", "weights": "w" * 64}
    tags = {"sharedenc.cell": "resnet18/dual", "sharedenc.data_digest": "d" * 64}
    old = run(tags=tags, **params)
    now = flat(NOW)
    assert told(differences(content_of(old, now), now)) == "recipe.epochs 12 -> 24"
