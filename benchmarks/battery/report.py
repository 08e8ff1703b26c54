"""The battery's results: one JSON file that grows run by run, and a text that lists every p-value."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import judge
import plan
from direct import THRESHOLDS, lattice_tail
from llvmlite.binding import get_host_cpu_name
from scipy import stats
from streams import STREAMS, Source
from testu01 import Result
from variants import VARIANTS

Record = dict[str, Any]


class Report:
    """Runs on disk.

    Attributes:
        data: what the JSON file holds.
    """

    def __init__(self, path: Path, *, fresh: bool) -> None:
        self.path = path
        self.data: Record = {"runs": []}
        if path.exists() and not fresh:
            self.data = json.loads(path.read_text())
        self.fingerprints = {name: stream.fingerprint(Source()) for name, stream in STREAMS.items()}
        if self.data.setdefault("fingerprints", self.fingerprints) != self.fingerprints:
            raise SystemExit(f"{path.name} was made with other bits of noise: start anew with --fresh")

    def has(self, job: plan.Job) -> bool:
        return any(run["name"] == job.name for run in self.data["runs"])

    def add(self, job: plan.Job, results: list[Result], seconds: float) -> None:
        """One run; ``seconds`` of CPU time, making the stream included."""
        self.data["runs"].append(
            {
                "name": job.name,
                "generator": job.generator,
                "stream": job.stream,
                "suite": job.suite,
                "repeat": job.repeat,
                "seed": job.seed,
                "seconds": round(seconds, 1),
                "results": [result.row() for result in results],
            }
        )
        self.save()

    def results(self, generator: str) -> list[tuple[Record, Record]]:
        """(run, result) of every first p-value of a generator."""
        return [
            (run, result)
            for run in self.data["runs"]
            if run["generator"] == generator and run["repeat"] == 0
            for result in run["results"]
        ]

    def doubtful(self) -> list[tuple[str, str]]:
        """(name of the run, test) of the noise's p-values that call for repeats."""
        rows = self.results("zotune")
        return [(run["name"], row["test"]) for run, row in rows if judge.is_doubtful(row["p"], len(rows))]

    def repeats(self, jobs: list[plan.Job]) -> list[plan.Job]:
        """The jobs that repeat doubtful tests."""
        by_name = {job.name: job for job in jobs}
        return [
            by_name[name].again(test, repeat)
            for name, test in self.doubtful()
            if name in by_name
            for repeat in range(1, judge.REPEATS + 1)
        ]

    def _repeated(self, name: str, test: str) -> list[float]:
        """p-values of the repeats of one test."""
        run = next(run for run in self.data["runs"] if run["name"] == name)
        return [
            row["p"]
            for other in self.data["runs"]
            if other["repeat"] and other["generator"] == run["generator"]
            if (other["stream"], other["suite"]) == (run["stream"], run["suite"])
            for row in other["results"]
            if row["test"] == test
        ]

    def verdict(self, generator: str) -> Record:
        """The rule of `judge` on all first p-values of a generator."""
        rows = self.results(generator)
        found = judge.judge([row["p"] for _, row in rows])
        failing = [f"{run['stream']} ({run['suite']})" for run, row in rows if judge.two_sided(row["p"]) < judge.CLEAR]
        repeats = []
        if generator == "zotune":
            repeats = [{"run": name, "test": test, "p": self._repeated(name, test)} for name, test in self.doubtful()]
        confirmed = sum(judge.repeat_failed(repeat["p"]) for repeat in repeats)
        return {
            "p_values": found.tests,
            "failed": found.failed + confirmed,
            "failed_on": sorted(set(failing)),
            "doubtful": found.doubtful,
            "repeats": repeats,
            "q_below_0.01": found.low,
            "expected_below_0.01": found.low_expected,
            "tail_of_that_number": round(found.low_tail, 4),
            "smallest_q": found.smallest,
            "passes": not found.failed and not confirmed and found.in_order,
            "numbers": sum(amounts(run) for run in self.data["runs"] if run["generator"] == generator),
        }

    def save(self) -> None:
        generators = dict.fromkeys(run["generator"] for run in self.data["runs"])
        self.data["about"] = "p-values are right tails; words of direct tests count numbers, of TestU01 32-bit words"
        self.data["rule"] = {
            "clear_failure_q": judge.CLEAR,
            "doubtful_q_times_N": judge.ALL_TESTS,
            "repeats": judge.REPEATS,
            "repeat_q": judge.REPEAT,
            "set_q": judge.LOW,
            "set_tail": judge.SET,
        }
        self.data["machine"] = {"processor": get_host_cpu_name(), "python": platform.python_version()}
        self.data["verdicts"] = {name: self.verdict(name) for name in generators}
        self.data["meanings"] = {name: variant.meaning for name, variant in VARIANTS.items()}
        self.data["tails"] = [
            {"t": t, "standard normal": 2 * float(stats.norm.sf(t)), "this Gaussian": lattice_tail(t)}
            for t in THRESHOLDS
        ]
        self.data["seconds"] = round(sum(run["seconds"] for run in self.data["runs"]), 1)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.data, indent=1) + "\n")
        self.path.with_suffix(".txt").write_text(self.text())

    def text(self) -> str:
        """Verdicts, then every run with every p-value; ``!`` marks clear failures, ``?`` q < 0.01."""
        lines = ["verdicts (rule: benchmarks/battery/judge.py)", ""]
        for name, verdict in self.data["verdicts"].items():
            word = "passes" if verdict["passes"] else "FAILS"
            lines.append(
                f"{name:16} {word:7} p-values {verdict['p_values']:5}  failed {verdict['failed']:4}  q < 0.01: "
                f"{verdict['q_below_0.01']} (expected {verdict['expected_below_0.01']})  smallest q "
                f"{verdict['smallest_q']:.2g}"
            )
        for run in self.data["runs"]:
            lines += ["", f"{run['name']}   seed {run['seed']}, {run['seconds']} s"]
            for row in run["results"]:
                q = judge.two_sided(row["p"])
                mark = "!" if q < judge.CLEAR else "?" if q < judge.LOW else " "
                lines.append(f"  {mark} {row['test']:55} p {row['p']:<12.6g} {row['words']:12}")
        return "\n".join(lines) + "\n"


def amounts(run: Record) -> int:
    """Words (or numbers) read in a run: a test's amount stands once, although it may give several p-values."""
    if run["suite"] == "direct":
        return max(row["words"] for row in run["results"])
    return sum({row["test"].split()[0]: row["words"] for row in run["results"]}.values())
