"""When a job asks to be started again: job.sh with its ranks and scontrol replaced, each call one start of job 7."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.launch.runs import REPOSITORY

START = """
source launch/slurm/job.sh
run_ranks() {
    status=$1
    if [ -n "$2" ]; then mkdir -p "$LTUNE_RUN_DIR/checkpoints" && echo "$2" >"$LTUNE_RUN_DIR/checkpoints/LATEST"; fi
}
scontrol() { if [ "$1" = requeue ]; then echo "scontrol requeue $2"; else echo "JobState=$STATE"; fi; }
run_or_requeue "$STATUS" "$CHECKPOINT"
"""


class Job:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def start(self, status: int, checkpoint: str = "", state: str = "RUNNING") -> tuple[bool, int]:
        """One start that ends with `status`, after it has perhaps written a checkpoint: requeued? exit status."""
        variables = {"LTUNE_REPOSITORY": str(REPOSITORY), "LTUNE_RUN_DIR": str(self.folder), "STATE": state}
        variables |= {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n1", "STATUS": str(status), "CHECKPOINT": checkpoint}
        command = ["bash", "-euo", "pipefail", "-c", START]
        ended = subprocess.run(command, cwd=REPOSITORY, env=os.environ | variables, capture_output=True, text=True)
        assert not ended.stderr or "not requeued" in ended.stderr, ended.stderr
        return "scontrol requeue 7" in ended.stdout, ended.returncode


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path)


def test_a_job_told_to_stop_is_requeued_as_long_as_there_is_progress(job: Job) -> None:
    for step in range(1, 5):
        assert job.start(85, f"step-{step}") == (True, 85)
    assert [job.start(85)[0] for _ in range(3)] == [True, True, False], "site.env: MAX_STALLED=3"


def test_progress_starts_the_count_again(job: Job) -> None:
    assert [job.start(85)[0], job.start(85)[0], job.start(85, "step-1")[0]] == [True] * 3
    assert [job.start(85)[0] for _ in range(3)] == [True, True, False]


def test_the_sign_in_the_run_directory_counts_as_85(job: Job) -> None:
    (job.folder / "PREEMPTED").touch()
    assert job.start(1, "step-1") == (True, 85)


def test_an_error_before_the_first_checkpoint_ends_the_job_and_a_later_one_does_not(job: Job) -> None:
    assert job.start(1) == (False, 1)
    later = Job(job.folder / "later")
    assert later.start(1, "step-1") == (True, 1)
    assert [later.start(1)[0] for _ in range(3)] == [True, True, False]


def test_a_job_that_is_done_or_cancelled_is_not_requeued(job: Job) -> None:
    assert job.start(0, "step-1") == (False, 0)
    assert job.start(85, "step-2", state="CANCELLED") == (False, 85)
