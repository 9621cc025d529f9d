"""How a killed instance's slots come up elsewhere, role by role, and how quickly the cluster answers."""

import pathlib
import statistics
import subprocess
import time

import machine

ROLES = ("zookeeper", "kafka", "spark-master", "spark-worker", "stream")
MOMENTS = ("detected_ms", "fenced_ms", "placed_ms", "healthy_ms", "restored_ms")


def drills(region, say):
    """Yields (role, silent, report): an instance of each role in turn, terminated through EC2, then killed with nobody told."""
    for silent in (False, True):
        for role in ROLES:
            region.settle()
            words = ["drill", "--role", role, *(["--silent"] if silent else [])]
            try:
                report = region.json(*words, codes=(0, 2))
            except RuntimeError as problem:
                report = {"error": str(problem)}
            say(f"drill {role}{' silent' if silent else ''}: " + ", ".join(f"{name[:-3]} {report.get(name)}" for name in MOMENTS) + f" {report.get('error', '')}")
            yield role, silent, report


def leader(region, say):
    """The leading coordinator's instance terminated: when another leads. Its successor joins by itself, later than is waited for here."""
    region.settle()
    try:
        report = region.json("drill", "--coordinator", str(region.json("status")["leader"]), "--timeout", "20", codes=(0, 2))
    except RuntimeError as problem:
        report = {"error": str(problem)}
    say(f"drill of the leader: another led after {report.get('led_ms')} ms {report.get('error', '')}")
    return report


def status_latency(region, calls=20):
    """Seconds of `vpctl status`, program start and connection included."""
    times = []
    for _ in range(calls):
        begin = time.monotonic()
        region.call("status", check=False)
        times.append(time.monotonic() - begin)
    return statistics.median(times), max(times)


def command_name(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def agents(region):
    """Pids of the region's agents."""
    table = machine.processes()
    inside = set(region.service_pids())
    while fresh := {pid for pid, (parent, _, _) in table.items() if parent in inside and pid not in inside}:
        inside |= fresh
    return sorted(pid for pid in inside if command_name(pid) == "vp-agent")


def agents_at_rest(region, seconds=60):
    """[(pid, RSS in MiB, share of a core)] of each agent over a window in which nobody asks for anything."""
    before = {pid: machine.own_cpu_s(pid) for pid in agents(region)}
    begin = time.monotonic()
    until = begin + seconds
    while (left := until - time.monotonic()) > 0:
        time.sleep(left)
    spent = time.monotonic() - begin
    return [(pid, machine.rss_mib(pid), (machine.own_cpu_s(pid) - cpu) / spent) for pid, cpu in before.items() if command_name(pid) == "vp-agent"]


def rest(region, seconds=20):
    """CPU seconds a second of the whole region with no job."""
    begin, cpu = time.monotonic(), region.account.cpu_s()
    while time.monotonic() < begin + seconds:
        time.sleep(0.5)
    return (region.account.cpu_s() - cpu) / (time.monotonic() - begin)


def binary_mib(program):
    return pathlib.Path(program).stat().st_size / 2**20


def version(command):
    return subprocess.check_output(command, text=True).splitlines()[0]
