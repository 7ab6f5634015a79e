"""What this machine's CPU is, as Linux tells it."""

from pathlib import Path

CPU = Path("/proc/cpuinfo")


def cpu_words() -> set[str]:
    """All words of that: vendor, name and instruction sets; none where nobody tells."""
    return set(CPU.read_text().split()) if CPU.exists() else set()
