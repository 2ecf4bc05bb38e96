from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from jetson_agent import journal as module
from jetson_agent.catalog import Catalog
from jetson_agent.journal import STATES, Journal, read_all
from jetson_agent.registry import ModelVersion
from tests.agent.pretending import SERVER
from tests.agent.test_protocol import RESULT


def test_states_are_those_of_the_design_in_order() -> None:
    assert " > ".join(STATES) == (
        "DISCOVERED > CLAIMED > FETCHED > CHECKED > PREFLIGHT > BUILT > MEASURED > SPOOLED > "
        "REPORTED"
    )


def test_an_entry_is_on_disk_at_every_step_and_another_process_reads_it(tmp_path: Path) -> None:
    journal = Journal(tmp_path, SERVER)
    entry = journal.get("k", "a job")
    assert list(read_all(tmp_path)) == []
    entry = journal.write(entry, state="BUILT", failures=["crash"], workspace_mib=2048)
    [read] = read_all(tmp_path)
    assert read == entry
    assert Journal(tmp_path, SERVER).get("k") == entry


def test_a_result_survives_until_the_server_has_it_and_stays_readable_after(
    tmp_path: Path,
) -> None:
    journal = Journal(tmp_path, SERVER)
    entry = journal.write(journal.get("k"), state="MEASURED", result=RESULT.to_json())
    assert Journal(tmp_path, SERVER).entries("MEASURED")[0].result == RESULT.to_json()
    journal.write(entry, state="SPOOLED")
    journal.reported("k")
    [read] = read_all(tmp_path)
    assert (read.state, read.result) == ("REPORTED", RESULT.to_json())
    # In memory a thousand certificates are not kept.
    assert journal.get("k").result == ""


def test_what_cannot_be_read_is_set_aside_and_half_writes_do_not_count(tmp_path: Path) -> None:
    journal = Journal(tmp_path, SERVER)
    journal.write(journal.get("good"), state="CLAIMED")
    (journal.folder / "cut.json").write_text('{"key": "cut", "sta')
    (journal.folder / "alien.json").write_text(json.dumps({"key": "alien", "state": "LOST"}))
    (journal.folder / "half.json.part").write_text("{")
    again = Journal(tmp_path, SERVER)
    assert [e.key for e in again.entries(*STATES)] == ["good"]
    assert {p.name for p in journal.folder.glob("*.bad")} == {"cut.bad", "alien.bad"}


def test_a_newer_agents_fields_are_ignored(tmp_path: Path) -> None:
    journal = Journal(tmp_path, SERVER)
    journal.write(journal.get("k"), state="CLAIMED")
    path = journal.folder / "k.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "colour": "blue"}))
    assert Journal(tmp_path, SERVER).get("k").state == "CLAIMED"


def test_each_server_has_its_own_jobs(tmp_path: Path) -> None:
    one = Journal(tmp_path, "http://one")
    one.write(one.get("k"), state="REPORTED")
    assert Journal(tmp_path, "http://two").entries(*STATES) == []


def test_only_the_newest_of_what_is_reported_is_kept(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(module, "KEEP", 2)
    journal = Journal(tmp_path, SERVER)
    for number in range(4):
        entry = journal.write(journal.get(f"k{number}"), state="REPORTED")
        # Their age is told by the entry, not by the order of writing.
        text = json.dumps(replace(entry, updated=100.0 - number).__dict__)
        (journal.folder / f"k{number}.json").write_text(text)
    journal.write(journal.get("open"), state="CLAIMED")
    left = {entry.key for entry in Journal(tmp_path, SERVER).entries(*STATES)}
    assert left == {"k0", "k1", "open"}


def test_what_is_registered_is_kept_for_a_start_without_the_server(tmp_path: Path) -> None:
    version = ModelVersion(
        model="m", version="3", run_id="r", source="runs:/r/x", tags={"a": "b"}, created_ms=7
    )
    path = tmp_path / "registered"
    assert Catalog(path).load() == []
    catalog = Catalog(path)
    catalog.save([version])
    assert Catalog(path).load() == [version]
    before = path.stat().st_mtime_ns
    catalog.save([version])
    # A flash disk is not written at every poll.
    assert path.stat().st_mtime_ns == before
    path.write_text("[{")
    assert Catalog(path).load() == []
