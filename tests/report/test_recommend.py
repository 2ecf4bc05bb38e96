"""What to deploy, on the published numbers by hand and on studies made for one question each.

The published numbers: Table A.1 for scores, A.2 for latencies (p50, two queries in flight), 4.4,
4.5 and 5.1 for parameters. What serves both tasks in two passes takes the sum of segmentation and
detection, in one pass the dual-head time, in ms:

=================== ==================================== ======================================
backbone            fp32: two passes, one                int8: two passes, one
=================== ==================================== ======================================
ResNet18            5.429 + 5.564 = 10.993, 6.684        2.186 + 2.177 = 4.363, 3.280
MobileNetV3-Large   5.494 + 5.524 = 11.018, 6.998        3.245 + 3.318 = 6.563, 4.437
EfficientNetV2-S    17.720 + 18.019 = 35.739, 19.311     7.936 + 7.976 = 15.912, 9.008
DenseNet121         22.370 + 22.395 = 44.765, 23.831     10.221 + 10.362 = 20.583, 11.454
=================== ==================================== ======================================

The best scores of all deployments are those of EfficientNetV2-S dual: mIoU 0.6452, mAP 0.3437.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace as changed
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
from click.testing import CliRunner

from jetson_agent.protocol import comparison_architecture
from sharedenc.cli.recommend import lines
from sharedenc.cli.recommend import recommend as command
from sharedenc.errors import SharedencError, SpecError
from sharedenc.report.collect import RunData, StudyRows, TrialRow, study_rows
from sharedenc.report.deployments import deployments
from sharedenc.report.recommend import (
    NoDeploymentFits,
    Prefer,
    Recommendation,
    Request,
    recommend,
)
from sharedenc.report.table_spec import ENCODER_BIASES, Facts
from sharedenc.report.thesis import published_facts
from tests.report.study import bench, count, run, versions

# Exact: every parameter of the torchvision encoders whose name ends in .bias.
BIASES = {
    "resnet18": 4_800,
    "mobilenet_v3_large": 17_280,
    "efficientnet_v2_s": 112_128,
    "densenet121": 41_824,
}
PAIR = "resnet18/dual", "mobilenet_v3_large/dual"


def biases(backbone: str, graph: str, num_classes: int) -> int:
    assert graph == ENCODER_BIASES, "everything else is published"
    return BIASES[backbone]


def published(**asked: Any) -> Recommendation:
    return recommend(published_facts(biases), Request(**asked))


def names(found: Recommendation) -> tuple[str, str | None]:
    runner_up = found.runner_up
    return found.choice.deployment.name, runner_up.deployment.name if runner_up else None


def without(keep: Callable[[TrialRow], bool]) -> Facts:
    """The published numbers with the trials that are kept."""
    facts = published_facts(biases)
    rows = changed(facts.rows, final=tuple(row for row in facts.rows.final if keep(row)))
    return Facts.of(rows, biases)


def test_a_deployment_is_named_and_cut_as_it_is_exported() -> None:
    """What is recommended is exported by the same name, as the same graphs of the same cells."""
    from sharedenc.export.deployment import deployments_of

    exported = {
        whole.name: (set(whole.graphs), {str(cell) for cell in whole.cells.values()})
        for whole in deployments_of("resnet18")
    }
    mine = [d for d in deployments(published_facts(biases)) if d.backbone == "resnet18"]
    assert len(mine) == 8
    for whole in mine:
        assert exported[whole.name] == (
            set(whole.graphs),
            set(whole.cells.values()),
        ), whole.name


class TestPublishedNumbers:
    def test_int8_within_8_ms(self) -> None:
        """ResNet18 (3.280, 4.363) and MobileNetV3-Large (4.437, 6.563) keep 8 ms in all ways.

        ResNet18 dual: (0.5621/0.6452 + 0.2822/0.3437) / 2 = (0.87120 + 0.82107) / 2 = 0.84613
        MobileNetV3-Large dual: (0.5613/0.6452 + 0.2737/0.3437) / 2 = 0.83315
        MobileNetV3-Large baseline: (0.5545/0.6452 + 0.2597/0.3437) / 2 = 0.80751
        Against EfficientNetV2-S dual (9.008 ms): 0.5621/0.6452 = -12.88 %,
        0.2822/0.3437 = -17.89 %.
        """
        found = published(precision="int8", max_latency_ms=8)
        assert names(found) == PAIR
        assert found.choice.latency.value == 3.28
        assert (found.choice.mIoU.value, found.choice.mAP.value) == (0.5621, 0.2822)
        cost = found.cost_against_best
        assert cost.best.deployment.name == "efficientnet_v2_s/dual"
        assert (cost.mIoU, cost.mAP) == pytest.approx((-12.8797, -17.8935), abs=1e-4)
        why = {row.deployment: row.why for row in found.rejected}
        assert why["efficientnet_v2_s/dual"] == "9.008 ms is over 8 ms"
        assert why["mobilenet_v3_large/baseline"].startswith("fits, but has 0.8075 where")
        assert len(why) == 4 * 8 - 2
        assert "of the 16 deployments with at most 8 ms (32 in all)" in found.why

    def test_int8_within_9_01_ms_the_best_of_all_fits(self) -> None:
        """EfficientNetV2-S in one pass takes 9.008 ms: just over 9, within 9.01.

        Next to its dual: the frozen detector with a segmentation head,
        (0.5663/0.6452 + 0.3142/0.3437) / 2 = (0.87771 + 0.91417) / 2 = 0.89594, before
        ResNet18 dual with 0.84613.
        """
        found = published(precision="int8", max_latency_ms=9.01)
        assert names(found) == ("efficientnet_v2_s/dual", "efficientnet_v2_s/swap-frozen/seg")
        assert (found.cost_against_best.mIoU, found.cost_against_best.mAP) == (0.0, 0.0)
        assert names(published(precision="int8", max_latency_ms=9)) == PAIR

    def test_fp32_within_7_ms(self) -> None:
        """Two networks take 10.993 ms at least; in one pass ResNet18 6.684, MobileNet 6.998.

        So eight fit: four one-pass deployments of either.
        """
        found = published(precision="fp32", max_latency_ms=7)
        assert names(found) == PAIR
        assert "of the 8 deployments" in found.why

    def test_fp32_within_6_9_ms_frozen_encoders_count_at_the_dual_latency(self) -> None:
        """ResNet18 alone, in one pass, 6.684 ms whether dual, shared or swapped.

        dual 0.84613;
        swap-frozen/seg: (0.4358/0.6452 + 0.2403/0.3437) / 2 = (0.67545 + 0.69916) / 2 = 0.68730;
        swap-frozen/det: (0.5103/0.6452 + 0.1970/0.3437) / 2 = (0.79092 + 0.57317) / 2 = 0.68205;
        share-frozen: (0.4340/0.6452 + 0.1840/0.3437) / 2 = (0.67266 + 0.53535) / 2 = 0.60400.
        """
        found = published(precision="fp32", max_latency_ms=6.9)
        assert names(found) == ("resnet18/dual", "resnet18/swap-frozen/seg")
        fits = [row.deployment for row in found.rejected if row.why.startswith("fits")]
        assert fits == ["resnet18/swap-frozen/det", "resnet18/share-frozen"]
        assert found.runner_up is not None
        assert (found.runner_up.latency.value, found.runner_up.deployment.passes) == (6.684, 1)

    def test_two_passes_take_the_sum(self) -> None:
        """ResNet18 in INT8: 2.186 + 2.177 = 4.363 ms, at the limit and just over it."""
        at = published(precision="int8", max_latency_ms=4.363)
        assert names(at) == ("resnet18/dual", "resnet18/baseline")
        assert at.runner_up is not None
        assert (at.runner_up.latency.value, at.runner_up.deployment.passes) == (4.363, 2)
        below = published(precision="int8", max_latency_ms=4.362)
        why = {row.deployment: row.why for row in below.rejected}
        for name in ("baseline", "share-bias", "swap-bias/seg", "swap-bias/det"):
            assert why[f"resnet18/{name}"] == "4.363 ms is over 4.362 ms"

    def test_a_least_map(self) -> None:
        """mAP of at least 0.3 have EfficientNetV2-S dual (0.3437), the two of its own detector in
        two passes (0.3142; with both baselines, and a bias-adapted segmentation), the frozen
        detector (0.3142), and DenseNet121 dual (0.3160): five.

        DenseNet121 dual: (0.6097/0.6452 + 0.3160/0.3437) / 2 = (0.94498 + 0.91941) / 2 = 0.93219;
        EfficientNetV2-S baseline: (0.6101/0.6452 + 0.3142/0.3437) / 2 = 0.92988.
        """
        found = published(precision="int8", min_mAP=0.3)
        assert names(found) == ("efficientnet_v2_s/dual", "densenet121/dual")
        assert "of the 5 deployments with mAP of at least 0.3" in found.why
        why = {row.deployment: row.why for row in found.rejected}
        assert why["densenet121/baseline"] == "mAP 0.2878 is below 0.3"

    def test_a_least_map_beyond_the_latency_says_what_it_needs(self) -> None:
        """Within mAP 0.3 the fastest take 9.008 ms, of which the dual network is the best."""
        with pytest.raises(NoDeploymentFits) as error:
            published(precision="int8", max_latency_ms=8, min_mAP=0.3)
        assert str(error.value).endswith(
            "has at most 8 ms, mAP of at least 0.3. Within the other limits the fastest is "
            "efficientnet_v2_s/dual, which needs 9.008 ms."
        )
        assert error.value.exit_code == 10

    def test_an_impossible_latency_names_the_fastest(self) -> None:
        """In INT8 ResNet18 in one pass is the fastest, 3.280 ms; of its four the dual is best."""
        with pytest.raises(NoDeploymentFits, match=r"fastest is resnet18/dual at 3\.280 ms"):
            published(precision="int8", max_latency_ms=3)

    def test_impossible_scores_name_the_highest(self) -> None:
        with pytest.raises(NoDeploymentFits) as error:
            published(precision="fp32", min_mAP=0.4, min_mIoU=0.7)
        assert "The highest mIoU is 0.6452 (efficientnet_v2_s/dual)." in str(error.value)
        assert "The highest mAP is 0.3437 (efficientnet_v2_s/dual)." in str(error.value)

    def test_a_limit_of_parameters(self) -> None:
        """MobileNetV3-Large: 3.22 + 4.03 = 7.25 M as two networks; with one encoder 7.25 - 2.97 =
        4.28 M; a bias pair has 17,280 more, 4.29728 M.

        Within 4.28 M: dual 0.83315;
        swap-frozen/seg: (0.4649/0.6452 + 0.2597/0.3437) / 2 = (0.72055 + 0.75560) / 2 = 0.73808;
        swap-frozen/det: (0.5545/0.6452 + 0.2035/0.3437) / 2 = (0.85942 + 0.59209) / 2 = 0.72575;
        share-frozen: (0.4956/0.6452 + 0.1890/0.3437) / 2 = (0.76813 + 0.54990) / 2 = 0.65902.
        """
        found = published(precision="fp32", max_parameters_m=4.28)
        assert names(found) == ("mobilenet_v3_large/dual", "mobilenet_v3_large/swap-frozen/seg")
        why = {row.deployment: row.why for row in found.rejected}
        assert sum(text.startswith("fits") for text in why.values()) == 2
        assert why["mobilenet_v3_large/share-bias"] == "4.30 million parameters are over 4.28"
        with pytest.raises(
            NoDeploymentFits, match=r"smallest is mobilenet_v3_large/dual with 4\.28 million"
        ):
            published(precision="fp32", max_parameters_m=4)

    def test_a_limit_of_parameters_between_the_backbones(self) -> None:
        """20 M leave out EfficientNetV2-S (21.75 at least) and two ResNet18 (23.28).

        DenseNet121 dual (8.37 M) 0.93219; its baselines (15.32 M):
        (0.5940/0.6452 + 0.2878/0.3437) / 2 = (0.92064 + 0.83736) / 2 = 0.87900, before ResNet18
        dual with 0.84613.
        """
        found = published(precision="int8", max_parameters_m=20)
        assert names(found) == ("densenet121/dual", "densenet121/baseline")

    def test_to_prefer_one_task(self) -> None:
        """Highest mIoU: EfficientNetV2-S dual 0.6452, then 0.6101 of its own segmentation network
        three times: beside its detector (mAP 0.3142), beside a frozen copy (0.2252) and beside a
        bias-adapted copy (0.2548). The other task decides. DenseNet121 dual has 0.6097.

        Within 10 ms of the three only the frozen one is left (9.008 ms).
        Highest mAP within 10 ms: 0.3437, then 0.3142 of the frozen detector.
        """
        whole = published(precision="int8", prefer="mIoU")
        assert names(whole) == ("efficientnet_v2_s/dual", "efficientnet_v2_s/baseline")
        asked: dict[str, Any] = {"precision": "int8", "max_latency_ms": 10}
        frozen = "efficientnet_v2_s/swap-frozen"
        assert names(published(**asked, prefer="mIoU"))[1] == f"{frozen}/det"
        assert names(published(**asked, prefer="mAP"))[1] == f"{frozen}/seg"

    def test_of_equals_the_faster_one_and_then_the_smaller_one(self) -> None:
        """Without dual and share, and with the same mAP for both copies of ResNet18's
        segmentation network (0.1967), the frozen one (one pass, 3.280 ms) goes before the
        bias-adapted one (4.363 ms). In one pass they would be told by parameters.
        """
        facts = without(
            lambda row: row.backbone == "resnet18" and row.strategy not in ("dual", "share")
        )
        final = tuple(
            changed(row, metrics={**row.metrics, "test/mAP": 0.1967})
            if row.cell == "resnet18/swap-frozen/det"
            else row
            for row in facts.rows.final
        )
        rows = changed(facts.rows, final=final)
        found = recommend(
            Facts.of(rows, biases),
            Request(precision="int8", min_mIoU=0.5, prefer="mIoU"),
        )
        order = [*names(found), *(row.deployment for row in found.rejected)]
        assert order[:3] == [
            "resnet18/baseline",
            "resnet18/swap-frozen/det",
            "resnet18/swap-bias/det",
        ]

    def test_of_equals_the_faster_one_even_if_it_is_larger(self) -> None:
        """MobileNetV3-Large dual (4.437 ms, 4.28 M) given the scores of ResNet18 dual (3.280 ms,
        12.10 M)."""
        facts = without(lambda row: row.strategy == "dual")
        (like,) = [row for row in facts.rows.final if row.cell == "resnet18/dual"]
        scores = {name: v for name, v in like.metrics.items() if name.startswith("test/")}
        final = tuple(
            changed(row, metrics={**row.metrics, **scores})
            if row.cell == "mobilenet_v3_large/dual"
            else row
            for row in facts.rows.final
        )
        rows = changed(facts.rows, final=final)
        asked = Request(precision="int8", max_latency_ms=8)
        assert names(recommend(Facts.of(rows, biases), asked)) == PAIR

    def test_limits_are_kept_by_what_just_reaches_them(self) -> None:
        found = published(
            precision="int8",
            max_latency_ms=3.28,
            min_mAP=0.2822,
            min_mIoU=0.5621,
            max_parameters_m=12.1,
        )
        assert names(found) == ("resnet18/dual", None)

    def test_it_says_that_nobody_knows_how_accurate_int8_was(self) -> None:
        found = published(precision="int8", max_latency_ms=8)
        assert found.confidence.level == "low"
        assert found.confidence.reasons[0].startswith("mIoU and mAP: INT8 accuracy not measured")
        assert any("one seed: not tested" in reason for reason in found.confidence.reasons)
        assert found.constraints["precision"] == "int8-unscaled"
        assert found.notes[0].startswith("int8 means int8-unscaled here")
        assert found.notes[1] == "p50-stream is the one published; p99-single is not known"
        exact = published(precision="fp32", max_latency_ms=8)
        assert exact.confidence.level == "medium"
        assert exact.confidence.reasons == (
            "one seed: not tested whether it is better than mobilenet_v3_large/dual",
            "1.32 ms below the limit; how far runs lie apart is not known",
        )

    def test_a_margin_so_small_is_in_doubt_where_nobody_knows_the_runs(self) -> None:
        # 6.684 ms in FP32; 5 % of that are 0.334 ms.
        close = published(precision="fp32", max_latency_ms=6.99).confidence
        assert close.level == "low"
        assert close.reasons[-1].startswith("only 0.306 ms below the limit; how far runs")
        assert published(precision="fp32", max_latency_ms=7.03).confidence.level == "medium"

    @pytest.mark.parametrize(
        "device", ["orin-nano", "AGX Orin", "agx orin as orin nano 8gb", "nano agx", None]
    )
    def test_the_one_board_is_known_by_any_part_of_its_name(self, device: str | None) -> None:
        found = published(device=device, precision="fp32")
        assert found.constraints["device"] == "AGX Orin as Orin Nano 8GB"

    def test_what_was_not_timed_is_told_with_what_was(self) -> None:
        with pytest.raises(SpecError, match="'xavier' was not timed; there is AGX Orin as Orin"):
            published(device="xavier", precision="fp32")
        with pytest.raises(SpecError, match="'MODE_30W': the timings name no mode"):
            published(mode="MODE_30W", precision="fp32")
        with pytest.raises(SpecError, match="several precisions were timed: fp32, int8-unscaled"):
            published()
        with pytest.raises(SpecError, match="'fp16' was not timed; there is fp32, int8-unscaled"):
            published(precision="fp16")
        with pytest.raises(SpecError, match=r"p99-single was not timed on .* there is p50-stream"):
            published(precision="fp32", stat="p99-single")
        with pytest.raises(SpecError, match="stat='p99' is no statistic"):
            published(precision="fp32", stat="p99")


BOARD = {"device": "agx-orin-64gb", "backend": "tensorrt", "runtime": "10.3.0"}


def seeds(strategy: str, *factors: float, freeze: str = "none", task: str = "") -> list[RunData]:
    return [
        run("resnet18", strategy, freeze, task, seed=seed, factor=factor)
        for seed, factor in enumerate(factors)
    ]


def pair_and_dual(dual: Sequence[float], baseline: Sequence[float]) -> list[RunData]:
    return [
        *seeds("dual", *dual),
        *seeds("baseline", *baseline, task="seg"),
        *seeds("baseline", *baseline, task="det"),
    ]


def single(graph: str, p99: float, backbone: str = "resnet18", **more: Any) -> RunData:
    where = {**BOARD, **more}
    metrics = {"latency_ms/p99": p99, "spread_within": 0.01, "spread_between": 0.02}
    own = {name: where.pop(name) for name in [*where] if name in metrics}
    return bench(f"{backbone} {graph}", p99 / 2, load="single", **where, **{**metrics, **own})


def timed(**more: Any) -> list[RunData]:
    return [single("seg", 4.0, **more), single("det", 5.0, **more), single("dual", 6.0, **more)]


def ask(runs: Sequence[RunData], benches: Sequence[RunData], **asked: Any) -> Recommendation:
    rows = study_rows("written", runs, versions(), benches)
    return recommend(Facts.of(rows, count), Request(**asked))


class TestConfidence:
    def test_seeds_that_tell_the_two_apart(self) -> None:
        """Dual is 0.10, 0.11 and 0.12 of the best better than the baseline in each score.

        Scores over the best mean (factor 1.11): differences 0.1/1.11, 0.11/1.11 and 0.12/1.11,
        mean 0.0991, sd 0.01/1.11 = 0.00901; t(2) = 4.3027, half-width 0.0224.
        """
        found = ask(pair_and_dual((1.10, 1.11, 1.12), (1.0, 1.0, 1.0)), timed(), max_latency_ms=8)
        assert found.confidence.level == "high"
        assert names(found) == ("resnet18/dual", None)
        found = ask(pair_and_dual((1.10, 1.11, 1.12), (1.0, 1.0, 1.0)), timed())
        assert names(found) == ("resnet18/dual", "resnet18/baseline")
        assert found.confidence.level == "high"
        assert found.confidence.reasons[0] == (
            "better than resnet18/baseline: +0.0991 [+0.0767, +0.1215] in the mean of mIoU and "
            "mAP, each as a share of the board's best, paired over 3 seeds"
        )

    def test_seeds_that_do_not(self) -> None:
        """Differences 0.2, -0.1, 0.02 of the factor: mean 0.04, and 0 well inside."""
        found = ask(pair_and_dual((1.2, 0.9, 1.02), (1.0, 1.0, 1.0)), timed(), prefer="mAP")
        assert names(found) == ("resnet18/dual", "resnet18/baseline")
        assert found.confidence.level == "medium"
        told = found.confidence.reasons[0]
        # mAP is 0.2 times the factor: 0.008 +- 4.3027 * 0.2 * 0.15100 / sqrt(3).
        assert told == (
            "not told apart from resnet18/baseline: +0.0080 [-0.0670, +0.0830] in mAP, paired over "
            "3 seeds"
        )

    def test_one_seed_and_none_in_common(self) -> None:
        assert (
            "one seed: not tested"
            in ask(pair_and_dual((1.1,), (1.0,)), timed()).confidence.reasons[0]
        )
        runs = [*seeds("dual", 1.1), *pair_and_dual((), ())]
        runs += [run("resnet18", "baseline", task=task, seed=7) for task in ("seg", "det")]
        assert ask(runs, timed()).confidence.reasons[0].startswith("no seed in common: not tested")
        alone = ask(seeds("dual", 1.1), timed())
        assert alone.runner_up is None
        assert alone.confidence.level == "medium"
        assert alone.confidence.reasons[0].startswith("one seed: how much")

    def test_the_best_of_all_seeds_may_be_the_worse_of_the_common_ones(self) -> None:
        """Dual 1.00, 1.01 and 2.00 (mean 1.34), baseline 1.10 and 1.11 of the first two seeds."""
        found = ask(pair_and_dual((1.00, 1.01, 2.00), (1.10, 1.11)), timed(), prefer="mAP")
        assert names(found) == ("resnet18/dual", "resnet18/baseline")
        assert found.confidence.level == "medium"
        assert found.confidence.reasons[0].startswith(
            "worse than resnet18/baseline on the seeds that both have: -0.0200 ["
        )

    def test_seeds_are_compared_as_the_int8_files_score(self) -> None:
        """INT8 keeps 0.88 of dual's mAP: 0.2 * 0.88 * (1.10, 1.11, 1.12), mean 0.19536. The
        baseline's detector was not scored in INT8: 0.2 * 0.9 = 0.18. Differences: mean 0.01536,
        sd 0.00176, half-width 4.3027 * 0.00176 / sqrt(3) = 0.00437.
        """
        files = ("seg trt", "det trt", "dual trt")
        found = ask(
            pair_and_dual((1.10, 1.11, 1.12), (0.9, 0.9, 0.9)),
            [single(name, 3.0, precision="int8") for name in files],
            prefer="mAP",
        )
        assert found.confidence.reasons[0] == (
            "better than resnet18/baseline: +0.0154 [+0.0110, +0.0197] in mAP, paired over 3 seeds"
        )

    def test_a_doubtful_timing(self) -> None:
        runs = pair_and_dual((1.10, 1.11, 1.12), (1.0, 1.0, 1.0))
        slow = ask(runs, timed(verdict="suspect", reasons="clocks floated"))
        assert slow.confidence.level == "medium"
        assert slow.confidence.reasons[0] == "the timing is suspect: clocks floated"
        stale = ask(runs, timed(stale="10.4.0"))
        assert stale.confidence.reasons[0].startswith("the timing is stale: timed with 10.3.0")

    def test_a_margin_that_runs_could_eat_up(self) -> None:
        """Builds lie 2 % of 6 ms = 0.12 ms apart: 6.2 leaves 0.2 ms, 6.1 only 0.1 ms."""
        runs = pair_and_dual((1.10, 1.11, 1.12), (1.0, 1.0, 1.0))
        wide = ask(runs, timed(), max_latency_ms=6.2)
        assert wide.confidence.level == "high"
        assert "0.2 ms below the limit; runs lie 0.12 ms apart" in wide.confidence.reasons
        tight = ask(runs, timed(), max_latency_ms=6.1)
        assert tight.confidence.level == "medium"
        assert (
            tight.confidence.reasons[0] == "only 0.1 ms below the limit, and runs lie 0.12 ms apart"
        )

    def test_a_better_one_that_misses_by_less_than_its_runs_lie_apart(self) -> None:
        """Dual at 6 ms +- 0.12 and two baselines at 4 ms, within 5.9 ms and within 5.8 ms."""
        runs = pair_and_dual((1.10, 1.11, 1.12), (1.0, 1.0, 1.0))
        benches = [single("seg", 2.0), single("det", 2.0), single("dual", 6.0)]
        near = ask(runs, benches, max_latency_ms=5.9)
        assert names(near) == ("resnet18/baseline", None)
        assert near.notes == (
            "resnet18/dual is better and misses the limit by 0.1 ms, less than its runs lie apart "
            "(0.12 ms)",
        )
        assert ask(runs, benches, max_latency_ms=5.8).notes == ()
        assert ask(runs, benches, max_latency_ms=6).notes == ()

    def test_a_score_within_its_own_noise_of_the_limit(self) -> None:
        """mAP 0.222 +- 0.002: 0.221 is nearer than one deviation, 0.219 is not."""
        runs = pair_and_dual((1.10, 1.11, 1.12), (1.0, 1.0, 1.0))
        assert ask(runs, timed(), min_mAP=0.219).confidence.level == "high"
        near = ask(runs, timed(), min_mAP=0.221).confidence
        assert near.level == "medium"
        assert near.reasons[0].startswith("mAP 0.2220 is less than its standard deviation")

    def test_two_doubts_are_low_confidence(self) -> None:
        found = ask(pair_and_dual((1.1,), (1.0,)), timed(verdict="suspect", reasons="hot"))
        assert found.confidence.level == "low"

    def test_int8_that_was_scored(self) -> None:
        """Of the fake study's dual file INT8 keeps 0.49/0.5 and 0.22/0.25; mAP 0.222 * 0.88."""
        runs = seeds("dual", 1.10, 1.11, 1.12)
        found = ask(runs, [single("dual trt", 3.0, precision="int8")])
        assert found.choice.mAP.value == pytest.approx(0.222 * 0.88)
        assert found.confidence.level == "high"
        assert (
            "INT8 changes mIoU by -2.00 % and mAP by -12.00 %, scored on the files that are timed"
        ) in found.confidence.reasons

    def test_int8_that_was_not(self) -> None:
        runs = pair_and_dual((), (1.0, 1.0, 1.0))
        benches = [single(f"{graph} trt", 3.0, precision="int8") for graph in ("seg", "det")]
        found = ask(runs, benches)
        assert found.confidence.level == "low"
        assert found.confidence.reasons[0].startswith("mIoU: INT8 accuracy not measured")

    def test_added_percentiles_are_told(self) -> None:
        found = ask(pair_and_dual((), (1.0, 1.0, 1.0)), timed())
        assert found.choice.latency.value == 9.0
        assert "the two networks were timed apart; their p99 are added" in found.confidence.reasons


class TestBoards:
    RUNS = staticmethod(lambda: pair_and_dual((1.1,), (1.0,)))

    def test_several_devices_or_modes_ask_for_one(self) -> None:
        other = timed(device="agx-orin-32gb")
        with pytest.raises(SpecError, match=r"agx-orin-32gb, agx-orin-64gb\. Choose one: --device"):
            ask(self.RUNS(), [*timed(), *other])
        with pytest.raises(SpecError, match="may be agx-orin-32gb or agx-orin-64gb"):
            ask(self.RUNS(), [*timed(), *other], device="orin")
        found = ask(self.RUNS(), [*timed(), *other], device="64GB")
        assert found.constraints["device"] == "agx-orin-64gb"
        with pytest.raises(
            SpecError, match=r"there is agx-orin-32gb, agx-orin-64gb\. Did you mean"
        ):
            ask(self.RUNS(), [*timed(), *other], device="agx-orin-46gb")

    def test_modes(self) -> None:
        def in_mode(mode: str) -> list[RunData]:
            return [changed(r, tags={**r.tags, "sharedenc.mode": mode}) for r in timed()]

        benches = [*in_mode("MODE_30W-pinned"), *in_mode("MAXN-pinned")]
        with pytest.raises(SpecError, match=r"MAXN-pinned, MODE_30W-pinned\. Choose one: --mode"):
            ask(self.RUNS(), benches)
        assert ask(self.RUNS(), benches, mode="mode_30w").constraints["mode"] == "MODE_30W-pinned"
        with pytest.raises(SpecError, match="mode='pinned' may be MAXN-pinned or MODE_30W-pinned"):
            ask(self.RUNS(), benches, mode="pinned")

    def test_a_mode_without_a_name_is_told_and_can_be_chosen(self) -> None:
        plain = [changed(r, tags={**r.tags, "sharedenc.mode": ""}) for r in timed()]
        with pytest.raises(SpecError, match=r"several modes were timed: none \(--mode ''\), "):
            ask(self.RUNS(), [*timed(), *plain])
        assert ask(self.RUNS(), [*timed(), *plain], mode="").constraints["mode"] == ""

    def test_a_precision_is_never_another_one(self) -> None:
        """Only the published numbers' int8 stands for what was timed without scales."""
        unscaled = timed(precision="int8-unscaled")
        with pytest.raises(SpecError, match="'int8' was not timed; there is int8-unscaled"):
            ask(self.RUNS(), unscaled, precision="int8")
        assert ask(self.RUNS(), unscaled).constraints["precision"] == "int8-unscaled"

    def test_of_several_tools_the_newest_tensorrt(self) -> None:
        newer = timed(runtime="11.0.1", **{"latency_ms/p99": 2.0})
        found = ask(self.RUNS(), [*timed(), *newer])
        assert found.choice.latency.value == 2.0
        assert found.constraints["board"] == "agx-orin-64gb, 2 threads, tensorrt 11"
        assert found.notes == ("timed by tensorrt 10 too; these are the figures of tensorrt 11",)

    def test_a_statistic_that_was_not_timed(self) -> None:
        with pytest.raises(
            SpecError,
            match="p99-single was not timed on agx-orin-64gb, 2 threads in fp32; there is p50-st",
        ):
            ask(self.RUNS(), [bench("resnet18 dual", 6.0, **BOARD)])
        found = ask(self.RUNS(), [bench("resnet18 dual", 6.0, **BOARD)], stat="p50-stream")
        assert found.choice.latency.value == 6.0

    def test_nothing_that_can_be_trusted(self) -> None:
        with pytest.raises(SharedencError, match=r"nothing of study 'written' was timed yet"):
            ask(self.RUNS(), [])
        with pytest.raises(SharedencError, match=r"no timing on .* can be trusted"):
            ask(self.RUNS(), timed(verdict="wrong", reasons="outputs differ"))

    def test_what_cannot_be_judged_says_why(self) -> None:
        runs = [*self.RUNS(), run("resnet18", "share", "frozen", "seg")]
        found = ask(runs, [single("dual", 6.0), single("seg", 4.0)])
        why = {row.deployment: row.why for row in found.unmeasured}
        assert why == {
            "resnet18/baseline": "latency: not timed yet: det",
            "resnet18/share-frozen": "mAP: not in this study",
        }
        with pytest.raises(SharedencError, match=r"resnet18/dual: mIoU: failed; mAP: failed"):
            ask([run("resnet18", "dual", state="failed")], [single("dual", 6.0)])

    def test_a_pair_that_was_timed_in_one_run(self) -> None:
        files = [f"resnet18 {graph}" for graph in ("seg", "det", "dual")]
        both = bench(
            comparison_architecture(files), 6.0, load="single", **BOARD, **{"pair_ms/p50": 7.5}
        )
        found = ask(
            pair_and_dual((), (1.0, 1.0)), [*timed(), both], stat="p50-single", max_latency_ms=8
        )
        assert found.choice.latency.value == 7.5
        # That is no doubt.
        assert found.confidence.level == "high"


class TestRequest:
    @pytest.mark.parametrize(
        ("asked", "message"),
        [
            ({"min_mAP": 30.0}, r"min_mAP=30 is no score between 0 and 1; 30 % is 0\.3"),
            ({"min_mIoU": -0.1}, "min_mIoU=-0.1 is no score"),
            ({"min_mIoU": float("nan")}, "min_mIoU=nan is no score"),
            ({"max_latency_ms": 0.0}, "max_latency_ms=0 is no positive number"),
            ({"max_parameters_m": float("nan")}, "max_parameters_m=nan is no positive number"),
            ({"prefer": "AP"}, "prefer='AP' is not one of both, mAP, mIoU. Did you mean 'mAP'"),
        ],
    )
    def test_limits_that_are_none(self, asked: dict[str, Any], message: str) -> None:
        with pytest.raises(SpecError, match=message):
            Request(**asked)


class TestTold:
    def test_the_json_object(self) -> None:
        told = json.loads(json.dumps(published(precision="int8", max_latency_ms=8).to_dict()))
        assert list(told)[:5] == ["study", "choice", "runner_up", "constraints", "confidence"]
        choice = told["choice"]
        wanted = {
            "deployment": "resnet18/dual",
            "backbone": "resnet18",
            "strategy": "dual",
            "freeze": "none",
            "latency_ms": 3.28,
            "mIoU": 0.5621,
            "mAP": 0.2822,
            "passes": 1,
            "models": [],
        }
        assert {name: choice[name] for name in wanted} == wanted
        assert told["runner_up"]["deployment"] == "mobilenet_v3_large/dual"
        assert told["constraints"]["max_latency_ms"] == 8
        assert told["confidence"]["level"] == "low"

    def test_the_registered_versions(self) -> None:
        found = ask(pair_and_dual((1.1, 1.2), (1.0, 1.0)), timed())
        assert found.to_dict()["choice"]["models"] == [
            {"model": "voc20-resnet18-dual", "version": 1}
        ]
        assert found.to_dict()["runner_up"]["models"] == [
            {"model": "voc20-resnet18-seg", "version": 1},
            {"model": "voc20-resnet18-det", "version": 1},
        ]
        assert "Models: voc20-resnet18-dual version 1" in lines(found)

    def test_the_text(self) -> None:
        told = lines(published(precision="int8", max_latency_ms=8))
        assert told[0] == (
            "Deploy resnet18/dual on AGX Orin as Orin Nano 8GB, tensorrt 10 in int8-unscaled."
        )
        assert told[1].strip() == (
            "3.280 ms (p50-stream), mIoU 0.5621, mAP 0.2822, 12.10 M parameters, one encoder pass"
        )
        assert told[3].startswith("Runner-up: mobilenet_v3_large/dual: 4.437 ms")
        assert told[4] == (
            "Cost: mIoU -12.9 %, mAP -17.9 % against the best whatever its latency, "
            "efficientnet_v2_s/dual at 9.008 ms."
        )
        assert "How sure: low" in told

    def test_what_is_not_registered_says_how_to(self) -> None:
        runs = [
            *seeds("share", 1.0, 1.0, freeze="frozen", task="seg"),
            *seeds("share", 1.0, 1.0, freeze="frozen", task="det"),
        ]
        told = lines(ask(runs, timed()))
        assert (
            "Models: not all registered yet: sharedenc export --deployment resnet18/share-frozen "
            "--study written"
        ) in told
        assert "Cost: nothing: no deployment timed there is better, whatever its latency." in told
        assert "Runner-up: none, nothing else fits." in told


class TestCommand:
    @pytest.fixture(autouse=True)
    def facts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(
            "sharedenc.cli.recommend._facts", lambda study, runs_dir: published_facts(biases)
        )

    def test_one_object_and_nothing_else(self) -> None:
        done = CliRunner().invoke(
            command, ["published", "--precision", "int8", "--max-latency-ms", "8", "--json"]
        )
        assert done.exit_code == 0
        assert json.loads(done.output)["choice"]["deployment"] == "resnet18/dual"

    def test_every_limit_is_taken(self) -> None:
        words = "published --device orin-nano --precision int8 --stat p50-stream --prefer mIoU "
        words += "--min-mAP 0.2 --min-mIoU 0.5 --max-parameters-m 13 --max-latency-ms 7 --json"
        done = CliRunner().invoke(command, words.split())
        told = json.loads(done.output)["constraints"]
        assert told == {
            "device": "AGX Orin as Orin Nano 8GB",
            "mode": "",
            "precision": "int8-unscaled",
            "max_latency_ms": 7.0,
            "stat": "p50-stream",
            "min_mIoU": 0.5,
            "min_mAP": 0.2,
            "max_parameters_m": 13.0,
            "max_memory_mib": None,
            "prefer": "mIoU",
            "board": "AGX Orin as Orin Nano 8GB, tensorrt 10",
        }

    def test_nothing_fits(self) -> None:
        done = CliRunner().invoke(
            command, ["published", "--precision", "int8", "--max-latency-ms", "1"]
        )
        assert isinstance(done.exception, NoDeploymentFits)
        assert not done.output

    def test_what_to_prefer_is_known_in_any_case(self) -> None:
        words = ["published", "--precision", "int8", "--prefer", "map", "--json"]
        told = json.loads(CliRunner().invoke(command, words).output)
        assert told["constraints"]["prefer"] == "mAP"
        (option,) = [found for found in command.params if found.name == "prefer"]
        assert tuple(option.type.choices) == get_args(Prefer)

    def test_help_has_the_published_numbers_as_an_example(self) -> None:
        told = CliRunner().invoke(command, ["--help"]).output
        assert "sharedenc recommend published --precision int8 --max-latency-ms 8" in told


class TestStudy:
    def test_it_is_read_from_the_server_of_the_runs_folder(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        asked = []

        @contextmanager
        def serve(root: Path) -> Iterator[SimpleNamespace]:
            asked.append(root)
            yield SimpleNamespace(uri="http://there")

        def collect(uri: str, study: str) -> StudyRows:
            asked.extend([uri, study])
            return study_rows(study, pair_and_dual((1.1,), (1.0,)), versions(), timed())

        monkeypatch.setattr("sharedenc.mlflow_server.serve", serve)
        monkeypatch.setattr("sharedenc.report.collect.collect", collect)
        monkeypatch.setattr("sharedenc.report.write.count_parameters", lambda: count)
        done = CliRunner().invoke(command, ["mine", "--runs-dir", str(tmp_path), "--json"])
        assert json.loads(done.output)["choice"]["deployment"] == "resnet18/dual"
        assert asked == [tmp_path.resolve(), "http://there", "mine"]

    def test_the_published_numbers_need_no_server(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("sharedenc.mlflow_server.serve", None)
        monkeypatch.setattr("sharedenc.report.write.count_parameters", lambda: biases)
        done = CliRunner().invoke(command, ["published", "--precision", "fp32"])
        assert done.output.startswith("Deploy efficientnet_v2_s/dual on AGX Orin as Orin Nano 8GB")


def test_a_limit_of_memory_is_kept_and_told() -> None:
    """Two networks take 12 + 13 MiB with their contexts, one dual network 14 MiB."""
    sizes = {"seg": 12.0, "det": 13.0, "dual": 14.0}
    told = [
        single(graph, p99, engine_mib=sizes[graph] - 2.0, context_mib=2.0)
        for graph, p99 in (("seg", 1.0), ("det", 1.0), ("dual", 6.0))
    ]
    runs = pair_and_dual((0.9,), (1.0,))
    assert names(ask(runs, told))[0] == "resnet18/baseline"
    found = ask(runs, told, max_memory_mib=20)
    assert names(found) == ("resnet18/dual", None)
    assert found.to_dict()["choice"]["memory_mib"] == 14.0
    assert found.to_dict()["constraints"]["max_memory_mib"] == 20
    assert "14.0 MiB" in "\n".join(lines(found))
    assert [row.why for row in found.rejected] == ["25.0 MiB are over 20"]
    nearest = r"at most 10 MiB\. resnet18/dual needs least: 14\.0"
    with pytest.raises(NoDeploymentFits, match=nearest):
        ask(runs, told, max_memory_mib=10)
    with pytest.raises(SpecError, match="max_memory_mib=-1 is no positive number"):
        Request(max_memory_mib=-1.0)
    untold = [bench(f"resnet18 {graph}", 5.0) for graph in sizes]
    with pytest.raises(SharedencError, match="onnxruntime does not tell it"):
        ask(runs, untold, max_memory_mib=10, stat="p50-stream")
