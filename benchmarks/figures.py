"""docs/figures.json: every measured figure that a document quotes, and how to have it again."""

import datetime
import json
import platform
import subprocess
from pathlib import Path

from training.recipe import write_atomically

FILE = Path(__file__).parents[1] / "docs" / "figures.json"


def machine() -> str:
    """CPU, cores and memory of this machine, in a few words."""
    cpu = "unknown CPU"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.split(":", 1)[1].strip()
            break
    cores = Path("/proc/cpuinfo").read_text().count("processor\t")
    kilobytes = int(Path("/proc/meminfo").read_text().split()[1])
    words = set(Path("/proc/cpuinfo").read_text().split())
    bf16 = "AVX512_BF16" if "avx512_bf16" in words else "no bfloat16"
    bf16 += ", AMX" if "amx_bf16" in words else ""
    return f"{cpu}, {cores} cores, {kilobytes / 2**20:.0f} GiB, {bf16}, {platform.system()}"


def record(values: dict[str, tuple[float, str]], command: str) -> None:
    """Write figures: id -> (value, unit), with command, commit, date and machine."""
    told = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    figures = json.loads(FILE.read_text()) if FILE.exists() else {}
    for name, (value, unit) in values.items():
        figures[name] = {
            "value": value,
            "unit": unit,
            "command": command,
            "commit": told.stdout.strip(),
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "machine": machine(),
        }
    write_atomically(FILE, json.dumps(dict(sorted(figures.items())), indent=1) + "\n")
