"""The rows of docs/reliability.md: run, counted and written down one by one, so that a stopped run goes on."""

import argparse
import datetime
import fcntl
import os
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "reliability.md"
PACKAGES = ("vq_prior", "stage1_vqvae", "stage2_prior")
ROWS = [f"R{number}" for number in range(1, 17)]


def git(*words: str) -> str:
    """Return what git prints."""
    return subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def run_row(row: str, *, full: bool) -> tuple[str, str, str]:
    """Run the tests of a row; return outcome, faults planted, and seed."""
    environment = os.environ | ({"VQ_PRIOR_FAULTS": "full"} if full else {})
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "--fault", row, f"--junitxml={report}"]
        command += ["-o", "junit_family=xunit1"]  # the one that knows properties
        code = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
        if not report.exists():
            return f"pytest ended with {code}", "", ""
        suite = ElementTree.parse(report).getroot()
    tests = [case for case in suite.iter("testcase") if case.find("skipped") is None]
    failed = [case for case in tests if case.find("failure") is not None or case.find("error") is not None]
    told: dict[str, list[str]] = {"count": [], "seed": [], "figure": []}
    for case in tests:
        for entry in case.iter("property"):
            told.setdefault(entry.get("name", ""), []).append(entry.get("value", ""))
    outcome = f"{len(tests)} tests passed" if tests and not failed else f"{len(failed)} of {len(tests)} tests FAILED"
    outcome = "; ".join([outcome, *told["figure"]])
    return outcome, str(sum(map(int, told["count"])) or ""), " ".join(sorted(set(told["seed"])))


def write_line(row: str, line: str) -> None:
    """Put the line of a row in the place of the one that is there; others may write theirs at the same time."""
    with PAGE.open("r+", encoding="utf-8") as page:
        fcntl.flock(page, fcntl.LOCK_EX)
        text = re.sub(rf"^\| {row} \|.*$", lambda _: line, page.read(), count=1, flags=re.M)
        page.seek(0)
        page.write(text)
        page.truncate()


def main() -> int:
    """Run what was asked for and return 1 if a row failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="ROW", help="R1 to R16; all without one")
    parser.add_argument("--full", action="store_true", help="at full count")
    asked = parser.parse_args()
    commit = git("log", "-1", "--format=%h", "--", *PACKAGES)
    if asked.full and git("status", "--porcelain", "--", *PACKAGES):
        print("error: the packages hold changes that are not committed; commit them, then run this", file=sys.stderr)
        return 2
    failures = 0
    for row in asked.rows or ROWS:
        line = re.search(rf"^\| {row} \|.*$", PAGE.read_text(encoding="utf-8"), re.M)
        if line is None:
            print(f"error: {PAGE} has no row {row}", file=sys.stderr)
            return 2
        cells = [cell.strip() for cell in line[0].strip("|").split("|")]
        if asked.full and not asked.rows and cells[5] == commit and "passed" in cells[2]:
            print(f"{row}: {cells[2]} at {commit} already", flush=True)
            continue
        outcome, count, seed = run_row(row, full=asked.full)
        failures += "passed" not in outcome
        print(f"{row}: {outcome}, {count or 'no'} faults counted", flush=True)
        if asked.full:
            today = datetime.datetime.now(datetime.UTC).date().isoformat()
            cells[2:7] = [outcome, count or "-", today, commit, seed or "-"]
            write_line(row, "| " + " | ".join(cells) + " |")
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
