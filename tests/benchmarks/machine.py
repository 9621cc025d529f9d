"""What a measurement stands on: the machine, the CPU seconds of a region, of one program, and of everything else.

CPU of a region: where the machine has the `cpuacct` hierarchy and lets us (root), the region is started inside a group of
its own there, and everything it ever starts stays in it (the keeper makes its instances' groups in other hierarchies).
Elsewhere: the sum over the region's processes of their own and their reaped children's times; a process that dies
unreaped is lost, so that figure is a lower bound.
"""

import datetime
import json
import os
import pathlib
import subprocess
import tempfile
import time

TICKS = os.sysconf("SC_CLK_TCK")
ACCOUNTING = pathlib.Path("/sys/fs/cgroup/cpuacct")


def describe():
    """One line about the machine."""
    model = next((line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "unknown processor")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    system = os.uname()
    return f"{os.cpu_count()} cores ({model}), {memory:.0f} GiB, {system.sysname} {system.release} {system.machine}"


def now():
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")


def busy_s():
    """CPU seconds that all processes of the machine have used, without idle, I/O wait and stolen time."""
    with open("/proc/stat") as stat:
        user, nice, system, _idle, _iowait, irq, softirq = map(int, stat.readline().split()[1:8])
    return (user + nice + system + irq + softirq) / TICKS


class Account:
    """CPU seconds of everything that was started with `run` and of its descendants."""

    def __init__(self, name):
        self.group = None
        self.roots = lambda: []
        if os.geteuid() == 0 and (ACCOUNTING / "cgroup.procs").exists():
            group = ACCOUNTING / f"vp-bench-{name}-{os.getpid()}"
            group.mkdir()
            self.group = group

    @property
    def method(self):
        return "control group (cpuacct) of the whole region" if self.group else "sum over the region's processes in /proc (lower bound)"

    def enter(self):
        """Run in a child before exec."""
        if self.group:
            (self.group / "cgroup.procs").write_text(str(os.getpid()))

    def cpu_s(self):
        if self.group:
            return int((self.group / "cpuacct.usage").read_text()) / 1e9
        return tree_cpu_s(self.roots())

    def close(self):
        if self.group:
            until = time.monotonic() + 10
            while time.monotonic() < until:
                try:
                    self.group.rmdir()
                    return
                except OSError:
                    time.sleep(0.1)
            print(f"bench: {self.group} is not empty: something outlived the region", flush=True)


def processes():
    """pid → (parent, CPU seconds with reaped children, command)."""
    found = {}
    for folder in pathlib.Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            head, tail = (folder / "stat").read_text().rsplit(")", 1)
        except OSError:
            continue
        fields = tail.split()
        found[int(folder.name)] = (int(fields[1]), sum(map(int, fields[11:15])) / TICKS, head.split("(", 1)[1])
    return found


def tree_cpu_s(roots):
    table = processes()
    inside = set(roots)
    grown = True
    while grown:
        fresh = {pid for pid, (parent, _, _) in table.items() if parent in inside and pid not in inside}
        inside |= fresh
        grown = bool(fresh)
    return sum(table[pid][1] for pid in inside if pid in table)


def rss_mib(pid):
    for line in open(f"/proc/{pid}/status"):
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def own_cpu_s(pid):
    """User and system time of one process, all threads, without children; finer than ticks where the kernel says."""
    try:
        return sum(int((task / "schedstat").read_text().split()[0]) for task in pathlib.Path(f"/proc/{pid}/task").iterdir()) / 1e9
    except OSError:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICKS


class Region:
    """A local region of its own, started and taken away by a bench."""

    def __init__(self, vpctl, name, network, account=None, extra=()):
        self.vpctl, self.name, self.network, self.account, self.extra = str(vpctl), name, network, account, list(extra)

    def call(self, *words, check=True, timeout=600, **options):
        command = [self.vpctl, "--region-name", self.name, *words]
        return subprocess.run(command, check=check, text=True, capture_output=True, timeout=timeout, **options)

    def json(self, *words, codes=(0, 2, 3), timeout=600):
        answer = self.call("-o", "json", *words, check=False, timeout=timeout)
        if answer.returncode not in codes:
            raise RuntimeError(f"vpctl {' '.join(words)} ended with {answer.returncode}: {answer.stderr.strip()}")
        return json.loads(answer.stdout)

    def __enter__(self):
        network = [] if self.network is None else ["--network", str(self.network)]
        enter = self.account.enter if self.account else None
        begin = time.monotonic()
        # To a file, not a pipe: the region's services are told apart from the caller, who would wait for a pipe's end.
        with tempfile.TemporaryFile("w+") as log:
            command = [self.vpctl, "--region-name", self.name, "dev", "up", *network, *self.extra]
            code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, preexec_fn=enter).returncode
            if code != 0:
                log.seek(0)
                self.__exit__(None, None, None)
                raise RuntimeError(f"dev up ended with {code}:\n{log.read()}")
        self.up_s = time.monotonic() - begin
        if self.account:
            self.account.roots = self.service_pids
        return self

    def service_pids(self):
        state = pathlib.Path(os.environ.get("XDG_STATE_HOME") or pathlib.Path.home() / ".local/state") / "vp" / self.name
        services = json.loads((state / "region.json").read_text())["services"]
        pids = [one["pid"] for one in services.values()]
        for disk in (state / "instances").glob("*/init.json"):
            pids.append(json.loads(disk.read_text())["pid"])
        return pids

    def __exit__(self, *_):
        self.call("dev", "down", check=False)

    def settle(self, seconds=180):
        """Waits until the cluster is healthy."""
        until = time.monotonic() + seconds
        while True:
            answer = self.call("status", check=False)
            if answer.returncode == 0:
                return
            if time.monotonic() > until:
                raise RuntimeError(f"not healthy within {seconds} s:\n{answer.stdout}{answer.stderr}")
            time.sleep(0.5)
