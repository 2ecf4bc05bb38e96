"""The agent's work over registries in memory, with timings that are only pretended."""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jetson_agent.attempt import MAX_INTERRUPTED
from jetson_agent.errors import AgentError, AuthError, ServerError
from jetson_agent.journal import STATES
from jetson_agent.locks import machine_lock, only_one
from jetson_agent.onnxcheck import ModelRefused
from jetson_agent.protocol import COMPARISON, BenchResult
from jetson_agent.registry import MemoryRegistry, ModelVersion
from jetson_agent.results import logs_of
from jetson_agent.timing import Stopped, Timing
from tests.agent.pretending import Pretence, device, timing_of


@pytest.fixture
def bench(tmp_path: Path) -> Pretence:
    return Pretence(tmp_path)


def test_every_architecture_is_timed_once_and_then_there_is_nothing_to_do(
    bench: Pretence,
) -> None:
    bench.add("seg, trial 1", "A")
    bench.add("seg, trial 2", "A")
    bench.add("det", "B", "det")
    first = bench.agent.once()
    assert first.exit_code == 0
    # The newest version stands for its architecture.
    assert bench.timed == [b"det", b"seg, trial 2"]
    assert {(r.architecture, r.model, r.version) for r in bench.results} == {
        ("A", "voc20-resnet18-seg", "2"),
        ("B", "voc20-resnet18-det", "1"),
    }
    second = bench.start().once()
    assert (second.timed, second.already_timed, second.sent) == ([], 2, 0)
    assert len(bench.timed) == 2
    assert bench.said[-1] == "nothing to do"


def test_a_result_says_under_which_mode_runtime_and_settings_it_was_timed(
    bench: Pretence,
) -> None:
    bench.add("seg", "A")
    bench.agent.once()
    [result] = bench.results
    assert (result.mode, result.runtime) == ("MAXN-pinned-2t", "1")
    assert result.settings == bench.bench.settings.text
    assert result.certificate["files"] == json.loads(
        bench.shelf.registry.versions[0].tags["sharedenc.sha256"]
    )
    [entry] = bench.agent.journal.entries("REPORTED")
    assert (entry.key, entry.verdict) == (result.key, "valid")


def test_a_mode_or_software_that_changes_between_jobs_gives_figures_side_by_side(
    bench: Pretence,
) -> None:
    bench.add("seg", "A")
    bench.agent.once()
    bench.bench = replace(bench.bench, device=device(power_mode="MODE_30W"))
    bench.agent.once()
    new = replace(bench.bench.settings, runtime="2")
    bench.bench = replace(bench.bench, settings=new)
    bench.agent.once()
    assert [(r.mode, r.runtime) for r in bench.results] == [
        ("MAXN-pinned-2t", "1"),
        ("MODE_30W-pinned-2t", "1"),
        ("MODE_30W-pinned-2t", "2"),
    ]
    assert bench.agent.once().timed == []


def test_a_mode_that_changes_during_a_timing_makes_it_suspect(bench: Pretence) -> None:
    bench.add("seg", "A")
    pretend = bench.agent.workbench.time_model

    def switching(*args: Any, **more: Any) -> Timing:
        bench.bench = replace(bench.bench, device=device(power_mode="MODE_30W"))
        return pretend(*args, **more)

    bench.agent.workbench.time_model = switching
    job = bench.agent.next_job(_planned(bench))[0]
    assert job is not None
    result = bench.agent.do(job, bench.bench)
    assert result is not None
    assert (result.verdict, result.mode) == ("suspect", "MAXN-pinned-2t")
    assert "MAXN-pinned-2t with 1 to MODE_30W-pinned-2t with 1" in result.reasons[0]
    assert result.certificate["verdict"] == "suspect"


def _planned(bench: Pretence) -> Any:
    bench.agent.refresh()
    return bench.agent.plan(bench.bench)


def test_two_networks_are_compared_with_one_in_the_pass_that_timed_them(bench: Pretence) -> None:
    for graph in ("seg", "det", "dual"):
        bench.add(graph, graph.upper(), graph)
    summary = bench.agent.once()
    assert bench.timed == [b"det", b"dual", b"seg"]
    assert bench.compared == [[b"seg", b"det", b"dual"]]
    [result] = [r for r in bench.results if r.graph == COMPARISON]
    assert result.certificate["parts"] == ["SEG", "DET", "DUAL"]
    assert len(summary.timed) == 4
    assert bench.start().once().timed == []


def test_a_file_of_another_hash_is_refused_and_nothing_is_timed(bench: Pretence) -> None:
    bench.shelf.add(bench.file("seg"), "A", content=b"something else")
    summary = bench.agent.once()
    assert (bench.timed, bench.results) == ([], [])
    assert [row["model"] for row in summary.refused] == ["voc20-resnet18-seg v1"]
    assert "sha256 of model.onnx" in summary.refused[0]["reason"]
    assert any("refused voc20-resnet18-seg v1" in line for line in bench.said)
    assert summary.exit_code == 1
    assert bench.agent.journal.entries(*STATES) == []


def test_an_older_version_answers_for_an_architecture_whose_newest_is_refused(
    bench: Pretence,
) -> None:
    bench.add("good", "A")
    bench.shelf.add(bench.file("bad"), "A", content=b"something else")
    summary = bench.agent.once()
    assert bench.timed == [b"good"]
    assert bench.results[0].version == "1"
    assert summary.exit_code == 1


def test_a_model_that_may_not_be_loaded_is_refused_before_any_loader_sees_it(
    bench: Pretence,
) -> None:
    bench.add("evil", "A")
    bench.add("good", "B", "det")
    looked_at: list[Any] = []

    def check(path: Path, *, quantised: Any) -> None:
        looked_at.append((path.read_bytes(), quantised))
        if path.read_bytes() == b"evil":
            raise ModelRefused("it would read /etc/passwd")

    bench.agent.workbench.check_model = check
    summary = bench.agent.once()
    assert bench.timed == [b"good"]
    assert [row["reason"] for row in summary.refused] == ["it would read /etc/passwd"]
    assert sorted(looked_at) == [(b"evil", None), (b"good", None)]


def test_only_versions_that_are_ready_are_looked_at(bench: Pretence) -> None:
    bench.shelf.add(bench.file("seg"), "A", state="uploading")
    assert bench.agent.once().to_dict()["skipped"] == []
    assert bench.timed == []


def test_another_protocol_is_skipped_with_its_reason(bench: Pretence) -> None:
    bench.add("old", "A", **{"sharedenc.protocol": "7"})
    bench.add("new", "B")
    summary = bench.agent.once()
    assert bench.timed == [b"new"]
    assert "protocol 7" in summary.skipped[0]["reason"]
    assert summary.exit_code == 0


def test_precisions_that_the_backend_lacks_are_one_line(bench: Pretence) -> None:
    for name in ("a", "b", "c"):
        bench.add(name, name, **{"sharedenc.precisions": '["fp32", "fp16"]'})
    summary = bench.agent.once()
    assert summary.lacking == {"fp16": 3}
    assert summary.skipped == []
    assert [line for line in bench.said if "fp16" in line] == [
        "not timed here with backend fake: fp16 (3 versions)"
    ]
    assert [r.precision for r in bench.results] == ["fp32"] * 3


def test_one_bad_model_does_not_stop_the_others_and_is_not_repeated(bench: Pretence) -> None:
    for name in ("a", "b", "c"):
        bench.add(name, name, name)
    bench.answers = {b"a": [timing_of("failed", kind="usage")], b"b": [timing_of("wrong")]}
    summary = bench.agent.once()
    assert bench.timed == [b"a", b"b", b"c"]
    verdicts = {r.architecture: r.verdict for r in bench.results}
    assert verdicts == {"a": "failed", "b": "wrong", "c": "valid"}
    assert summary.exit_code == 1
    assert bench.start().once().timed == []


def test_a_timing_can_be_repeated_by_its_verdict_once_per_call(bench: Pretence) -> None:
    bench.add("a", "A")
    bench.answers = {b"a": [timing_of("suspect"), timing_of("failed", kind="usage")]}
    bench.agent.once()
    bench.start().retry = ["failed"]
    bench.agent.once()
    assert len(bench.timed) == 1
    bench.start().retry = ["suspect"]
    bench.agent.once()
    # A figure with doubts is better than none.
    assert [r.verdict for r in bench.results] == ["suspect"]
    assert len(bench.timed) == 2
    bench.start().retry = ["suspect"]
    bench.agent.once()
    assert [r.verdict for r in bench.results] == ["valid"]
    bench.start().retry = ["suspect"]
    bench.agent.once()
    assert len(bench.timed) == 3


class DeafRegistry(MemoryRegistry):
    """A server that can be read but takes nothing, or not the result of one architecture."""

    deaf = True
    poison = ""

    def report(self, result: BenchResult, artifacts: Any = None) -> str:
        if self.deaf or result.architecture == self.poison:
            raise ServerError("the server takes nothing")
        return super().report(result, artifacts)


def _deaf(bench: Pretence) -> DeafRegistry:
    deaf = DeafRegistry(bench.shelf.registry.versions, bench.shelf.registry.files)
    bench.shelf.registry = bench.agent.registry = deaf
    return deaf


def test_what_cannot_be_sent_is_kept_and_sent_by_the_next_pass_without_timing_again(
    bench: Pretence,
) -> None:
    for name in ("a", "b"):
        bench.add(name, name, name)
    deaf = _deaf(bench)
    first = bench.agent.once()
    assert (len(first.timed), first.sent, first.waiting) == (2, 0, 2)
    assert first.exit_code == 1
    assert bench.start().once().timed == []
    deaf.deaf = False
    second = bench.start().once()
    assert (second.timed, second.sent, second.waiting) == ([], 2, 0)
    assert second.exit_code == 0
    assert len(bench.timed) == 2
    assert {r.architecture for r in deaf.results.values()} == {"a", "b"}


def test_one_result_that_the_server_refuses_does_not_hold_up_the_others(bench: Pretence) -> None:
    deaf = _deaf(bench)
    deaf.deaf, deaf.poison = False, "b"
    for name in ("a", "b", "c"):
        bench.add(name, name, name)
    summary = bench.agent.once()
    assert (summary.sent, summary.waiting) == (2, 1)
    assert {r.architecture for r in deaf.results.values()} == {"a", "c"}


def test_the_ends_of_the_tools_logs_go_with_a_result(bench: Pretence) -> None:
    bench.add("a", "A")
    tail = {"options": {"command": "trtexec", "log_tail": "&&&& PASSED"}}
    certificate = {"builds": [tail, {"options": {}}], "runs": [tail, tail, "an older agent's"]}
    bench.answers = {b"a": [replace(timing_of(), certificate=certificate)]}
    bench.agent.once()
    [files] = bench.shelf.registry.artifacts.values()
    assert files == dict.fromkeys(
        ("logs/builds-0.txt", "logs/runs-0.txt", "logs/runs-1.txt"), b"&&&& PASSED\n"
    )


def test_the_logs_of_a_comparison_and_of_a_failure_have_names_of_their_own(
    bench: Pretence,
) -> None:
    bench.add("a", "A")
    bench.agent.once()
    [result] = bench.results
    entry = {"options": {"log_tail": "x"}}
    compared = {"builds": {"seg": {"log_tail": "x"}}, "runs": {"seg": [entry], "dual": [entry]}}
    assert set(logs_of(replace(result, certificate=compared))) == {
        "logs/builds-seg.txt",
        "logs/runs-seg-0.txt",
        "logs/runs-dual-0.txt",
    }
    failed = {"failure": {"kind": "memory", "lines": ["one", "two"]}}
    assert logs_of(replace(result, certificate=failed)) == {"logs/failure.txt": b"one\ntwo\n"}
    assert logs_of(replace(result, certificate={**failed, "log_tail": "whole"})) == {
        "logs/failure.txt": b"whole\n"
    }


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_disk_that_is_too_full_for_a_download_is_cleared_and_the_job_keeps_its_tries(
    bench: Pretence, wrapped: bool
) -> None:
    bench.add("a", "A")
    old = bench.agent.workbench.artifacts.folder / ("ab" * 32) / "model.onnx"
    old.parent.mkdir()
    old.write_bytes(b"of another job")
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    download = bench.shelf.registry.download

    def fill(version: ModelVersion, name: str, folder: Path) -> Path:
        if not wrapped:
            raise full
        raise ServerError("the server would not download") from RuntimeError(f"failures: {full!r}")

    bench.shelf.registry.download = fill  # type: ignore[method-assign]
    bench.agent.refresh()
    [job] = bench.agent.plan(bench.bench).jobs
    with pytest.raises((OSError, ServerError)):
        bench.agent.do(job, bench.bench)
    assert not old.exists()
    bench.shelf.registry.download = download  # type: ignore[method-assign]
    [row] = bench.start().once().timed
    assert row["verdict"] == "valid"


def test_a_cache_too_small_for_the_files_of_one_job_has_them_all_the_same(
    bench: Pretence,
) -> None:
    for graph in ("seg", "det", "dual"):
        bench.add(graph, graph, graph)
    bench.agent.workbench.artifacts.limit_bytes = 0
    summary = bench.agent.once()
    assert summary.exit_code == 0
    assert bench.compared == [[b"seg", b"det", b"dual"]]


def test_who_is_not_let_in_hears_so_at_once(bench: Pretence) -> None:
    class Closed(MemoryRegistry):
        def ready_versions(self) -> list[ModelVersion]:
            raise AuthError("who are you?")

    bench.agent.registry = Closed()
    with pytest.raises(AuthError, match="who are you"):
        bench.agent.once()


def test_a_stop_ends_the_pass_and_keeps_what_is_done(bench: Pretence) -> None:
    for name in ("a", "b", "c"):
        bench.add(name, name, name)

    def stop_at_b(model: Path, *rest: Any, **more: Any) -> Timing:
        if model.read_bytes() == b"b":
            bench.agent.stopping.set()
            raise Stopped
        return bench.pretend(model, *rest, **more)

    bench.agent.workbench.time_model = stop_at_b
    summary = bench.agent.once()
    assert summary.stopped
    assert [r.architecture for r in bench.results] == ["a"]
    # To be stopped is no mishap: the job has not lost a try.
    [entry] = bench.agent.journal.entries("DISCOVERED")
    assert (entry.failures, entry.interrupted) == ([], 0)
    assert [row["architecture"] for row in bench.start().once().timed] == ["b", "c"]


def test_a_fault_of_our_own_is_an_answer_after_its_tries(bench: Pretence) -> None:
    bench.add("a", "A")
    bench.add("b", "B", "det")
    tries = []

    def broken(model: Path, *rest: Any, **more: Any) -> Timing:
        if model.read_bytes() == b"b":
            return bench.pretend(model, *rest, **more)
        tries.append(1)
        raise ZeroDivisionError("division by zero")

    bench.agent.workbench.time_model = broken
    summary = bench.agent.once()
    assert len(tries) == 3
    assert summary.retried == 2
    by_name = {r.architecture: r for r in bench.results}
    assert by_name["A"].verdict == "failed"
    assert "division by zero" in by_name["A"].reasons[0]
    assert by_name["A"].certificate["failed_tries"] == ["internal"] * 3
    assert by_name["B"].verdict == "valid"


def test_another_agents_job_is_left_alone_until_its_claim_is_over(bench: Pretence) -> None:
    bench.add("a", "A")
    bench.agent.refresh()
    [job] = bench.agent.plan(bench.bench).jobs
    claims = bench.shelf.registry.claims("board")
    claim = claims.take(job.key, "another", 900)
    assert claim is not None
    summary = bench.agent.once()
    assert (summary.timed, summary.elsewhere) == ([], 1)
    claim.release()
    # Its claim is over, so whoever comes next does the job.
    assert len(bench.start().once().timed) == 1


def test_a_job_that_another_agent_ended_meanwhile_is_not_done_again(bench: Pretence) -> None:
    bench.add("a", "A")
    bench.agent.refresh()
    [job] = bench.agent.plan(bench.bench).jobs
    (bench.tmp_path / "other").mkdir()
    other = Pretence(bench.tmp_path / "other")
    other.agent.registry = bench.shelf.registry
    other.agent.name = "another"
    assert len(other.agent.once().timed) == 1
    assert bench.agent.do(job, bench.bench) is None
    assert bench.timed == []


def test_a_result_of_a_job_that_was_taken_over_is_dropped(bench: Pretence) -> None:
    bench.add("a", "A")
    ledger = bench.shelf.registry.claims("board").ledger
    now = [1000.0]
    ledger.clock = lambda: now[0]  # type: ignore[attr-defined]

    def slow(*args: Any, **more: Any) -> Timing:
        now[0] += 10_000
        assert bench.shelf.registry.claims("board").take(job.key, "another", 900) is not None
        return bench.pretend(*args, **more)

    bench.agent.workbench.time_model = slow
    bench.agent.refresh()
    [job] = bench.agent.plan(bench.bench).jobs
    assert bench.agent.do(job, bench.bench) is None
    assert len(bench.agent.outbox) == 0
    assert bench.agent.summary.elsewhere == 1


def test_a_job_that_takes_the_agent_down_again_and_again_is_given_up(bench: Pretence) -> None:
    bench.add("a", "A")

    class PowerCutError(BaseException):
        pass

    def cut(*_args: Any, **_more: Any) -> Timing:
        raise PowerCutError

    for _ in range(MAX_INTERRUPTED):
        bench.start().workbench.time_model = cut
        with pytest.raises(PowerCutError):
            bench.agent.once()
    summary = bench.start().once()
    assert bench.timed == []
    [row] = summary.timed
    assert (row["verdict"], bench.results[0].verdict) == ("failed", "failed")
    assert "lost 3 times" in row["reasons"][0]


def test_an_agent_shows_that_it_lives_and_what_it_can_do(bench: Pretence) -> None:
    bench.agent.once()
    ledger = bench.shelf.registry.claims("board").ledger
    facts = ledger.agents["agent"]  # type: ignore[attr-defined]
    assert facts["precisions"] == ["fp32", "tf32", "int8"]
    assert (facts["mode"], facts["backend"]) == ("MAXN-pinned-2t", "fake")


def test_two_agents_do_not_share_a_state_folder(tmp_path: Path) -> None:
    with only_one(tmp_path):
        with pytest.raises(AgentError, match="another jetson-agent"), only_one(tmp_path):
            pass
    with only_one(tmp_path):
        pass


def test_nothing_is_timed_while_another_folders_agent_times_on_this_machine(
    bench: Pretence, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JETSON_AGENT_LOCK", str(bench.tmp_path / "machine.lock"))
    bench.add("a", "A")
    with machine_lock() as mine:
        assert mine
        with machine_lock() as second:
            assert not second
        thread = threading.Thread(target=bench.agent.once)
        thread.start()
        time.sleep(0.3)
        assert bench.timed == []
    thread.join(60)
    assert bench.timed == [b"a"]
