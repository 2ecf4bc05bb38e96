"""infra/sweep.sbatch: checked by bash and shellcheck, and run with stand-ins for Slurm and Ray."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.infra.cluster import await_true
from tests.infra.files import INFRA

SCRIPT = INFRA / "sweep.sbatch"
SHELLCHECK = Path(sys.executable).parent / "shellcheck"

# Each stand-in writes its arguments down. `srun` runs what follows its own options, once.
NOTE = '#!/bin/bash\necho "$(basename "$0") $*" >>"$LOG"\n'
STAND_INS = {
    "srun": NOTE + 'while [[ $1 == --* ]]; do shift; done\nexec "$@"\n',
    "scontrol": NOTE,
    "ray": NOTE
    + 'echo "$RAY_AUTH_MODE $RAY_AUTH_TOKEN" >>"$LOG.token"\n'
    + "[[ $1 == start ]] && exec sleep 1000\n[[ $1 != health-check || -z ${NO_HEAD:-} ]]\n",
    # Like the driver: it finds all nodes; on SIGTERM it takes a moment to save and ends as stopped.
    "sharedenc": NOTE
    + 'until (($(grep -c "^ray start" "$LOG") == SLURM_JOB_NUM_NODES)); do /bin/sleep 0.05; done\n'
    + 'trap \'sleep 0.5; echo "saved" >>"$LOG"; exit 130\' TERM\n'
    + 'if [[ -n ${RUNS:-} ]]; then touch "$LOG.runs"; while :; do sleep 0.1; done; fi\n'
    + "exit ${ENDS:-0}\n",
    "sleep": '#!/bin/bash\nexec /bin/sleep "${SHORT:-$1}"\n',
}


class Job:
    """One start of the script, as Slurm starts it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "log"
        self.log.touch()
        programs = folder / "bin"
        programs.mkdir()
        for name, text in STAND_INS.items():
            (programs / name).write_text(text)
            (programs / name).chmod(0o755)
        self.environment = {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "LOG": str(self.log),
            "SLURM_JOB_ID": "4711",
            "SLURM_JOB_NUM_NODES": "2",
            "SLURMD_NODENAME": "node1",
            "SHAREDENC_HEAD_IP": "127.0.0.1",
            "SHAREDENC_NODE_DIR": str(folder / "disk"),
            "MLFLOW_TRACKING_URI": "http://127.0.0.1:5000",
            "SHAREDENC_STORAGE": "/shared/store",
        }

    def start(self, *words: str, **more: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", str(SCRIPT), *words],
            env={**self.environment, **more},
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *words: str, **more: str) -> tuple[int, str]:
        """Start the script and return its exit code and what it said."""
        process = self.start(*words, **more)
        _, errors = process.communicate(timeout=60)
        return process.returncode, errors

    def lines(self, program: str) -> list[str]:
        return [one for one in self.log.read_text().splitlines() if one.startswith(program + " ")]


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path)


def call(function: str) -> str:
    """Run one function of the script, which a sourced script only defines."""
    done = subprocess.run(
        ["bash", "-c", f"source {SCRIPT}; {function}"], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_bash_reads_it() -> None:
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)


@pytest.mark.parametrize("name", ["sweep.sbatch", "drain.sh"])
def test_shellcheck_finds_nothing(name: str) -> None:
    done = subprocess.run([str(SHELLCHECK), str(INFRA / name)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_slurm_is_asked_to_requeue_and_to_warn_before_the_end() -> None:
    asked = [line.split()[1] for line in SCRIPT.read_text().splitlines() if "#SBATCH --" in line]
    assert {"--requeue", "--signal=B:TERM@120", "--ntasks-per-node=1"} <= set(asked)
    assert "--open-mode=append" in asked, "the log of an earlier start is kept"


def test_jobs_on_one_node_have_ports_of_their_own() -> None:
    first, second = int(call("first_port 4711")), int(call("first_port 4712"))
    # 4711 is 31 modulo 60.
    assert first == 20000 + 31 * 200
    assert second - first == 200
    numbers = [int(word.split("=")[1]) for word in call(f"ray_ports {first}").split()]
    assert len(numbers) == len(set(numbers))
    assert first < min(numbers)
    assert max(numbers) < second


def test_every_port_is_below_the_kernel_s_own() -> None:
    assert max(int(call(f"first_port {number}")) for number in (59, 119)) + 199 < 32768


def test_tokens_are_long_and_differ() -> None:
    first, second = call("token"), call("token")
    assert len(first) == 64
    assert int(first, 16) != int(second, 16)


def test_a_study_runs_on_a_cluster_of_the_job_s_own(job: Job) -> None:
    code, errors = job.run("full-grid", "--data", "/shared/my coco")
    assert code == 0, errors
    # Both are started at once: the log has them in either order.
    started = [line for line in job.lines("ray") if " start " in line]
    head, worker = sorted(started, key=lambda line: "--head" not in line)
    disk = job.folder / "disk"
    assert "--head --port=26200 --node-ip-address=127.0.0.1" in head
    assert "--address=127.0.0.1:26200" in worker
    for line in (head, worker):
        assert f"--temp-dir={disk}/se-4711-0" in line
        assert "--min-worker-port=26220 --max-worker-port=26399" in line
    (sweep,) = job.lines("sharedenc")
    user = subprocess.run(["id", "-un"], capture_output=True, text=True).stdout.strip()
    assert sweep == (
        "sharedenc sweep full-grid --data /shared/my coco --address 127.0.0.1:26200 "
        f"--storage /shared/store --cache-dir {disk}/sharedenc-{user}/packs --grace 90"
    )
    tokens = set(Path(f"{job.log}.token").read_text().splitlines())
    assert len(tokens) == 1, "one token for all"
    assert tokens.pop().startswith("token ")
    assert not job.lines("scontrol")
    assert not (disk / "se-4711-0").exists(), "the job's folder is cleaned up"
    assert (disk / f"sharedenc-{user}" / "packs").is_dir(), "packs stay for the next job"


def test_workers_are_on_the_other_nodes(job: Job) -> None:
    job.run("full-grid")
    starts = [line for line in job.lines("srun") if "ray start" in line]
    assert "--nodelist=node1" in starts[0]
    assert "--nodes=1" in starts[0]
    assert "--exclude=node1" in starts[1]
    assert "--nodes=1 " in starts[1], "two nodes less the head"


def test_one_node_needs_no_worker(job: Job) -> None:
    assert job.run("full-grid", SLURM_JOB_NUM_NODES="1")[0] == 0
    assert len([line for line in job.lines("ray") if " start " in line]) == 1


def warned(job: Job, **more: str) -> tuple[int, str]:
    """Start, wait until the driver runs, send what `--signal=B:TERM@120` sends, wait."""
    process = job.start("full-grid", RUNS="1", **more)
    await_true("the driver runs", Path(f"{job.log}.runs").exists, 30)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    return process.returncode, errors


def test_before_the_end_trials_save_and_the_job_is_queued_again(job: Job) -> None:
    code, errors = warned(job)
    assert code == 130, errors
    everything = job.log.read_text().splitlines()
    told = [i for i, line in enumerate(everything) if "touch" in line and "/drain" in line]
    assert told, "the drain file is touched on every node"
    assert "--ntasks=2" in everything[told[0]]
    saved, queued = everything.index("saved"), everything.index("scontrol requeue 4711")
    assert saved < queued, "the driver has saved before the job ends"


def test_a_study_that_fails_is_not_queued_again(job: Job) -> None:
    assert job.run("full-grid", ENDS="1")[0] == 1
    assert not job.lines("scontrol")


def test_a_restarted_job_has_a_new_folder_and_so_no_old_drain_file(job: Job) -> None:
    assert job.run("full-grid", SLURM_RESTART_COUNT="2")[0] == 0
    assert any("/se-4711-2" in line for line in job.lines("ray"))


@pytest.mark.parametrize(
    ("missing", "says"),
    [
        ("SLURM_JOB_ID", "start this with sbatch"),
        ("MLFLOW_TRACKING_URI", "needs a tracking server"),
        ("SHAREDENC_STORAGE", "shared folder or an object store"),
    ],
)
def test_what_is_missing_is_named(job: Job, missing: str, says: str) -> None:
    del job.environment[missing]
    code, errors = job.run("full-grid")
    assert code != 0
    assert says in errors
    assert not job.lines("srun"), "nothing was started"


def test_a_head_that_does_not_come_up_ends_the_job(job: Job) -> None:
    code, errors = job.run("full-grid", NO_HEAD="1", SHORT="0.01")
    assert code == 1
    assert "Ray's head did not start on node1" in errors
    assert not job.lines("sharedenc")
