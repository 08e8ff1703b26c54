"""TestU01 (L'Ecuyer and Simard 2007) on a stream: our driver is compiled once, then fed through a pipe."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from streams import Words

HERE = Path(__file__).parent
BUILD = HERE / "build"
LIBRARIES = ("-ltestu01", "-ltestu01probdist", "-ltestu01mylib", "-lm")


@dataclass(frozen=True, kw_only=True)
class Result:
    """One p-value.

    Args:
        test: number of the test in its suite, and its name.
        p: right tail, as TestU01 gives it; values near 0 and near 1 both speak against the stream.
        words: 32-bit words the test read.
        seconds: of the driver's CPU time.
    """

    test: str
    p: float
    words: int
    seconds: float

    def row(self) -> dict[str, Any]:
        return asdict(self)


def driver() -> Path:
    """The compiled driver.

    Raises:
        SystemExit: with one sentence, if gcc or TestU01 is missing.
    """
    source = HERE / "driver.c"
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise SystemExit("the battery compiles a small C program: install gcc first (Debian: apt-get install gcc)")
    binary = BUILD / f"driver-{hashlib.sha256(source.read_bytes()).hexdigest()[:8]}"
    if binary.exists():
        return binary
    BUILD.mkdir(exist_ok=True)
    made = subprocess.run([compiler, "-O2", "-o", str(binary), str(source), *LIBRARIES], capture_output=True, text=True)
    if made.returncode:
        raise SystemExit(
            "TestU01 was not found: install it first (Debian, section non-free: apt-get install libtestu01-0-dev); "
            f"the compiler said: {made.stderr.strip().splitlines()[0] if made.stderr.strip() else made.returncode}"
        )
    return binary


def run(arguments: Iterable[str], chunks: Iterable[Words]) -> list[Result]:
    """Results of the driver on the words of ``chunks``, which are drawn until the last test has read enough."""
    with tempfile.TemporaryFile("w+") as report, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen([driver(), *arguments], stdin=subprocess.PIPE, stdout=report, stderr=errors)
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError), process.stdin:  # the driver leaves when it has read enough
            for chunk in chunks:
                process.stdin.write(memoryview(chunk).cast("B"))
        if process.wait():
            errors.seek(0)
            raise SystemExit(f"the driver of TestU01 failed with status {process.returncode}: {errors.read().strip()}")
        report.seek(0)
        return [parse(line) for line in report]


def parse(line: str) -> Result:
    """One line of the driver's report."""
    number, name, p, words, seconds = line.rstrip("\n").split("\t")
    return Result(test=f"{number} {name.strip()}", p=float(p), words=int(words), seconds=float(seconds))
