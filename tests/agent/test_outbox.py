from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from jetson_agent.outbox import Outbox
from tests.agent.test_protocol import RESULT


def test_a_result_stays_until_it_is_sent(tmp_path: Path) -> None:
    Outbox(tmp_path, "http://server:5000").put(RESULT)
    outbox = Outbox(tmp_path, "http://server:5000/")
    assert list(outbox.pending()) == [RESULT]
    outbox.sent(RESULT)
    assert len(outbox) == 0
    outbox.sent(RESULT)


def test_the_same_job_is_kept_once(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, "http://server:5000")
    outbox.put(RESULT)
    later = replace(RESULT, verdict="valid")
    outbox.put(later)
    assert list(outbox.pending()) == [later]


def test_results_of_one_server_are_not_sent_to_another(tmp_path: Path) -> None:
    Outbox(tmp_path, "http://one:5000").put(RESULT)
    assert len(Outbox(tmp_path, "http://two:5000")) == 0


def test_a_new_password_makes_no_other_server_and_stands_nowhere(tmp_path: Path) -> None:
    Outbox(tmp_path, "http://me:old@one:5000").put(RESULT)
    assert len(Outbox(tmp_path, "http://me:new@one:5000")) == 1
    for path in tmp_path.rglob("*"):
        assert "old" not in path.name
        assert path.is_dir() or "http" not in path.read_text()


def test_a_broken_file_is_set_aside_and_the_others_are_sent(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, "http://one:5000")
    outbox.put(RESULT)
    (outbox.folder / "broken.json").write_text('{"protocol": 1')
    (outbox.folder / "cut.part").write_text("half a write")
    assert list(outbox.pending()) == [RESULT]
    assert (outbox.folder / "broken.bad").exists()
    assert len(outbox) == 1


def test_the_oldest_goes_first(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, "http://one:5000")
    results = [replace(RESULT, precision=name) for name in ("fp32", "tf32", "fp16", "int8")]
    for age, result in enumerate(results):
        path = outbox.put(result)
        # A file system's clock may be coarser than two writes are apart.
        os.utime(path, (1e9 - age, 1e9 - age))
    assert [r.precision for r in outbox.pending()] == ["int8", "fp16", "tf32", "fp32"]
    assert outbox.keys() == {result.key for result in results}
