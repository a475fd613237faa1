"""A Slurm of one node and two make-believe GPUs on this machine, from the distribution's own packages.

    apt-get install slurm-wlm munge
    python -m tools.slurm FOLDER COMMAND...   # starts it, runs the command in it, stops it; as root

Nothing outside the folder is written but a link in /etc/slurm, and no systemd is needed. Any two device
files stand for the GPUs: Slurm hands out their numbers in CUDA_VISIBLE_DEVICES and lets no third job in.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
CONFIG = """\
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
SlurmUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
ReturnToService=2
SlurmdTimeout=10
MinJobAge=600
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/jobs.log
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} RealMemory={memory} Gres=gpu:2 State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""
GPUS = "Name=gpu File=/dev/tty[1-2]\n"
LINK = Path("/etc/slurm/slurm.conf")  # Snakemake's plugin takes SLURM_CONF out of a job
START = 60  # seconds until the node must be idle


def missing() -> list[str]:
    """The programs of slurm-wlm and munge that are not installed."""
    return [name for name in PROGRAMS if shutil.which(name) is None]


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _write(folder: Path) -> None:
    """Configuration, munge's key, and the folders the daemons write to."""
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    said = {"host": socket.gethostname().split(".")[0], "cores": os.cpu_count(), "memory": memory * 9 // 10}
    ports = {"controller": _free_port(), "node": _free_port()}
    (folder / "slurm.conf").write_text(CONFIG.format(folder=folder, **said, **ports))
    (folder / "gres.conf").write_text(GPUS)
    key = folder / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(secrets.token_bytes(128))


class Slurm:
    """A running cluster: `environment` is what its commands and jobs need besides this process's own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.environment = os.environ | {"SLURM_CONF": str(self.folder / "slurm.conf")}
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, *arguments: str) -> None:
        """Start a daemon as a child of this process; what it prints goes into its own file."""
        with (self.folder / f"{name}.out").open("ab") as out:
            command = [shutil.which(name) or name, *arguments]
            self.daemons[name] = subprocess.Popen(command, stdout=out, stderr=out, env=self.environment)

    def start_node(self) -> None:
        """Start the node's daemon and wait until the controller has it ready for jobs."""
        self.start("slurmd", "-D")
        end = time.monotonic() + START
        while self.said("sinfo", "--noheader", "--format=%T").split() not in (
            ["idle"],
            ["mixed"],
            ["allocated"],
        ):
            if time.monotonic() > end or self.daemons["slurmd"].poll() is not None:
                raise RuntimeError(f"the node is not ready; read {self.folder}/slurmd.log and slurmctld.log")
            time.sleep(0.2)

    def kill_node(self) -> None:
        """What a power cut does to the node: its daemon and the processes of its jobs are killed outright."""
        import psutil

        node = self.daemons.pop("slurmd")
        steps = [each for each in psutil.process_iter(["name"]) if each.info["name"] == "slurmstepd"]
        mine = [each for each in steps if each.environ().get("SLURM_CONF") == self.environment["SLURM_CONF"]]
        victims = [child for each in mine for child in each.children(recursive=True)]
        for process in (psutil.Process(node.pid), *mine, *victims):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        node.wait()

    def said(self, *command: str) -> str:
        """What a command of Slurm prints."""
        return subprocess.run(command, env=self.environment, capture_output=True, text=True).stdout

    def stop(self) -> None:
        """End all jobs, then the daemons."""
        self.said("scancel", "--user=root")
        for _, daemon in reversed(list(self.daemons.items())):
            daemon.terminate()
            daemon.wait()


def _left_over() -> bool:
    """Whether the link is of a cluster of ours that was killed: no controller runs on this machine."""
    import psutil

    running = {each.info["name"] for each in psutil.process_iter(["name"])}
    return LINK.is_symlink() and "slurmctld" not in running


@contextlib.contextmanager
def one_node(folder: Path) -> Iterator[Slurm]:
    """A cluster of one node in a folder of its own, ready for jobs; stopped in the end."""
    if lacking := missing():
        raise RuntimeError(f"not installed: {', '.join(lacking)}; apt-get install slurm-wlm munge")
    if LINK.is_file() and not _left_over():
        raise RuntimeError(f"{LINK} is there: this machine has a Slurm, or one of these is running")
    folder = folder.absolute()
    _write(folder)
    LINK.unlink(missing_ok=True)
    LINK.symlink_to(folder / "slurm.conf")
    slurm = Slurm(folder)
    try:
        places = [
            f"--{name}={folder}/munge.{name.split('-')[0]}"
            for name in ("socket", "pid-file", "log-file", "seed-file")
        ]
        slurm.start("munged", "--foreground", "--force", f"--key-file={folder}/munge.key", *places)
        slurm.start("slurmctld", "-D", "-c")
        slurm.start_node()
        yield slurm
    finally:
        slurm.stop()
        LINK.unlink()


def main(arguments: Sequence[str]) -> int:
    """Run a command inside the cluster; its exit code."""
    with one_node(Path(arguments[0])) as slurm:
        return subprocess.run(arguments[1:], env=slurm.environment).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
