"""A real Slurm on this machine: munge, slurmctld and several slurmd, with ports and folders of its own."""

import getpass
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import psutil

SYSTEM_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"

# Nodes are named by loopback addresses, so that the first node's name is an address for the ranks, as on a cluster.
# cred_expire is how long a requeued job waits; KillWait is how long it gets between SIGTERM and SIGKILL.
CONFIG = """
ClusterName=test
SlurmctldHost=localhost
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={ports[0]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=bf_interval=2,sched_interval=2,batch_sched_delay=1
JobRequeue=1
ReturnToService=2
SlurmdTimeout=10
KillWait=5
MpiDefault=none
NodeName=127.0.0.[1-{nodes}] NodeHostname=localhost NodeAddr=127.0.0.1 Port=[{ports[1]}-{ports[2]}] CPUs=1
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing_programs() -> list[str]:
    """What a cluster needs and this machine does not have."""
    return [name for name in ("munged", "slurmctld", "slurmd") if shutil.which(name, path=SYSTEM_PATH) is None]


class Cluster:
    """Runs from its making until `stop`; nodes are called 127.0.0.1, 127.0.0.2, ... and have one CPU each."""

    def __init__(self, nodes: int) -> None:
        # Not pytest's: the path of munge's socket may have 107 characters.
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}
        first = _free_ports(nodes + 1)
        ports = (first, first + 1, first + nodes)
        config = CONFIG.format(folder=self.folder, user=getpass.getuser(), nodes=nodes, ports=ports)
        (self.folder / "slurm.conf").write_text(config)
        self.environment = os.environ | {"SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": SYSTEM_PATH}
        try:
            self._start_munge()
            (self.folder / "state").mkdir()
            self._start("slurmctld", "slurmctld", "-D", "-c")
            for number in range(1, nodes + 1):
                self.start_node(f"127.0.0.{number}")
            self._wait(lambda: self.run("sinfo", "--noheader", "--format=%D %T").strip() == f"{nodes} idle")
        except BaseException:
            self.stop()
            raise

    def run(self, *command: str) -> str:
        """The output of a Slurm command; a failing one gives its error text as well."""
        ended = subprocess.run(command, env=self.environment, capture_output=True, text=True)
        return ended.stdout + (ended.stderr if ended.returncode else "")

    def job(self, job: str) -> dict[str, str]:
        """What `scontrol show job` tells."""
        return dict(re.findall(r"(\S+?)=(\S*)", self.run("scontrol", "--oneliner", "show", "job", job)))

    def state(self, job: str) -> str:
        """PENDING, RUNNING, COMPLETED, FAILED, CANCELLED, ..."""
        return self.job(job)["JobState"]

    def start_node(self, name: str) -> None:
        (self.folder / f"spool-{name}").mkdir(exist_ok=True)
        self._start(name, "slurmd", "-D", "-N", name)

    def kill_node(self, name: str) -> None:
        """As if its power had gone: the daemon and everything that runs on the node is killed at once."""
        victims = [psutil.Process(self.daemons.pop(name).pid)]
        for process in psutil.process_iter():
            try:
                if process.environ().get("SLURMD_NODENAME") == name and self._is_ours(process):
                    # The parent too: it is Slurm's own process for the step, which would report the end of its tasks.
                    victims += [process, *(parent for parent in process.parents() if "slurmstepd" in parent.name())]
            except psutil.Error:
                continue
        for victim in sorted(set(victims), key=lambda process: "slurmstepd" not in process.name()):
            if victim.is_running():
                victim.kill()

    def stop(self) -> None:
        """Ends all jobs and daemons, and removes the folder."""
        if "slurmctld" in self.daemons:
            self.run("scancel", "--user", getpass.getuser())
            self._wait(lambda: not self.run("squeue", "--noheader"))
        for daemon in self.daemons.values():
            daemon.terminate()
        for daemon in self.daemons.values():
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _is_ours(self, process: psutil.Process) -> bool:
        return process.environ().get("SLURM_CONF") == self.environment["SLURM_CONF"]

    def _start_munge(self) -> None:
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        files = [f"--{name}-file={self.folder}/munge.{name}" for name in ("key", "pid", "log", "seed")]
        self._start("munged", "munged", "--foreground", "--force", f"--socket={self.folder}/munge.socket", *files)
        self._wait((self.folder / "munge.socket").exists)

    def _start(self, name: str, *command: str) -> None:
        with (self.folder / f"{name}.out").open("ab") as output:
            self.daemons[name] = subprocess.Popen(command, env=self.environment, stdout=output, stderr=output)

    def _wait(self, condition: object, timeout_seconds: float = 180) -> None:
        deadline = time.monotonic() + timeout_seconds
        while not condition():  # type: ignore[operator]
            if time.monotonic() > deadline:
                logs = [f"{path.name}:\n{path.read_text()[-2000:]}" for path in self.folder.glob("*.[lo][ou][gt]")]
                raise AssertionError("Slurm did not come up or go down:\n" + "\n".join(logs))
            time.sleep(0.2)


def _free_ports(count: int) -> int:
    """The first of so many free ports in a row, below those of outgoing connections."""
    for first in range(17000 + os.getpid() % 5000, 32000, count):
        sockets = [socket.socket() for _ in range(count)]
        try:
            for offset, probe in enumerate(sockets):
                probe.bind(("", first + offset))
            return first
        except OSError:
            continue
        finally:
            for probe in sockets:
                probe.close()
    raise AssertionError("no free ports")
