"""A throw-away Slurm on this machine: four emulated nodes with fake GPUs, on loopback alone, gone without a trace.

Needs Debian's slurm-wlm, munge, slurmdbd and mariadb-server, and root for the fake GPUs (character devices) and for the
names of the nodes in /etc/hosts. Everything else lies in one folder. What has to be said to Slurm for this:

    NoCtldInAddrAny, NoInAddrAny   nobody listens beyond 127.0.0.1
    cred_expire                    a requeued job starts again after ten seconds, not after two minutes
    AccountingStoragePass          slurmdbd is not reached without the munge socket, which AuthInfo alone does not name
    AccountingStorageEnforce       an account that nobody knows is refused
    OverMemoryKill                 memory is watched by sampling, for there are no cgroups
    preempt_send_user_signal       a preempted job gets the warning that it asked for, and time to write a checkpoint
"""

from __future__ import annotations

import fcntl
import getpass
import os
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ACCOUNT = "flowkit"
WARN_PREEMPTED = "SlurmctldParameters=preempt_send_user_signal"
PROGRAMS = ("munged", "mariadbd", "mariadb-install-db", "slurmdbd", "slurmctld", "slurmd", "sbatch")
CLIENTS = ("sbatch", "srun", "squeue", "sacct", "scancel", "scontrol", "sinfo", "sacctmgr", "sstat")
PARTITIONS = """\
PartitionName=rome     Nodes=ALL       DefaultTime=5 MaxTime=5-0 PriorityTier=10 Default=YES
PartitionName=genoa    Nodes=ALL       DefaultTime=5 MaxTime=5-0 PriorityTier=10
PartitionName=staging  Nodes=ALL       DefaultTime=5 MaxTime=5-0 PriorityTier=10
PartitionName=gpu_a100 Nodes=node[1-2] DefaultTime=5 MaxTime=5-0 PriorityTier=10
PartitionName=gpu_h100 Nodes=node[3-4] DefaultTime=5 MaxTime=5-0 PriorityTier=10
PartitionName=short    Nodes=ALL       DefaultTime=1 MaxTime=1   PriorityTier=10
PartitionName=spare    Nodes=node[1-2] DefaultTime=5 MaxTime=5-0 PriorityTier=1 PreemptMode=REQUEUE GraceTime=20
PartitionName=held     Nodes=node4     DefaultTime=5 MaxTime=5-0 PriorityTier=10 State=DOWN
"""


def missing_programs() -> list[str]:
    """Return which programs of Slurm and its helpers are not installed, or that this is not root."""
    missing = [program for program in PROGRAMS if shutil.which(program, path=_search_path()) is None]
    return missing if os.geteuid() == 0 else [*missing, "root"]


class Cluster:
    """A running Slurm; `environment` leads commands to it."""

    nodes = ("node1", "node2", "node3", "node4")

    def __init__(self, base: Path) -> None:
        """Choose names and ports below `base`; nothing runs before `start`."""
        self.base = base
        self._host, self._user = socket.gethostname().partition(".")[0], getpass.getuser()
        ports = _free_ports(4 + len(self.nodes))
        self._controller, self._database, self._store, self._spare, *self._node_ports = ports
        self._children: list[subprocess.Popen[bytes]] = []
        self._watch: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        """The variables under which clients find this cluster, whatever a caller strips of SLURM_* variables."""
        return {
            "SLURM_CONF": str(self.base / "etc/slurm.conf"),
            "PATH": f"{self.base / 'bin'}:{_search_path()}",
            "GLOO_SOCKET_IFNAME": "lo",
        }

    def start(self) -> None:
        """Bring everything up; raises `TimeoutError` naming what did not come."""
        for name in ("etc", "log", "run", "state", "spool", "database", "dev", "bin"):
            (self.base / name).mkdir(parents=True)
        self._watch = subprocess.Popen([sys.executable, __file__, str(os.getpid()), str(self.base)])
        for folder in (self.base, self.base / "run"):
            folder.chmod(0o755)
        self._start_munge()
        self._start_database()
        self._write_config()
        self._name_nodes()
        self._launch("slurmctld")
        _wait_for("slurmctld", lambda: self.call("scontrol", "ping", check=False).returncode == 0)
        for node in self.nodes:
            self._launch("slurmd", "-N", node)
        self._register_account()
        _wait_for(
            "idle nodes", lambda: len(self.ask("sinfo", "-hN", "-prome", "-tidle", "-o%N").split()) == 4
        )

    def stop(self) -> None:
        """Cancel all jobs, end every daemon by its process number, and remove the names of the nodes."""
        if self._watch is not None:
            self._watch.kill()
            self._watch.wait()
        jobs = self.call("squeue", "-h", "-o%A", check=False).stdout.split()
        if jobs:
            self.call("scancel", "--signal=KILL", "--full", *jobs, check=False)
            self.call("scancel", *jobs, check=False)
        for pattern in ("slurmd.*.pid", "slurmctld.pid", "slurmdbd.pid", "mariadbd.pid", "munged.pid"):
            self._end([int(file.read_text()) for file in (self.base / "run").glob(pattern)])
        with Path("/etc/hosts").open("r+") as hosts:  # in place: it may be a mount
            fcntl.flock(hosts, fcntl.LOCK_EX)
            kept = [line for line in hosts if str(self.base) not in line]
            hosts.seek(0)
            hosts.truncate()
            hosts.writelines(kept)
        shutil.rmtree(self.base / "dev")

    def call(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command under this cluster."""
        return subprocess.run(
            command,
            env=os.environ | self.environment,
            capture_output=True,
            text=True,
            check=check,
            timeout=60,
        )

    def ask(self, *command: str) -> str:
        """Return what a command prints."""
        return self.call(*command).stdout.strip()

    def jobs(self) -> dict[int, str]:
        """Return the state of every job that the controller remembers, by number."""
        lines = self.ask("squeue", "-h", "-tall", "-o%A %T").splitlines()
        return {int(number): state for number, state in (line.split() for line in lines)}

    def warn_preempted(self, is_warned: bool) -> None:
        """Whether a preempted job gets the signal that it asked for with `--signal`; if not, SIGTERM."""
        config = self.base / "etc/slurm.conf"
        silent = config.read_text().replace(f"{WARN_PREEMPTED}\n", "")
        config.write_text(f"{WARN_PREEMPTED}\n{silent}" if is_warned else silent)
        self.call("scontrol", "reconfigure")

    @contextmanager
    def without_node_of(self, job: int) -> Iterator[None]:
        """Take the first node of a job from it, as when it fails; it is back at the latest after the block."""
        node = self.ask("squeue", "-h", f"-j{job}", "-o%B")
        self.call("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")
        try:
            yield
        finally:  # its daemon may have brought it back
            self.call("scontrol", "update", f"NodeName={node}", "State=RESUME", check=False)

    def _start_munge(self) -> None:
        key = self.base / "etc/munge.key"
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o600)
        run = self.base / "run"
        self._launch(
            "munged",
            f"--key-file={key}",
            f"--socket={run / 'munge.sock'}",
            f"--pid-file={run / 'munged.pid'}",
            f"--log-file={self.base / 'log/munged.log'}",
            f"--seed-file={run / 'munged.seed'}",
            "--num-threads=2",
        )
        _wait_for("munged", (run / "munge.sock").exists)

    def _start_database(self) -> None:
        data, run, log = self.base / "database", self.base / "run", self.base / "log"
        (self.base / "temporary").mkdir()
        own = (f"--datadir={data}", f"--tmpdir={self.base / 'temporary'}")
        who = ("--no-defaults", f"--user={self._user}", *own, "--skip-name-resolve")
        self._launch("mariadb-install-db", *who, "--auth-root-authentication-method=normal", "--skip-test-db")
        server = subprocess.Popen(
            [
                "mariadbd",
                *who,
                f"--socket={run / 'mariadb.sock'}",
                f"--pid-file={run / 'mariadbd.pid'}",
                "--bind-address=127.0.0.1",
                f"--port={self._store}",
                "--innodb-buffer-pool-size=64M",
                "--innodb-flush-log-at-trx-commit=0",
                "--skip-log-bin",
                f"--log-error={log / 'mariadbd.log'}",
            ],
            env=os.environ | self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._children.append(server)
        client = ("mariadb", "--no-defaults", "-uroot", f"--socket={run / 'mariadb.sock'}")
        _wait_for("mariadbd", lambda: self.call(*client, "-eselect 1", check=False).returncode == 0)
        password = secrets.token_hex(12)
        self.call(
            *client,
            "-e",
            "create database slurm_acct;"
            f"create user 'slurm'@'127.0.0.1' identified by '{password}';"
            "grant all on slurm_acct.* to 'slurm'@'127.0.0.1';",
        )
        config = self.base / "etc/slurmdbd.conf"
        config.touch(mode=0o600)
        config.write_text(
            f"""\
AuthType=auth/munge
AuthInfo=socket={run}/munge.sock
DbdHost={self._host}
DbdAddr=127.0.0.1
DbdPort={self._database}
SlurmUser={self._user}
LogFile={log}/slurmdbd.log
PidFile={run}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={self._store}
StorageUser=slurm
StoragePass={password}
StorageLoc=slurm_acct
CommunicationParameters=NoInAddrAny
"""
        )
        (self.base / "etc/slurm.conf").write_text("")  # slurmdbd looks for its own file beside this one
        self._launch("slurmdbd")
        _wait_for("slurmdbd", lambda: _listens(self._database))

    def _write_config(self) -> None:
        for number in range(4):
            os.mknod(
                self.base / f"dev/gpu{number}", 0o666 | stat.S_IFCHR, os.makedev(1, 3)
            )  # twins of /dev/null
        devices = f"File={self.base}/dev/gpu[0-3]"
        (self.base / "etc/gres.conf").write_text(
            "AutoDetect=off\n"
            f"NodeName=node[1-2] Name=gpu Type=a100 {devices}\n"
            f"NodeName=node[3-4] Name=gpu Type=h100 {devices}\n"
        )
        (self.base / "etc/cgroup.conf").write_text("CgroupAutomount=no\nConstrainRAMSpace=no\n")
        (self.base / "etc/slurm.conf").write_text(self._slurm_conf())
        for client in CLIENTS:
            shim = self.base / "bin" / client
            program = shutil.which(client, path=_search_path())
            shim.write_text(f'#!/bin/sh\nSLURM_CONF={self.base}/etc/slurm.conf exec {program} "$@"\n')
            shim.chmod(0o755)

    def _slurm_conf(self) -> str:
        base, ports = self.base, self._node_ports
        shapes = ("CPUs=72 RealMemory=491520 Gres=gpu:a100:4", "CPUs=64 RealMemory=737280 Gres=gpu:h100:4")
        nodes = "".join(
            f"NodeName={name} NodeHostname={self._host} NodeAddr=127.0.0.1 Port={port} {shapes[index // 2]}\n"
            for index, (name, port) in enumerate(zip(self.nodes, ports, strict=True))
        )
        return f"""\
ClusterName=throwaway
SlurmctldHost={self._host}(127.0.0.1)
SlurmctldPort={self._controller}
SlurmUser={self._user}
SlurmdUser={self._user}
AuthType=auth/munge
AuthInfo=socket={base}/run/munge.sock,cred_expire=10
CredType=cred/munge
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation={base}/state
SlurmdSpoolDir={base}/spool/%n
SlurmctldPidFile={base}/run/slurmctld.pid
SlurmdPidFile={base}/run/slurmd.%n.pid
SlurmctldLogFile={base}/log/slurmctld.log
SlurmdLogFile={base}/log/slurmd.%n.log
PlugStackConfig=/dev/null
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=2
JobAcctGatherParams=OverMemoryKill
MpiDefault=none
SwitchType=switch/none
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
{WARN_PREEMPTED}
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
KillWait=5
MinJobAge=600
SlurmctldTimeout=60
SlurmdTimeout=20
JobRequeue=1
DefMemPerCPU=1024
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={self._database}
AccountingStoragePass={base}/run/munge.sock
AccountingStorageTRES=gres/gpu
AccountingStorageEnforce=associations
GresTypes=gpu
{nodes}{PARTITIONS}"""

    def _register_account(self) -> None:
        _wait_for(
            "the cluster's registration",
            lambda: "throwaway" in self.ask("sacctmgr", "-nP", "show", "cluster", "format=cluster"),
        )
        self.call("sacctmgr", "-i", "add", "account", ACCOUNT, "Description=tests", "Organization=tests")
        self.call(
            "sacctmgr", "-i", "add", "user", self._user, f"Account={ACCOUNT}", f"DefaultAccount={ACCOUNT}"
        )

    def _name_nodes(self) -> None:
        """torch.distributed and submitit connect to the first node by its name."""
        with Path("/etc/hosts").open("a") as hosts:
            fcntl.flock(hosts, fcntl.LOCK_EX)
            hosts.writelines(f"127.0.0.1 {node} # {self.base}\n" for node in self.nodes)

    def _end(self, processes: list[int], seconds: float = 5.0) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            for process in processes:
                _send(process, number)
            deadline = time.monotonic() + seconds
            while any(_send(process, 0) for process in processes) and time.monotonic() < deadline:
                for child in self._children:
                    child.poll()
                time.sleep(0.05)

    def _launch(self, *command: str) -> None:
        """Run a program that goes into the background by itself, or ends."""
        log = self.base / "log" / f"{command[0]}.start.log"
        with log.open("ab") as output:
            subprocess.run(
                command,
                env=os.environ | self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                check=True,
                timeout=120,
            )


def _search_path() -> str:
    return f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"


def _free_ports(count: int) -> list[int]:
    held = [socket.socket() for _ in range(count)]
    try:
        for one in held:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in held]
    finally:
        for one in held:
            one.close()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _wait_for(what: str, is_there: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not is_there():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not come within {seconds:.0f} s")
        time.sleep(0.05)


def _send(process: int, number: int) -> bool:
    try:
        os.kill(process, number)
    except ProcessLookupError:
        return False
    return True


def _stop_after(process: int, base: Path) -> None:
    """Stop a cluster when the process that started it was killed before it could."""
    while _send(process, 0):
        time.sleep(1)
    Cluster(base).stop()
    shutil.rmtree(base)


if __name__ == "__main__":
    _stop_after(int(sys.argv[1]), Path(sys.argv[2]))
