"""Whole deployments: passes, parameters, latencies, INT8 scores, versions and the front."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace as changed
from itertools import product

import pytest

from jetson_agent.protocol import comparison_architecture
from sharedenc.errors import SpecError
from sharedenc.report.collect import RunData, VersionData, study_rows
from sharedenc.report.deployments import (
    Deployment,
    Model,
    Option,
    by_seed,
    deployments,
    memory_front,
    options,
    parameter_front,
)
from sharedenc.report.front import on_front
from sharedenc.report.table_spec import Facts
from tests.report.study import ACCURACY, bench, benches, count, grid, run, versions

BOARD = {"device": "agx-orin-64gb", "backend": "tensorrt", "runtime": "10.3.0"}
WAYS = {
    "baseline": (2, "baseline/seg", "baseline/det"),
    "swap-frozen/seg": (1, "swap-frozen/seg", "baseline/det"),
    "swap-frozen/det": (1, "baseline/seg", "swap-frozen/det"),
    "swap-bias/seg": (2, "swap-bias/seg", "baseline/det"),
    "swap-bias/det": (2, "baseline/seg", "swap-bias/det"),
    "share-frozen": (1, "share-frozen/seg", "share-frozen/det"),
    "share-bias": (2, "share-bias/seg", "share-bias/det"),
    "dual": (1, "dual", "dual"),
}


def facts_of(
    runs: Sequence[RunData] | None = None,
    timed: Sequence[RunData] = (),
    exported: Sequence[VersionData] | None = None,
) -> Facts:
    rows = study_rows(
        "written",
        grid() if runs is None else runs,
        versions() if exported is None else exported,
        timed,
    )
    return Facts.of(rows, count)


def named(facts: Facts) -> dict[str, Deployment]:
    return {deployment.name: deployment for deployment in deployments(facts)}


def option(facts: Facts, name: str, **asked: str) -> Option:
    (found,) = [o for o in options(facts, **asked) if o.deployment.name == name]
    return found


def version(cell: str, graph: str, accuracy: Mapping[str, object], number: int = 1) -> VersionData:
    backbone = cell.split("/")[0]
    return VersionData(
        model=f"voc20-{backbone}-{graph}",
        version=number,
        tags={
            "sharedenc.study": "written",
            "sharedenc.backbone": backbone,
            "sharedenc.graph": graph,
            "sharedenc.cell": cell,
            "sharedenc.architecture": f"{backbone} {graph}",
            "sharedenc.architectures": json.dumps({"model.int8-trt.onnx": f"{graph} trt"}),
            "sharedenc.accuracy": json.dumps(accuracy),
        },
    )


class TestDeployments:
    def test_a_full_grid_has_eight_per_backbone_with_their_passes_and_cells(self) -> None:
        found = named(facts_of())
        assert len(found) == 4 * 8
        for name, (passes, seg, det) in WAYS.items():
            whole = found[f"resnet18/{name}"]
            assert whole.passes == passes, name
            assert whole.graphs == (("dual",) if passes == 1 else ("seg", "det")), name
            assert dict(whole.cells) == {"seg": f"resnet18/{seg}", "det": f"resnet18/{det}"}

    def test_scores_are_those_of_each_task_cell(self) -> None:
        """Baselines: mIoU 0.5, mAP 0.2; a head on a swapped frozen encoder has 0.8 of that."""
        found = named(facts_of())
        seg, det = found["resnet18/swap-frozen/seg"], found["resnet18/swap-frozen/det"]
        assert (seg.mIoU.value, seg.mAP.value) == pytest.approx((0.4, 0.2))
        assert (det.mIoU.value, det.mAP.value) == pytest.approx((0.5, 0.16))

    def test_scores_are_over_seeds(self) -> None:
        runs = [
            run("resnet18", "dual", seed=seed, factor=factor)
            for seed, factor in ((0, 1.0), (1, 1.2))
        ]
        (dual,) = deployments(facts_of(runs))
        assert (dual.mIoU.value, dual.mIoU.runs) == (pytest.approx(0.55), 2)
        assert dual.mIoU.sd == pytest.approx(0.1 / 2**0.5)
        assert by_seed(facts_of(runs), dual, "mAP") == pytest.approx({0: 0.2, 1: 0.24})

    def test_parameters_count_what_is_shared_once(self) -> None:
        """Trials have seg 11 M, det 12 M, dual 12.5 M, of which 10 M are the encoder.

        Two networks: 23 M. One encoder, two heads: 11 + 12 - 10 = 13 M. A pair stores the
        encoder's 5,000 biases once more: 13.005 M.
        """
        found = named(facts_of())
        sizes = {name: found[f"resnet18/{name}"].parameters.value for name in WAYS}
        assert sizes == {
            "baseline": 23.0,
            "swap-frozen/seg": 13.0,
            "swap-frozen/det": 13.0,
            "swap-bias/seg": 13.005,
            "swap-bias/det": 13.005,
            "share-frozen": 13.0,
            "share-bias": 13.005,
            "dual": 12.5,
        }

    def test_parameters_are_counted_where_no_trial_has_them(self) -> None:
        """The counter: encoder 10, seg 11, det 12 million, each and 21 classes more."""
        runs = [run("resnet18", "share", "frozen", t, state="waiting") for t in ("seg", "det")]
        runs += [run("resnet18", "dual", state="failed", reason="out of memory")]
        found = named(facts_of(runs))
        assert found["resnet18/share-frozen"].parameters.value == pytest.approx(13.000021)
        assert found["resnet18/dual"].parameters.value == pytest.approx(13.000021)
        assert found["resnet18/dual"].mIoU.why == "failed: out of memory"

    def test_a_backbone_that_cannot_be_counted_says_why(self) -> None:
        def refuses(backbone: str, graph: str, num_classes: int) -> int:
            raise SpecError(f"no backbone {backbone!r}")

        facts = facts_of([run("resnet18", "dual", state="failed")])
        (dual,) = deployments(Facts(facts.rows, facts.scores, refuses))
        assert dual.parameters.why == "not counted: no backbone 'resnet18'"

    def test_a_plugin_freeze_mode_needs_two_passes_and_stores_what_it_trains(self) -> None:
        """Of 11 M (1 M of them the head's) 1.25 M train: 0.25 M of the encoder. 13 + 0.25."""
        runs = [
            run("resnet18", strategy, freeze, task, factor=1.0)
            for strategy, freeze in (("baseline", "none"), ("share", "norms"), ("swap", "norms"))
            for task in ("seg", "det")
        ]
        runs = [
            changed(
                r, metrics={**r.metrics, "params/trainable": 1.25e6 + 1e6 * r.name.count("det")}
            )
            if "norms" in r.name
            else r
            for r in runs
        ]
        found = named(facts_of(runs))
        assert set(found) == {
            f"resnet18/{name}"
            for name in ("baseline", "share-norms", "swap-norms/seg", "swap-norms/det")
        }
        share = found["resnet18/share-norms"]
        assert (share.passes, share.graphs) == (2, ("seg", "det"))
        assert share.parameters.value == pytest.approx(13.25)
        assert found["resnet18/swap-norms/det"].parameters.value == pytest.approx(13.25)

    def test_a_freeze_mode_that_says_nothing_of_what_it_trains_counts_as_two_networks(self) -> None:
        runs = [run("resnet18", "share", "norms", task, factor=1.0) for task in ("seg", "det")]
        (share,) = deployments(facts_of(runs))
        assert share.parameters.value == pytest.approx(23.0)
        assert share.parameters.mark.startswith("two encoders")

    def test_running_statistics_that_moved_are_no_shared_encoder(self) -> None:
        runs = [
            run("resnet18", "share", "frozen", task, recipe={"recipe.bn_mode": mode})
            for task, mode in (("seg", "train"), ("det", "train"))
        ]
        (share,) = deployments(facts_of(runs))
        assert (share.passes, share.graphs) == (2, ("seg", "det"))
        assert share.parameters.value == pytest.approx(13.0)

    def test_what_was_not_asked_for_is_no_deployment(self) -> None:
        runs = [run("resnet18", "share", "frozen", "seg")]
        (share,) = deployments(facts_of(runs))
        assert share.name == "resnet18/share-frozen"
        assert share.mAP.why == "not in this study"

    def test_the_front_of_accuracy_against_parameters(self) -> None:
        """Dual has the fewest parameters and the highest scores of the fake study."""
        found = deployments(facts_of([r for r in grid() if r.name.startswith("resnet18/")]))
        assert [d.name for d in parameter_front(found)] == ["resnet18/dual"]
        without = [d for d in found if d.strategy != "dual"]
        # Frozen: 13 M with (0.4, 0.2), (0.5, 0.16), (0.375, 0.15). Bias: 13.005 M with
        # (0.45, 0.2), (0.5, 0.18), (0.475, 0.19). Baseline: 23 M with (0.5, 0.2).
        assert {d.name.removeprefix("resnet18/") for d in parameter_front(without)} == {
            "swap-frozen/seg",
            "swap-frozen/det",
            "swap-bias/seg",
            "swap-bias/det",
            "share-bias",
            "baseline",
        }


class TestLatency:
    def test_two_passes_take_the_sum_and_one_takes_dual(self) -> None:
        facts = facts_of(timed=benches())
        for name, (passes, _, _) in WAYS.items():
            found = option(facts, f"resnet18/{name}").latency
            assert (found.value, found.mark) == ((6.0, "") if passes == 1 else (10.0, "")), name

    def test_a_sum_is_exact_to_the_nanosecond(self) -> None:
        timed = [bench("resnet18 seg", 3.245), bench("resnet18 det", 3.318)]
        found = option(facts_of(timed=timed), "resnet18/baseline").latency.value
        assert found == 6.563
        assert 3.245 + 3.318 != 6.563  # what it guards against

    def test_the_run_that_timed_both_counts_for_the_median_alone(self) -> None:
        pair = comparison_architecture([f"resnet18 {graph}" for graph in ("seg", "det", "dual")])
        timed = [
            *(
                bench(f"resnet18 {graph}", ms, **BOARD, **{"latency_ms/p99": 2 * ms})
                for graph, ms in (("seg", 4.0), ("det", 6.0), ("dual", 7.0))
            ),
            bench(pair, 7.1, **BOARD, **{"pair_ms/p50": 10.4}),
        ]
        facts = facts_of(timed=timed)
        median = option(facts, "resnet18/baseline", stat="p50-stream").latency
        assert (median.value, median.mark) == (10.4, "both networks in one run")
        assert option(facts, "resnet18/baseline", stat="p99-stream").latency.value == 20.0
        assert option(facts, "resnet18/dual", stat="p50-stream").latency.value == 7.0

    @pytest.mark.parametrize(("seg", "expected"), [("valid", 10.0), ("suspect", 10.4)])
    def test_a_doubtful_run_of_both_gives_way_to_a_clean_sum(
        self, seg: str, expected: float
    ) -> None:
        pair = comparison_architecture([f"resnet18 {graph}" for graph in ("seg", "det", "dual")])
        timed = [
            bench("resnet18 seg", 4.0, verdict=seg, reasons="busy" if seg != "valid" else ""),
            bench("resnet18 det", 6.0),
            bench("resnet18 dual", 7.0),
            bench(pair, 7.1, verdict="suspect", reasons="hot", **{"pair_ms/p50": 10.4}),
        ]
        found = option(facts_of(timed=timed), "resnet18/baseline").latency
        assert found.value == expected
        assert ("suspect: hot" in found.mark) == (expected == 10.4)

    def test_a_suspect_timing_is_marked_and_a_wrong_one_is_none(self) -> None:
        timed = [
            bench("resnet18 seg", 4.0, verdict="suspect", reasons="clocks floated"),
            bench("resnet18 det", 6.0),
            bench("resnet18 dual", 7.0, verdict="wrong", reasons="outputs differ"),
        ]
        facts = facts_of(timed=timed)
        assert option(facts, "resnet18/baseline").latency.mark == "suspect: clocks floated"
        dual = option(facts, "resnet18/dual").latency
        assert (dual.value, dual.why) == (None, "wrong: dual, outputs differ")

    def test_what_is_missing_says_why(self) -> None:
        timed = [bench("resnet18 dual", 7.0), bench("resnet18 seg", 4.0)]
        facts = facts_of(timed=timed)
        assert option(facts, "resnet18/baseline").latency.why == "not timed yet: det"
        exported = [v for v in versions() if v.tags["sharedenc.graph"] != "det"]
        facts = facts_of(timed=timed, exported=exported)
        assert option(facts, "resnet18/baseline").latency.why == "not exported: det"
        few = option(facts, "resnet18/dual", stat="p99-stream").latency
        assert few.why == "no p99: too few queries of dual were timed"

    def test_the_statistic_that_is_shown_is_p99_of_single_queries_where_timed(self) -> None:
        stream = bench("resnet18 dual", 6.0, **{"latency_ms/p99": 9.0})
        single = bench("resnet18 dual", 4.0, load="single", **{"latency_ms/p99": 5.0})
        few = bench("resnet18 dual", 4.0, load="single")
        for timed, stat, expected in (
            ([stream, single], "p99-single", 5.0),
            ([stream, few], "p50-stream", 6.0),
            ([few], "p50-single", 4.0),
        ):
            found = option(facts_of(timed=timed), "resnet18/dual")
            assert (found.stat, found.latency.value) == (stat, expected)

    def test_options_are_those_that_were_asked_for(self) -> None:
        timed = [
            *benches(),
            bench("resnet18 dual", 3.0, **BOARD),
            bench("resnet18 dual trt", 1.5, precision="int8", **BOARD),
        ]
        facts = facts_of(timed=timed)
        assert [(o.device, o.precision) for o in options(facts)][:: 4 * 8] == [
            ("agx-orin-64gb", "fp32"),
            ("agx-orin-64gb", "int8"),
            ("desk", "fp32"),
        ]
        only = options(facts, device="agx-orin-64gb", precision="int8", mode="2 threads")
        assert len(only) == 4 * 8
        assert options(facts, mode="MAXN") == []
        assert options(facts_of()) == []

    @pytest.mark.parametrize("stat", ["p98-single", "p99", "p99-burst", "99"])
    def test_no_statistic(self, stat: str) -> None:
        with pytest.raises(SpecError, match=r"p50, p90, p95, p99, mean, min, max.*stream, single"):
            options(facts_of(timed=benches()), stat=stat)


class TestInt8:
    @staticmethod
    def timed(precision: str = "int8", **where: str) -> list[RunData]:
        names = ("seg", "det", "dual")
        end = " trt" if precision == "int8" else ""
        return [
            bench(f"resnet18 {name}{end}", 2.0, precision=precision, **{**BOARD, **where})
            for name in names
        ]

    def test_the_file_says_what_of_the_score_over_seeds_is_kept(self) -> None:
        """Dual over two seeds: mIoU 0.55, of which the file keeps 49/50; mAP 0.22, 22/25."""
        runs = [
            run("resnet18", "dual", seed=seed, factor=factor)
            for seed, factor in ((0, 1.0), (1, 1.2))
        ]
        found = option(facts_of(runs, self.timed()), "resnet18/dual")
        assert found.mIoU.value == pytest.approx(0.55 * 0.98)
        assert found.mIoU.sd == pytest.approx(0.98 * 0.1 / 2**0.5)
        assert found.mAP.value == pytest.approx(0.1936)
        assert (found.drop_mIoU.value, found.drop_mAP.value) == pytest.approx((-2.0, -12.0))
        assert found.mIoU.mark == found.mAP.mark == ""
        assert found.deployment.mIoU.value == pytest.approx(0.55)

    def test_with_one_seed_on_the_same_photos_it_is_the_file_s_own_score(self) -> None:
        """The trial scores what the float file does (0.5, 0.25), so INT8 has 0.49 and 0.22."""
        whole = run("resnet18", "dual")
        whole = changed(whole, metrics={**whole.metrics, "test/mIoU": 0.5, "test/mAP": 0.25})
        found = option(facts_of([whole], self.timed()), "resnet18/dual")
        assert (found.mIoU.value, found.mAP.value) == pytest.approx((0.49, 0.22))

    def test_each_tool_has_a_file_of_its_own(self) -> None:
        timed = [bench("resnet18 dual cpu", 9.0, precision="int8", backend="onnxruntime")]
        found = option(facts_of(timed=timed), "resnet18/dual")
        assert found.drop_mIoU.value == pytest.approx(-1.0)  # 0.495 of 0.5
        assert found.drop_mAP.value is None
        assert found.mAP.mark.startswith("INT8 accuracy not measured: voc20-resnet18-dual version")

    def test_a_pair_has_the_score_of_each_file_and_an_assembled_one_its_own(self) -> None:
        seg: dict[str, object] = {"float": {"mIoU": 0.4}, "int8-trt": {"mIoU": 0.3}}
        det: dict[str, object] = {"float": {"mAP": 0.2}, "int8-trt": {"mAP": 0.19}}
        exported = [
            version("resnet18/baseline/seg", "seg", seg),
            version("resnet18/baseline/det", "det", det),
            version("resnet18/share-frozen", "dual", ACCURACY, 4),
            # A cell's own export, under the name that its deployment has too.
            version("resnet18/swap-frozen/seg", "seg", seg, 2),
        ]
        timed = [
            bench("seg trt", 2.0, precision="int8", **BOARD),
            bench("dual trt", 3.0, precision="int8", **BOARD),
        ]
        facts = facts_of(timed=timed, exported=exported)
        pair = option(facts, "resnet18/baseline")
        assert (pair.drop_mIoU.value, pair.drop_mAP.value) == pytest.approx((-25.0, -5.0))
        assert pair.models == (
            Model(model="voc20-resnet18-seg", version=1),
            Model(model="voc20-resnet18-det", version=1),
        )
        one = option(facts, "resnet18/share-frozen")
        assert (one.drop_mIoU.value, one.drop_mAP.value) == pytest.approx((-2.0, -12.0))
        assert one.models == (Model(model="voc20-resnet18-dual", version=4),)
        swap = option(facts, "resnet18/swap-frozen/seg")
        assert swap.models == ()
        assert swap.mIoU.mark == "INT8 accuracy not measured: not exported"
        assert swap.mIoU.value == pytest.approx(0.4)
        half = option(facts, "resnet18/swap-bias/det")
        assert half.models == ()
        assert half.drop_mIoU.value == pytest.approx(-25.0)
        assert half.drop_mAP.value is None

    def test_a_file_that_scores_nothing_in_float_says_nothing(self) -> None:
        dead: dict[str, object] = {"float": {"mIoU": 0.0}, "int8-trt": {"mIoU": 0.1}}
        facts = facts_of(
            timed=[bench("dual trt", 2.0, precision="int8", **BOARD)],
            exported=[version("resnet18/dual", "dual", dead)],
        )
        found = option(facts, "resnet18/dual")
        assert found.mIoU.mark == "INT8 accuracy not measured: the float file scores 0"
        assert found.mIoU.value == pytest.approx(0.55)

    def test_what_has_no_scales_has_no_accuracy(self) -> None:
        found = option(facts_of(timed=self.timed("int8-unscaled")), "resnet18/dual")
        assert found.mAP.mark.startswith("INT8 accuracy not measured: int8-unscaled")
        assert found.drop_mAP.value is None

    def test_floats_need_no_file(self) -> None:
        facts = facts_of(timed=[*self.timed("fp32"), *self.timed("fp16")])
        exact = option(facts, "resnet18/dual", precision="fp32")
        assert (exact.mAP.mark, exact.drop_mAP.why) == ("", "no INT8 file")
        half = option(facts, "resnet18/dual", precision="fp16")
        assert half.mAP.mark == "FP16 accuracy not measured"


class TestFront:
    def test_of_points_worked_by_hand(self) -> None:
        points = [(1.0, 5.0), (2.0, 4.0), (2.0, 5.0), (3.0, 4.0), (4.0, 1.0), (1.0, 5.0)]
        assert on_front(points) == [True, True, False, False, True, True]
        assert on_front([]) == []

    def test_it_is_what_no_other_point_dominates(self) -> None:
        """Against the definition, on every triple of small whole numbers, some doubled."""
        points = [*product((0, 1, 2), repeat=3), (0, 1, 2), (2, 2, 2)][3:]
        by_definition = [
            not any(q != p and all(a <= b for a, b in zip(q, p, strict=True)) for q in points)
            for p in points
        ]
        assert on_front(points) == by_definition
        assert 0 < sum(by_definition) < len(points)

    def test_options_are_compared_within_their_setup(self) -> None:
        """Dual is the fastest and the best of each backbone, and the other backbones' equal."""
        slow = [bench(f"resnet18 {g}", 60.0, device="slow") for g in ("seg", "det", "dual")]
        found = options(facts_of(timed=[*benches(), *slow]))
        best = {(o.device, o.deployment.name) for o in found if o.on_front}
        assert best == {
            ("slow", "resnet18/dual"),
            *(
                ("desk", f"{b}/dual")
                for b in ("resnet18", "mobilenet_v3_large", "efficientnet_v2_s", "densenet121")
            ),
        }


def test_memory_is_that_of_all_engines_that_stay_loaded() -> None:
    """Engine and context: seg 8 + 2, det 9 + 3, dual 10 + 4 MiB."""
    told = {"seg": (8.0, 2.0), "det": (9.0, 3.0), "dual": (10.0, 4.0)}
    timed = [
        bench(f"resnet18 {graph}", 5.0, **BOARD, engine_mib=engine, context_mib=context)
        for graph, (engine, context) in told.items()
    ]
    facts = facts_of(timed=[*timed, bench("densenet121 dual", 5.0, **BOARD), *benches()])
    board = {"device": "agx-orin-64gb"}
    assert option(facts, "resnet18/baseline", **board).memory.value == 22.0
    assert option(facts, "resnet18/share-frozen", **board).memory.value == 14.0
    assert option(facts, "resnet18/share-bias", **board).memory.value == 22.0
    assert option(facts, "densenet121/dual", **board).memory.why == "tensorrt 10 does not tell it"
    assert option(facts, "densenet121/baseline", **board).memory.why == "not timed yet: seg"
    other = option(facts, "resnet18/dual", device="desk").memory
    assert other.why == "onnxruntime does not tell it"
    front = memory_front(options(facts, **board))
    # Dual has the highest scores of its graph's 14 MiB, and nothing needs less.
    assert [found.deployment.name for found in front] == ["resnet18/dual"]
