"""docs/benchmarks.md from what was measured. A missed target stands there as missed, with what it is due to."""

import statistics

import healing


def mark(value, target, below=True):
    met = value <= target if below else value >= target
    return "met" if met else "**missed**"


def both(values, digits=1):
    """Median (worst)."""
    return f"{statistics.median(values):.{digits}f} ({max(values):.{digits}f})"


def middle(runs, of):
    return statistics.median(of(run) for run in runs)


def ms(value):
    return "not seen" if value is None else f"{value / 1000:.1f} s"


def head(facts):
    return [
        "# Benchmarks",
        "",
        "Written by `make bench` (`tests/bench`): do not edit by hand. Figures, never pass or fail: a test says what must hold, this says how fast it is.",
        "The coordinators beside etcd (A1, A2, A4 of a killed process, A5): [benchmarks-core.md](benchmarks-core.md).",
        "",
        f"- date: {facts['date']}, commit {facts['commit']}",
        f"- machine: {facts['machine']}",
        f"- command: `{facts['command']}`; region of 5 nodes, up and healthy in {facts['up_s']:.0f} s; the programs of `make build` (debug profile) unless said otherwise",
        f"- {facts['ffmpeg']}",
        f"- CPU seconds of vp: {facts['method']}: instances, coordinators, JVMs, the local S3 and AWS APIs, with what they use at rest; of ffmpeg: rusage",
        "- others: the share of the machine's cores that other programs used meanwhile. Above some 10 % the wall times say more about the neighbours than about vp.",
        "",
    ]


def pipeline(clips):
    lines = ["## Pipeline beside one plain ffmpeg (target B1: ≥ 5 min of 720p)", ""]
    lines += ["Recipe `360p`: height 360, x264 veryfast, crf 23, one thread, AAC 96 kbit/s, faststart; both at nice 15, by turns. Median (worst).", ""]
    lines += ["| clip | side | turns | wall s | CPU s | bytes | SSIM | others |", "|---|---|---|---|---|---|---|---|"]
    for name, runs in clips:
        for side, of_side in runs.items():
            cells = [name, side, str(len(of_side)), both([r.wall_s for r in of_side]), both([r.cpu_s for r in of_side]), str(int(middle(of_side, lambda r: r.bytes)))]
            cells += [f"{min(r.ssim for r in of_side):.5f}", f"{middle(of_side, lambda r: r.foreign):.0%}"]
            lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "| clip | ratio | measured | target | |", "|---|---|---|---|---|"]
    for name, runs in clips:
        plain, ours = runs["ffmpeg"], runs["pipeline"]
        wall, cpu = (statistics.median(of(o) / of(p) for o, p in zip(ours, plain, strict=True)) for of in (lambda r: r.wall_s, lambda r: r.cpu_s))
        bigger = middle(ours, lambda r: r.bytes) / middle(plain, lambda r: r.bytes) - 1
        drop = min(r.ssim for r in plain) - min(r.ssim for r in ours)
        lines.append(f"| {name} | wall, of each turn | {wall:.2f}× | ≤ 1.10× | {mark(wall, 1.10)} |")
        lines.append(f"| {name} | CPU seconds, of each turn | {cpu:.2f}× | ≤ 1.20× | {mark(cpu, 1.20)} |")
        lines.append(f"| {name} | size | {bigger:+.1%} | ≤ +2 % | {mark(bigger, 0.02)} |")
        lines.append(f"| {name} | SSIM drop | {drop:.5f} | ≤ 0.002 | {mark(drop, 0.002)} |")
    return lines + [""]


def dominates(clips, rest_rate):
    lines = ["What dominates:", ""]
    for name, runs in clips:
        plain, ours = middle(runs["ffmpeg"], lambda r: r.cpu_s), middle(runs["pipeline"], lambda r: r.cpu_s)
        wall = middle(runs["pipeline"], lambda r: r.wall_s)
        idle = rest_rate * wall
        lines.append(
            f"- {name}: of the pipeline's {ours:.0f} CPU s, {plain:.0f} are what one ffmpeg needs, {idle:.0f} the region's own rest "
            f"({rest_rate:.2f} cores: JVMs, AWS APIs, debug builds) for {wall:.0f} s, and {ours - plain - idle:.0f} the work of cutting, Kafka, Spark, "
            "S3, a process start a segment, and joining."
        )
    return lines + [""]


def drills(found, led):
    lines = ["## An instance killed, by role (targets A3, A4)", ""]
    lines += ["Kill → moment, seconds by `vpctl drill -o json`; a whole machine goes, so its other slots as well. *silent*: SIGKILL with nobody told, lease 4 s.", ""]
    lines += ["| killed: one with | how | slots | detected | fenced | placed | healthy | restored | longest wait of a gate |", "|---|---|---|---|---|---|---|---|---|"]
    placed = {False: [], True: []}
    for role, silent, report in found:
        how = "silent" if silent else "EC2"
        if "error" in report:
            lines.append(f"| {role} | {how} | failed: {report['error']} | | | | | | |")
            continue
        if report["placed_ms"] is not None:
            placed[silent].append(report["placed_ms"])
        wait = max(report["waits"], key=lambda w: w["waited_ms"], default=None)
        waited = f"{ms(wait['waited_ms'])}: {wait['subject']}, {wait['closed_by']}" if wait else ""
        times = [ms(report[name]) for name in healing.MOMENTS]
        lines.append("| " + " | ".join([role, how, str(len(report["slots"])), *times, waited]) + " |")
    lines += ["", "| target | measured | target | |", "|---|---|---|---|"]
    for silent, name in ((False, "terminated through EC2 → placed"), (True, "killed, nobody told → placed (A3)")):
        values = placed[silent]
        if values:
            middle_ms, worst = statistics.median(values), max(values)
            verdict = mark(middle_ms, 2500) if mark(middle_ms, 2500) != "met" else mark(worst, 4000)
            lines.append(f"| {name} | median {ms(middle_ms)}, worst {ms(worst)} | p50 ≤ 2.5 s, p99 ≤ 4 s | {verdict} |")
    if led.get("led_ms") is not None:
        lines.append(
            "| leader's whole machine terminated → another leads (A4; of a killed process: benchmarks-core.md) "
            f"| {ms(led['led_ms'])} (once; looked at each 200 ms) | p50 ≤ 400 ms, p99 ≤ 1 s | {mark(led['led_ms'], 400)} |"
        )
    lines += [
        "",
        "Cause of a missed A3: safety comes first. A silent node is given up after its whole lease (4 s here) and then terminated; nothing of it is placed before EC2 says",
    ]
    lines += ["`terminated`, and both the keeper and the coordinator look once a second. A shorter lease and pushed events are the way to 2.5 s.", ""]
    return lines


def small(latency, agents, binary, saturated):
    lines = ["## Status, agent, saturation", "", "| what | measured | target | |", "|---|---|---|---|"]
    if latency:
        median, worst = latency
        lines.append(f"| `vpctl status`, 20 calls, program start included | median {median * 1000:.0f} ms, worst {worst * 1000:.0f} ms | none | |")
    for title, found in agents:
        rss, cpu = max(r for _, r, _ in found), statistics.median(c for _, _, c in found)
        lines.append(f"| agent, RSS, {title} | {rss:.1f} MiB | ≤ 15 MB (A6), ≤ 20 MB (issue) | {mark(rss * 1.048576, 15)} |")
        lines.append(f"| agent, CPU at rest over 60 s, {title} | {cpu:.2%} of a core | ≤ 0.2 % (A6) | {mark(cpu, 0.002)} |")
    if binary:
        lines.append(f"| agent, stripped release binary | {binary:.1f} MiB | ≤ 12 MB (A6) | {mark(binary * 1.048576, 12)} |")
    if saturated:
        lines.append(f"| {saturated['what']} | {saturated['suspicions']} suspicions, {saturated['moves']} moves | 0 | {mark(saturated['suspicions'] + saturated['moves'], 0)} |")
    return lines + [""]
