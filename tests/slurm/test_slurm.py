"""The jobs of launch/slurm/ on a real Slurm. An interrupted run ends with the adapter of an undisturbed one.

Scenarios run side by side, as far as the cluster has nodes; each test waits for its own.
"""

import json
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.data.unlabelled import Input
from pipeline.stages.predict_parts import PartsOutput, Scoring, predict_parts
from tests.launch.runs import (
    REPOSITORY,
    adapter_files,
    copy_of_run,
    environment,
    prepared_run,
    start,
    statuses,
    steps_logged,
    wait_until,
)
from tests.slurm.cluster import Cluster, missing_programs

pytestmark = pytest.mark.skipif(
    bool(missing_programs()), reason=f"no {', '.join(missing_programs())}: apt-get install slurm-wlm munge"
)
NODES = 8
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
SITE = """
source launch/slurm/site.env
CPUS_PER_RANK=1
SIGNAL_LEAD=300
"""


class Lab:
    """The cluster and the runs on it. A run is slow while the file `slow/NAME` exists."""

    def __init__(self, folder: Path, cluster: Cluster) -> None:
        self.folder, self.cluster = folder, cluster
        (folder / "slow").mkdir()
        (folder / "site.env").write_text(SITE)

    def run(self, name: str) -> Path:
        return self.folder / name

    def shell(self, name: str, *command: str) -> subprocess.CompletedProcess[str]:
        """Runs a launch command in the repository, on this cluster."""
        variables = environment(slow_while=self.folder / "slow" / name) | {"LTUNE_SITE": str(self.folder / "site.env")}
        slurm = {key: self.cluster.environment[key] for key in ("SLURM_CONF", "PATH")}
        return subprocess.run(command, cwd=REPOSITORY, env=variables | slurm, capture_output=True, text=True)

    def submit(self, name: str, *options: str, script: str = "submit") -> dict[str, str]:
        """Submits a run from its beginning: stage -> job id."""
        recipe = ["bash", f"launch/slurm/{script}.sh", str(self.folder / "config.yaml"), f"run.dir={self.run(name)}"]
        ended = self.shell(name, *recipe, "--gpus-per-node=0", *options)
        assert ended.returncode == 0, ended.stderr
        lines = [line.split(maxsplit=1) for line in ended.stdout.splitlines() if not line.startswith("logs:")]
        return {stage: job for job, stage in lines}

    def train(self, name: str, *options: str) -> str:
        """Submits the training of a prepared run on two nodes, slow from the start: its job id."""
        (self.folder / "slow" / name).touch()
        arguments = [*copy_of_run(self.folder, name), "train.preemption_signals=[SIGTERM,SIGUSR1]"]
        log = f"--output={self.folder}/{name}.log"
        batch = ["sbatch", "--parsable", "--nodes=2", "--ntasks-per-node=1", "--time=60", "--signal=B:USR1@300", log]
        ended = self.shell(name, *batch, *options, "launch/slurm/train.sbatch", *arguments)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout.strip()

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def wait_for_progress(self, name: str, job: str) -> None:
        """Until a start that trains has brought two more steps."""
        before = steps_logged(self.run(name))
        wait_until(lambda: steps_logged(self.run(name)) >= before + 2, f"steps of {name}")
        assert self.cluster.state(job) == "RUNNING"

    def wait(self, condition: Callable[[], object], what: str) -> None:
        """For what Slurm is asked: each question is a process of its own."""
        wait_until(condition, what, pause_seconds=0.5)

    def wait_for_restart(self, job: str, restarts: int) -> None:
        self.wait(lambda: int(self.cluster.job(job)["Restarts"]) >= restarts, f"restart {restarts} of job {job}")

    def end(self, job: str, name: str | None = None) -> str:
        """Lets the run go on quickly to its end; the job's state then."""
        if name is not None:
            (self.folder / "slow" / name).unlink()
        self.wait(lambda: self.cluster.state(job) in ENDED, f"end of job {job}")
        return self.cluster.state(job)


def undisturbed(lab: Lab) -> dict[str, bytes]:
    """The adapter of two ranks on this machine, without Slurm."""
    arguments, log = copy_of_run(lab.folder, "undisturbed"), lab.folder / "undisturbed.log"
    command = ["bash", "launch/torchrun.sh", "--processes", "2", "train", *arguments]
    assert statuses(start(command, log)) == [0], log.read_text()
    return adapter_files(lab.run("undisturbed"))


def chain(lab: Lab) -> dict[str, str]:
    jobs = lab.submit("chain", "--nodes", "2", "--stage-in", str(lab.folder / "local"))
    assert list(jobs) == ["preprocess", "encode_labels", "train", "evaluate"]
    states = {stage: lab.end(job) for stage, job in jobs.items()}
    labelled(lab, "chain")
    return states


def labelled(lab: Lab, name: str) -> Path:
    """Parts that an array of two tasks has made of a run's test texts, to the end of both."""
    parts, log = lab.folder / f"{name}-parts", f"--output={lab.folder}/{name}-predict-%a.log"
    how = ["--array=1-3:2", "--ntasks-per-node=1", "--export=ALL,LTUNE_LAUNCHER=srun", "--time=60", log]
    batch = ["sbatch", "--parsable", *how, "launch/slurm/predict.sbatch"]
    source = ["--run-dir", str(lab.run(name)), "--input", str(lab.folder / "test.tsv")]
    ended = lab.shell(name, *batch, *source, "--parts", str(parts), "--part-rows", "2")
    assert ended.returncode == 0, ended.stderr
    job = ended.stdout.strip()
    lab.wait(lambda: not lab.cluster.run("squeue", "--noheader", f"--jobs={job}").strip(), "end of the array")
    return parts


def broken_chain(lab: Lab) -> dict[str, str]:
    jobs = lab.submit("broken", "data.train=nowhere.tsv")
    return {stage: lab.end(job) for stage, job in jobs.items()}


def sweep(lab: Lab) -> str:
    options = ["--methods", "lt_prefix,lt_prompt", "--seeds", "0,1", "--launcher", "srun", "train.max_steps=6"]
    (job,) = lab.submit("sweep", *options, script="sweep").values()
    lab.wait(lambda: not lab.cluster.run("squeue", "--noheader", f"--jobs={job}").strip(), "end of the array")
    return job


def struck(lab: Lab) -> str:
    """SIGTERM to the ranks, a requeue by hand, and the loss of a node; one torchrun per node."""
    job = lab.train("struck")
    lab.wait_for_progress("struck", job)
    lab.cluster.run("scancel", "--signal=TERM", job)
    lab.wait_for_restart(job, 1)
    lab.wait_for_progress("struck", job)
    lab.cluster.run("scontrol", "requeue", job)
    lab.wait_for_restart(job, 2)
    lab.wait_for_progress("struck", job)
    nodes = lab.cluster.run("scontrol", "show", "hostnames", lab.cluster.job(job)["NodeList"]).split()
    lab.cluster.kill_node(nodes[1])
    lab.wait_for_restart(job, 3)
    lab.cluster.start_node(nodes[1])
    return lab.end(job, "struck")


def out_of_time(lab: Lab) -> str:
    """SIGUSR1 to the ranks, and a time limit; one task per rank."""
    job = lab.train("out-of-time", "--export=ALL,LTUNE_LAUNCHER=srun")
    lab.wait_for_progress("out-of-time", job)
    lab.cluster.run("scancel", "--signal=USR1", job)
    lab.wait_for_restart(job, 1)
    lab.wait_for_progress("out-of-time", job)
    # Less than the lead of the signal is left then. Slurm looks at time limits every 30 seconds.
    lab.cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=4")
    lab.wait(lambda: lab.cluster.state(job) != "RUNNING", "the time limit")
    lab.cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=60")
    return lab.end(job, "out-of-time")


def cancelled(lab: Lab) -> str:
    """`scancel` stops training as a preemption does, but for good."""
    job = lab.train("cancelled", "--nodes=1", "--export=ALL,LTUNE_LAUNCHER=srun")
    lab.wait_for_progress("cancelled", job)
    lab.cluster.run("scancel", job)
    wait_until(lambda: "stopped after step" in lab.log("cancelled"), "the checkpoint")
    lab.wait(lambda: lab.cluster.state(job) != "COMPLETING", "the end of the job")
    return lab.end(job, "cancelled")


SCENARIOS: tuple[Callable[[Lab], object], ...] = (
    out_of_time,
    struck,
    undisturbed,
    chain,
    sweep,
    cancelled,
    broken_chain,
)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    folder = tmp_path_factory.mktemp("slurm")
    prepared_run(folder, max_steps=160, save_every=4, eval_every=40)
    cluster = Cluster(NODES)
    try:
        yield Lab(folder, cluster)
    finally:
        cluster.stop()


@pytest.fixture(scope="module")
def results(lab: Lab) -> Iterator[dict[str, Future[object]]]:
    with ThreadPoolExecutor(len(SCENARIOS)) as pool:
        yield {scenario.__name__: pool.submit(scenario, lab) for scenario in SCENARIOS}


Results = dict[str, Future[object]]


def test_a_bad_option_is_refused_before_anything_is_submitted(lab: Lab) -> None:
    for option, message in (
        ("--gpus-per-node=some", "--gpus-per-node is 'some'; it is a number"),
        ("--partition=nowhere", "invalid partition specified"),
        ("train.batch_sise=4", "train.batch_size"),
        ("train", "'train' is neither an option nor key=value"),
    ):
        ended = lab.shell("none", "bash", "launch/slurm/submit.sh", str(lab.folder / "config.yaml"), option)
        assert ended.returncode != 0 and message in ended.stderr, ended.stderr
    shown = lab.shell("none", "bash", "launch/slurm/submit.sh", str(lab.folder / "config.yaml"), "--dry-run")
    assert "--dependency=afterok:encode_labels-id" in shown.stderr and "run_ranks evaluate" in shown.stderr
    assert "No jobs in the system" in lab.cluster.run("scontrol", "show", "jobs")


def test_the_chain_over_two_nodes_gives_the_adapter_of_two_local_ranks(lab: Lab, results: Results) -> None:
    assert results["chain"].result() == dict.fromkeys(("preprocess", "encode_labels", "train", "evaluate"), "COMPLETED")
    files, trained = adapter_files(lab.run("chain")), results["undisturbed"].result()
    assert isinstance(trained, dict) and {name: files[name] for name in trained} == trained, (
        "evaluate adds to the folder"
    )
    assert json.loads((lab.run("chain") / "evaluation" / "metrics.json").read_text())["test"]["n"] == 9
    (log,) = (lab.run("chain") / "logs" / "slurm").glob("train-*.log")
    assert "2 rank(s)" in log.read_text() and f"copied {lab.folder / 'backbone'} to" in log.read_text()
    assert not list((lab.folder / "local").iterdir()), "the copies are removed"


def test_an_array_labels_what_one_process_labels(lab: Lab, results: Results) -> None:
    results["chain"].result()
    logs = [(lab.folder / f"chain-predict-{task}.log").read_text() for task in (1, 3)]
    alone = PartsOutput(lab.folder / "alone", rows=2)
    assert predict_parts(Scoring(lab.run("chain")), Input(str(lab.folder / "test.tsv")), alone) == 9
    parts = [lab.folder / "chain-parts", alone.folder]
    array, one = [{file.name: file.read_bytes() for file in folder.glob("*.*")} for folder in parts]
    assert array == one and "manifest.json" in one, logs
    assert ["in 3 parts" in logs[0], "in 2 parts" in logs[1]] == [True, True], logs


def test_a_failed_stage_stops_the_chain(results: Results) -> None:
    states = results["broken_chain"].result()
    assert isinstance(states, dict)
    assert states.pop("preprocess") == "FAILED" and set(states.values()) == {"CANCELLED"}


def test_sigterm_requeue_and_a_lost_node_change_nothing(lab: Lab, results: Results) -> None:
    assert results["struck"].result() == "COMPLETED", lab.log("struck")
    assert adapter_files(lab.run("struck")) == results["undisturbed"].result()
    log = lab.log("struck")
    assert "SIGTERM: stopped after step" in log and "requeued; goes on from step-" in log
    assert [f"start {number}, on" in log for number in (1, 2, 3, 4)] == [True] * 4, "the log of all starts is kept"


def test_sigusr1_and_a_time_limit_change_nothing(lab: Lab, results: Results) -> None:
    assert results["out_of_time"].result() == "COMPLETED", lab.log("out-of-time")
    assert adapter_files(lab.run("out-of-time")) == results["undisturbed"].result()
    log = lab.log("out-of-time")
    assert log.count("SIGUSR1: stopped after step") >= 2 and log.count("requeued; goes on from step-") >= 2


def test_a_cancelled_job_stays_cancelled(lab: Lab, results: Results) -> None:
    assert results["cancelled"].result() == "CANCELLED", lab.log("cancelled")
    assert "requeued" not in lab.log("cancelled")


def test_a_sweep_is_an_array_of_methods_and_seeds(lab: Lab, results: Results) -> None:
    results["sweep"].result()
    cells = [f"{method}-seed{seed}" for method in ("lt_prefix", "lt_prompt") for seed in (0, 1)]
    logs = list((lab.run("sweep") / "logs" / "slurm").glob("sweep-*_*.log"))
    assert len(logs) == 4, logs
    adapters = {(lab.run("sweep") / cell / "adapter" / "adapter.safetensors").read_bytes() for cell in cells}
    assert len(adapters) == 4 and all((lab.run("sweep") / cell / "evaluation").is_dir() for cell in cells)
