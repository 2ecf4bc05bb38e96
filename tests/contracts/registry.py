"""What every registry of the agent does, and every pair of agents on one store."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from jetson_agent.claims import Claim
from jetson_agent.errors import ServerError
from jetson_agent.protocol import BenchResult, ExportManifest
from jetson_agent.registry import Registry
from tests.agent import models
from tests.agent.publishing import manifest_of
from tests.agent.test_protocol import RESULT

Publish = Callable[[Path, ExportManifest, bool], None]


class Hands:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.at = 1_800_000_000.0

    def __call__(self) -> float:
        return self.at


class RegistryContract:
    """Fixtures: `registry`, `other` (another agent's, on the same store, by the same `hands`),
    `publish_one`."""

    @pytest.fixture
    def hands(self) -> Hands:
        return Hands()

    @pytest.fixture
    def device(self) -> str:
        """A device that no other test knows: the server is shared."""
        return f"board-{uuid4().hex[:8]}"

    @pytest.fixture
    def result(self, device: str) -> BenchResult:
        return replace(RESULT, device=device)

    def test_only_ready_versions_are_listed_with_all_their_tags(
        self, registry: Registry, publish_one: Publish, tmp_path: Path
    ) -> None:
        model = models.doubling(tmp_path / "m.onnx")
        data = f"d{uuid4().hex[:8]}"
        ready = manifest_of(model, "A", graph="seg", data=data)
        publish_one(model, ready, True)
        publish_one(model, manifest_of(model, "B", graph="det", data=data), False)
        found = [v for v in registry.ready_versions() if v.model.startswith(data)]
        assert [v.name for v in found] == [f"{data}-resnet18-seg v1"]
        assert ExportManifest.from_tags(found[0].tags) == ready

    def test_a_download_gives_the_bytes_that_were_uploaded(
        self, registry: Registry, publish_one: Publish, tmp_path: Path
    ) -> None:
        model = models.doubling(tmp_path / "m.onnx")
        data = f"d{uuid4().hex[:8]}"
        publish_one(model, manifest_of(model, "A", data=data), True)
        version = next(v for v in registry.ready_versions() if v.model.startswith(data))
        (tmp_path / "down").mkdir()
        path = registry.download(version, "model.onnx", tmp_path / "down")
        assert path == tmp_path / "down" / "model.onnx"
        assert path.read_bytes() == model.read_bytes()
        assert list((tmp_path / "down").iterdir()) == [path]

    def test_a_file_that_is_not_there_or_no_plain_name_is_an_error_and_leaves_nothing(
        self, registry: Registry, publish_one: Publish, tmp_path: Path
    ) -> None:
        model = models.doubling(tmp_path / "m.onnx")
        data = f"d{uuid4().hex[:8]}"
        publish_one(model, manifest_of(model, "A", data=data), True)
        version = next(v for v in registry.ready_versions() if v.model.startswith(data))
        (tmp_path / "down").mkdir()
        with pytest.raises(ServerError, match=r"other\.onnx of .*-seg v1"):
            registry.download(version, "other.onnx", tmp_path / "down")
        for name in ("../model.onnx", "seg/model.onnx", "", "..", "/etc/passwd"):
            with pytest.raises(ServerError, match="not a plain file name"):
                registry.download(version, name, tmp_path / "down")
        assert list((tmp_path / "down").iterdir()) == []

    def test_a_device_without_a_timing_has_no_keys(self, registry: Registry) -> None:
        assert registry.bench_keys("never-seen") == {}

    def test_a_result_is_found_again_by_its_key_on_its_device_only(
        self, registry: Registry, other: Registry, result: BenchResult
    ) -> None:
        assert other.bench_keys(result.device) == {}
        registry.report(result)
        for one in (registry, other):
            assert one.bench_keys(result.device) == {result.key: "suspect"}
        assert result.key not in registry.bench_keys("another")

    def test_sending_twice_stores_once(
        self, registry: Registry, other: Registry, result: BenchResult
    ) -> None:
        assert registry.report(result) == other.report(result) == registry.report(result)
        assert len(registry.bench_keys(result.device)) == 1

    def test_a_better_verdict_replaces_a_worse_one_and_not_the_other_way_round(
        self, registry: Registry, other: Registry, result: BenchResult
    ) -> None:
        registry.report(replace(result, verdict="failed", metrics={}))
        other.report(result)
        assert registry.bench_keys(result.device) == {result.key: "suspect"}
        registry.report(replace(result, verdict="valid", reasons=[]))
        registry.report(replace(result, verdict="failed", metrics={}))
        for one in (registry, other):
            assert one.bench_keys(result.device) == {result.key: "valid"}

    def test_other_software_makes_older_figures_stale_and_going_back_times_anew(
        self, registry: Registry, other: Registry, result: BenchResult
    ) -> None:
        old = replace(result, verdict="valid")
        new = replace(old, runtime="2.0")
        elsewhere = replace(old, mode="MAXN-pinned")
        for one in (old, elsewhere):
            registry.report(one)
        other.report(new)
        assert registry.bench_keys(result.device) == {new.key: "valid", elsewhere.key: "valid"}
        again = replace(old, metrics={"latency_ms/p50": 1.75})
        registry.report(again)
        assert other.bench_keys(result.device) == {again.key: "valid", elsewhere.key: "valid"}

    @pytest.mark.parametrize("name", ["/etc/log", "../log", "a/../../log", "certificate.json"])
    def test_an_artifact_has_a_place_of_its_own(
        self, registry: Registry, result: BenchResult, name: str
    ) -> None:
        with pytest.raises(ValueError, match="not a relative path of its own"):
            registry.report(result, {name: b""})
        assert registry.bench_keys(result.device) == {}

    def test_a_job_has_one_holder_until_it_is_let_go(
        self, registry: Registry, other: Registry, device: str
    ) -> None:
        first = registry.claims(device).take("aa" * 32, "one", 60.0)
        assert first is not None
        assert other.claims(device).take("aa" * 32, "two", 60.0) is None
        assert other.claims(device).take("bb" * 32, "two", 60.0) is not None
        assert first.still_mine()
        first.release()
        second = other.claims(device).take("aa" * 32, "two", 60.0)
        assert second is not None
        assert second.epoch == first.epoch + 1
        assert not first.still_mine()
        assert second.still_mine()

    def test_jobs_of_one_device_are_not_those_of_another(
        self, registry: Registry, device: str
    ) -> None:
        assert registry.claims(device).take("aa" * 32, "one", 60.0) is not None
        assert registry.claims(f"{device}-b").take("aa" * 32, "two", 60.0) is not None

    def test_a_lease_that_is_over_by_more_than_twice_the_skew_is_taken_over(
        self, registry: Registry, other: Registry, device: str, hands: Hands
    ) -> None:
        key, start = "aa" * 32, hands.at
        first = registry.claims(device).take(key, "one", 60.0)
        assert first is not None
        hands.at = start + 79
        assert other.claims(device).take(key, "two", 60.0) is None
        hands.at = start + 81
        second = other.claims(device).take(key, "two", 60.0)
        assert second is not None
        # What the first does now is too late, and takes nothing from the second.
        first.renew()
        assert not first.still_mine()
        assert second.still_mine()
        assert registry.claims(device).take(key, "one", 60.0) is None

    def test_a_renewed_lease_counts_from_its_renewal(
        self, registry: Registry, other: Registry, device: str, hands: Hands
    ) -> None:
        key, start = "aa" * 32, hands.at
        first = registry.claims(device).take(key, "one", 60.0)
        assert first is not None
        hands.at = start + 50
        first.renew()
        hands.at = start + 129
        assert other.claims(device).take(key, "two", 60.0) is None
        hands.at = start + 131
        assert other.claims(device).take(key, "two", 60.0) is not None

    def test_an_agent_that_was_cut_off_gets_its_own_claim_back_at_once(
        self, registry: Registry, other: Registry, device: str, hands: Hands
    ) -> None:
        key, start = "aa" * 32, hands.at
        first = registry.claims(device).take(key, "one", 60.0)
        assert first is not None
        hands.at = start + 30
        again = other.claims(device).take(key, "one", 60.0)
        assert again is not None
        assert again.epoch == first.epoch
        hands.at = start + 95
        # Over, but nobody else has it: a new epoch, without waiting for the skew.
        later = registry.claims(device).take(key, "one", 60.0)
        assert later is not None
        assert later.epoch == first.epoch + 1

    def test_of_many_that_reach_for_one_job_at_once_one_gets_it(
        self, registry: Registry, other: Registry, device: str
    ) -> None:
        gate = threading.Barrier(6)
        got: list[tuple[int, Claim]] = []

        def reach(number: int) -> None:
            mine = (registry, other)[number % 2].claims(device)
            for job in range(3):
                gate.wait(60)
                claim = mine.take(f"{job:064x}", f"agent {number}", 60.0)
                if claim is not None:
                    got.append((job, claim))

        threads = [threading.Thread(target=reach, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(job for job, _ in got) == [0, 1, 2]
        assert all(claim.still_mine() for _, claim in got)
