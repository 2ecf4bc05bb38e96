"""What a dead worker died of, in Ray's and the kernel's own words."""

from __future__ import annotations

from pathlib import Path

import pytest

from sweeps.lost import OomKills, lost

# As Ray 2.60 wrote them into a trial's error file.
DIED = """Failure # 1 (occurred at 2026-11-30_04-09-23)
The actor died unexpectedly before finishing this task.
\tclass_name: Trainable
\tactor_id: 65f6e9d4b4274609be786d5c01000000
\tpid: 12089
The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit \
detail: Worker exits unexpectedly. """
SIGTERM = DIED + "Worker exits with an exit code 1. The process receives a SIGTERM."
KILLED = DIED + (
    "Worker process died unexpectedly. There are some potential root causes: the process was "
    "killed by SIGKILL by the OOM killer due to high memory usage"
)
NODE = (
    "The actor died unexpectedly before finishing this task.\n"
    "The actor died because its node has died. Node Id: a5e9\n\tthe actor's node was terminated "
    "unexpectedly: health check failed due to missing too many heartbeats"
)
MONITOR = (
    "Task was killed due to the node running low on memory. Memory on the node was 7.9GB / 8.0GB "
    "(0.98), which exceeds the memory usage threshold of 0.95."
)
RAISED = """Failure # 1 (occurred at 2026-11-30_04-09-23)
\x1b[36mray::Trainable.train()\x1b[39m (pid=1, ip=192.0.2.2, actor_id=65, repr=trial)
  File "worker.py", line 3, in trial
NameError: name 'x' is not defined
"""
IMPORT = (
    "The actor died because of an error raised in its creation task, ray::Trainable.__init__()\n"
    "ModuleNotFoundError: No module named 'sweeps'"
)


@pytest.mark.parametrize(
    ("text", "state", "kind"),
    [
        (SIGTERM, "preempted", None),
        (NODE, "preempted", None),
        (MONITOR, "failed", "oom"),
        (RAISED, "failed", "code"),
        (IMPORT, "failed", "code"),
        (KILLED, "failed", "machine"),
        ("", "failed", "machine"),
    ],
    ids=["SIGTERM", "node", "Ray's monitor", "raised", "import", "SIGKILL", "nothing"],
)
def test_rays_messages(text: str, state: str, kind: str | None) -> None:
    outcome = lost(text)
    assert (outcome["state"], outcome["kind"]) == (state, kind)
    assert outcome["traceback"] == text


def test_what_is_known_besides_decides() -> None:
    assert lost(KILLED, oom_kill=True)["kind"] == "oom"
    assert lost(KILLED, oom_kill=True)["reason"] == "out of memory: the kernel ended its process"
    gone = lost(KILLED, node_is_gone=True)
    assert (gone["state"], gone["reason"]) == ("preempted", "preempted: its node left the cluster")
    # A node that was taken away takes its processes along, whatever else was going on.
    assert lost(KILLED, node_is_gone=True, oom_kill=True)["state"] == "preempted"
    assert lost(RAISED)["reason"] == "NameError: name 'x' is not defined"


@pytest.mark.parametrize(
    ("file", "before", "after"),
    [
        ("cgroup/jobs/1/memory.events", "low 0\noom 3\noom_kill 3\n", "low 0\noom 4\noom_kill 4\n"),
        (
            "cgroup/memory/box/memory.oom_control",
            "oom_kill_disable 0\nunder_oom 0\noom_kill 0\n",
            "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
        ),
        ("proc/vmstat", "nr_free_pages 7\noom_kill 1\n", "nr_free_pages 9\noom_kill 2\n"),
    ],
    ids=["cgroup 2", "cgroup 1", "machine"],
)
def test_the_kernels_counters(tmp_path: Path, file: str, before: str, after: str) -> None:
    groups = tmp_path / "proc" / "self" / "cgroup"
    groups.parent.mkdir(parents=True)
    groups.write_text("4:cpu,memory:/box\n0::/jobs/1\n")
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(before)
    now = [0.0]
    kills = OomKills(tmp_path / "proc", tmp_path / "cgroup", clock=lambda: now[0])
    assert not kills.recent()
    now[0] = 5.0
    path.write_text(after)
    assert kills.recent()
    now[0] = 34.0
    assert kills.recent(), "a worker's death may be told later than it happened"
    now[0] = 36.0
    assert not kills.recent()


def test_a_machine_without_counters_says_nothing(tmp_path: Path) -> None:
    assert OomKills(tmp_path, tmp_path).total() == 0
    assert not OomKills(tmp_path, tmp_path).recent()
