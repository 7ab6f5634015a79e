"""Known vulnerabilities of what constraints.txt pins.

The status is 1 if there is one. Where the advisory database (osv.dev) cannot be reached nothing is
checked, which is said, and the status is 0.
"""

import argparse
import http.client
import json
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).parents[1]
DATABASE = "https://api.osv.dev/v1/query"
ANSWER_S = 5.0  # of one question
AUDIT_S = 300  # of all of them


def reachable(database: str) -> str | None:
    """Why the database cannot be asked; None if it can."""
    question = {"package": {"name": "pip", "ecosystem": "PyPI"}, "version": "26.0"}
    request = urllib.request.Request(
        database, json.dumps(question).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=ANSWER_S) as answer:  # nosec B310
            json.load(answer)
    except (OSError, http.client.HTTPException, ValueError) as error:
        return str(getattr(error, "reason", None) or error) or type(error).__name__
    return None


def found(pins: Path, database: str) -> list[str]:
    """Of each vulnerability a line: the package, the name, the first version that is mended."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        done = subprocess.run(
            [
                sys.executable, "-m", "pip_audit", f"--requirement={pins}",
                "--no-deps", "--disable-pip",  # the pins are all there is
                "--vulnerability-service=osv", f"--osv-url={database}", f"--timeout={ANSWER_S:g}",
                "--progress-spinner=off", "--format=json", f"--output={report}",
            ],
            capture_output=True, text=True, check=False, timeout=AUDIT_S,
        )  # fmt: skip
        if not report.exists():
            sys.exit(f"audit: pip-audit failed:\n{done.stdout}{done.stderr}")
        packages = json.loads(report.read_text())["dependencies"]
    return [
        f"{package['name']} {package['version']}: {each['id']}, mended in "
        f"{', '.join(each['fix_versions']) or 'no version'}"
        for package in packages
        for each in package.get("vulns", [])
    ]


def main() -> None:
    """Ask, and say what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pins", type=Path, default=ROOT / "constraints.txt")
    parser.add_argument("--database", default=DATABASE, help="the address of OSV's query API")
    given = parser.parse_args()
    reason = reachable(given.database)
    if reason:
        print(f"audit: SKIPPED, {given.database} cannot be reached ({reason})")
        return
    vulnerabilities = found(given.pins, given.database)
    for line in vulnerabilities:
        print(f"audit: {line}")
    if vulnerabilities:
        sys.exit(1)
    print(f"audit: nothing known against {given.pins.name}")


if __name__ == "__main__":
    main()
