"""The statistical battery for the noise: TestU01 on the streams as training reads them, and direct tests.

    python benchmarks/battery/run.py [--quick] [--minutes M] [--only WORD ...] [--list] [--fresh] [--output FILE]

Runs that are in the results already are skipped, so that the battery can be done in pieces (``--minutes``).  Needs gcc
and TestU01 (Debian, section non-free: libtestu01-0-dev).  See docs/noise-quality.md.
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path

import plan
import rounds
import testu01
from report import Report

RESULTS = Path(__file__).resolve().parents[1] / "results" / "battery.json"


def cpu_time() -> float:
    """Seconds of this process and of its finished children."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def work(jobs: list[plan.Job], report: Report, deadline: float) -> bool:
    """Run what is missing; False if time ran out first."""
    for job in jobs:
        if report.has(job):
            continue
        if time.monotonic() > deadline:
            return False
        begin = cpu_time()
        results = job.run()
        report.add(job, results, cpu_time() - begin)
        worst = min(min(result.p, 1 - result.p) for result in results)
        print(
            f"{job.name}: {len(results)} p-values, nearest to an end {worst:.3g}, {cpu_time() - begin:.0f} s",
            flush=True,
        )
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few minutes; the results stay under build/")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no further run after so many")
    parser.add_argument("--only", nargs="+", default=[], help="runs whose name contains one of these words")
    parser.add_argument("--list", action="store_true", help="name the runs and stop")
    parser.add_argument("--fresh", action="store_true", help="forget earlier results")
    parser.add_argument("--timing", action="store_true", help="measure the time of fewer rounds, nothing else")
    parser.add_argument("--output", type=Path, help="JSON file of the results; a .txt is written beside it")
    options = parser.parse_args()
    jobs = plan.quick() if options.quick else plan.full()
    if options.only:
        jobs = [job for job in jobs if any(word in job.name for word in options.only)]
    if options.list:
        print("\n".join(job.name for job in jobs))
        return
    testu01.driver()  # say at once what is missing
    output = options.output or (testu01.BUILD / "quick.json" if options.quick else RESULTS)
    report = Report(output, fresh=options.fresh or (options.quick and options.output is None))
    deadline = time.monotonic() + options.minutes * 60
    done = options.timing or (work(jobs, report, deadline) and work(report.repeats(jobs), report, deadline))
    if options.timing or (done and not (options.quick or options.only or "timing" in report.data)):
        report.data["timing"] = {"unit": "ns of CPU time per weight, one thread", "median": rounds.measure()}
        report.save()
    for name, verdict in report.data["verdicts"].items():
        word = "passes" if verdict["passes"] else "fails"
        print(f"{name:16} {word}: {verdict['failed']} of {verdict['p_values']} failed")
    print(f"results: {output}" + ("" if done else "; time was up, the same command goes on"))


if __name__ == "__main__":
    main()
