"""Is this machine fit for the jobs? A line a check: OK, warning or problem, and what to do."""

import json
import re
import socket
import ssl
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import unquote, urlsplit

import torch
from safetensors import SafetensorError, safe_open

from models.cpu import cpu_words
from models.encoder import DTypeName, settled_dtype
from models.int8 import why_not_int8
from models.llm import DEFINING
from training.config import RunConfig, read_config
from training.fetch import LLMS
from training.machine import CGROUP, GIB, cores, cpu, free_disk, memory
from training.recipe import Run
from training.tensorboard import installed

REDIS = "LLMEMB_REDIS_URL"
CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"
DISK_GIB = (2, 8)  # less than the first: a run may not fit; than the second: an installation
MEMORY_GIB = (2, 4)
WAIT_S = 2.0
DEFAULT_LLM, DEFAULT_CACHE = "smollm2-135m-instruct", Path(".cache")
Grade = Literal["OK", "warning", "problem"]


class Finding(NamedTuple):
    """What one check found."""

    grade: Grade
    what: str
    told: str


def doctor(
    config: Path | None,
    changes: Sequence[str],
    source: str | None,
    environment: Mapping[str, str],
    say: Callable[[str], object],
) -> int:
    """Say what every check finds; 0 if there is no problem, 1 if there is one.

    Args:
        config: of a run, whose LLM, folders and dtype are looked at; None: the defaults'.
        environment: where the service's settings are.
        say: gets a line at a time.

    Raises:
        JobError: the configuration is none.
    """
    run = Run(read_config(config, changes, source)) if config else None
    problems = 0
    for found in findings(run, environment):
        problems += found.grade == "problem"
        say(f"{found.grade:8} {found.what:11} {found.told}")
    say(
        f"\n{problems} problem{'s' * (problems != 1)} to mend first" if problems else "\nfit for it"
    )
    return 1 if problems else 0


def findings(run: Run | None, environment: Mapping[str, str]) -> Iterator[Finding]:
    """All checks, one after the other."""
    yield _python()
    yield from _packages(CONSTRAINTS)
    yield _hardware()
    yield _dtype(run.config if run else None)
    yield _threads()
    yield _memory()
    folders = {"runs": run.folder, "cache": run.cache} if run else {"here": Path()}
    for name, folder in folders.items():
        yield _disk(name, folder)
    yield _llm(run)
    yield redis(environment.get(REDIS))
    yield _tensorboard()


def _python() -> Finding:
    found = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] in {(3, 11), (3, 12)}:
        return Finding("OK", "python", found)
    return Finding("problem", "python", f"{found}; use CPython 3.11 or 3.12")


def _packages(constraints: Path) -> Iterator[Finding]:
    """Installed versions beside those that were tested together."""
    if not constraints.exists():
        yield Finding("OK", "packages", "no constraints.txt beside the code; versions not compared")
        return
    pinned = re.findall(r"^([A-Za-z0-9._-]+)==([^ ;\n]+)", constraints.read_text(), re.M)
    other, count = [], 0
    for name, wanted in pinned:
        try:
            there = version(name)
        except PackageNotFoundError:
            continue  # of an extra that is not installed
        count += 1
        if there.partition("+")[0] != wanted:
            other.append(f"{name} {there} (tested: {wanted})")
    if other:
        told = f"{', '.join(other)}; `sh scripts/install.sh training` installs what was tested"
        yield Finding("warning", "packages", told)
    else:
        yield Finding("OK", "packages", f"{count} as in constraints.txt")


def _hardware() -> Finding:
    if torch.cuda.is_available():
        total = torch.cuda.get_device_properties(0).total_memory / GIB
        return Finding(
            "OK", "hardware", f"{torch.cuda.get_device_name()}, {total:.0f} GiB; {cpu()}"
        )
    if torch.version.cuda:
        told = "PyTorch has CUDA but sees no GPU: check the driver (nvidia-smi); the CPU is used"
        return Finding("warning", "hardware", told)
    return Finding("OK", "hardware", f"{cpu()}, no GPU; none is needed")


def _dtype(config: RunConfig | None) -> Finding:
    """What the LLM would run in, and why."""
    asked: DTypeName = config.llm.dtype if config else "auto"
    if asked == "int8":
        reason = why_not_int8()
        if reason:
            return Finding("problem", "dtype", f"llm.dtype is int8: {reason}")
        return Finding("OK", "dtype", "int8, which the CPU multiplies at once")
    picked = settled_dtype()
    flags = cpu_words()
    if torch.cuda.is_available():
        why = "the GPU has it" if picked == "bfloat16" else "the GPU has no bfloat16"
    elif "amx_bf16" in flags:
        why = "the CPU has AMX"
    elif "avx512_bf16" in flags:
        vendor = "AMD" if "AuthenticAMD" in flags else "not AMD's"
        why = f"the CPU has AVX512_BF16 and is {vendor}"
    else:
        why = "the CPU has neither AMX nor AVX512_BF16 and would emulate bfloat16"
    if asked in {"auto", picked}:
        return Finding("OK", "dtype", f"auto picks {picked}: {why}")
    told = f"llm.dtype is {asked}, but auto would pick {picked}: {why}; the other is slower here"
    return Finding("warning", "dtype", told)


def _threads() -> Finding:
    threads, usable = torch.get_num_threads(), cores()
    quota = CGROUP / "cpu.max"
    allowed = quota.read_text().split() if quota.exists() else ["max"]
    if allowed[0] != "max":
        usable = max(1, min(usable, round(int(allowed[0]) / int(allowed[1]))))
    if threads > usable:
        told = f"{threads} threads on {usable} usable cores; set OMP_NUM_THREADS={usable}"
        return Finding("warning", "threads", told)
    if threads < usable // 2:
        told = f"{threads} of {usable} usable cores; unset OMP_NUM_THREADS, or set it to {usable}"
        return Finding("warning", "threads", told)
    return Finding("OK", "threads", f"{threads} on {usable} usable cores")


def _memory() -> Finding:
    total, free = memory()
    if not total:
        return Finding("OK", "memory", "this system does not tell")
    told = f"{free / GIB:.1f} of {total / GIB:.1f} GiB free"
    if free < MEMORY_GIB[0] * GIB:
        return Finding("problem", "memory", f"{told}; end other programs, or take a larger machine")
    if free < MEMORY_GIB[1] * GIB:
        return Finding(
            "warning", "memory", f"{told}; enough for the default LLM, not for larger ones"
        )
    return Finding("OK", "memory", told)


def _disk(name: str, folder: Path) -> Finding:
    free = free_disk(folder) / GIB
    told = f"{free:.1f} GiB free for {folder.absolute() if name == 'here' else folder}"
    if free < DISK_GIB[0]:
        return Finding(
            "problem", "disk", f"{told}; make room, or set `folder` and `cache` elsewhere"
        )
    if free < DISK_GIB[1]:
        return Finding(
            "warning", "disk", f"{told}; an installation and the demo need {DISK_GIB[1]}"
        )
    return Finding("OK", "disk", told)


def _llm(run: Run | None) -> Finding:
    """Whether the LLM's files are here, and whole as far as can be seen without loading them."""
    path = run.config.llm.path if run else DEFAULT_LLM
    cache = run.cache if run else DEFAULT_CACHE
    pinned = path in LLMS
    folder = cache / "llm" / path if pinned else Path(path).expanduser()
    if not folder.is_dir():
        if pinned:
            return Finding("OK", "LLM", f"{path} is not here yet; scft downloads it once")
        if folder.is_absolute() or path.startswith("."):
            told = f"llm.path: there is no folder {path}; name one, or a hub id"
            return Finding("problem", "LLM", told)
        return Finding("OK", "LLM", f"{path} is no folder; scft asks the model hub for it")
    damage = damaged(folder)
    if damage:
        again = f"remove {folder}, it is made again" if pinned else "get the folder again"
        return Finding("problem", "LLM", f"{damage}; {again}")
    files = {each for pattern in DEFINING for each in folder.glob(pattern)}
    size = sum(each.stat().st_size for each in files)
    return Finding("OK", "LLM", f"{path}: {size / GIB:.2f} GiB in {folder}")


def damaged(folder: Path) -> str | None:
    """What is wrong with the files of an LLM's folder; None if nothing is seen to be."""
    weights = sorted(folder.glob("*.safetensors"))
    needed = {"config.json", "tokenizer.json"}
    for index in folder.glob("*.safetensors.index.json"):
        needed.add(index.name)
    for name in sorted(needed):
        path = folder / name
        if not path.exists():
            return f"{path} is missing"
        try:
            told = json.loads(path.read_bytes())
        except ValueError:
            return f"{path} is no JSON"
        if name.endswith("index.json"):
            lost = sorted({*told["weight_map"].values()} - {each.name for each in weights})
            if lost:
                return f"{folder / lost[0]} is missing"
    if not weights:
        return f"{folder} has no *.safetensors"
    for path in weights:
        try:
            with safe_open(path, "pt"):  # compares the header with the file's length
                pass
        except (SafetensorError, OSError) as error:
            return f"{path} is damaged ({error})"
    return None


def redis(url: str | None) -> Finding:
    """Whether the service's Redis answers; a password is not shown."""
    if not url:
        told = f"{REDIS} is not set: the service keeps its cache in its own process"
        return Finding("OK", "Redis", told)
    try:
        parts = urlsplit(url)
        if parts.scheme == "unix":
            where = parts.path
        else:
            first = parts.netloc.rpartition("@")[2].split(",")[0]
            host = urlsplit(f"//{first}")
            port = host.port or (26379 if parts.scheme.endswith("sentinel") else 6379)
            where = f"{host.hostname}:{port}"
        if not parts.scheme.startswith(("redis", "unix")) or where.startswith("None"):
            raise ValueError("is no address such as redis://host:6379/0")
    except ValueError as error:
        return Finding("problem", "Redis", f"{REDIS} cannot be read: {error}")
    try:
        answer = _ping(url, where)
    except (OSError, ssl.SSLError) as error:
        told = f"{where} does not answer ({error}); start it, or mend {REDIS}"
        return Finding("problem", "Redis", f"{told}; without it the service is slower")
    if answer.startswith("+PONG"):
        return Finding("OK", "Redis", f"{where} answers")
    if answer.startswith(("-NOAUTH", "-WRONGPASS", "-ERR AUTH", "-NOPERM")):
        told = f"{where} refuses: {answer[1:60].strip()}; mend user and password in {REDIS}"
        return Finding("problem", "Redis", told)
    told = f"{where} answers, but not as Redis does ({answer[:40]!r}); mend {REDIS}"
    return Finding("problem", "Redis", told)


def _ping(url: str, where: str) -> str:
    """The line that a PING, with the address's password, is answered by."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(WAIT_S)
            connection.connect(where)
            return _asked(url, connection)
    host, _, port = where.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=WAIT_S) as connection:
        if not parts.scheme.startswith("rediss"):
            return _asked(url, connection)
        with ssl.create_default_context().wrap_socket(connection, server_hostname=host) as safe:
            return _asked(url, safe)


def _asked(url: str, connection: socket.socket) -> str:
    parts = urlsplit(url)
    user, _, password = parts.netloc.rpartition("@")[0].partition(":")
    login = [unquote(each) for each in (user, password) if each]
    with connection.makefile("rwb") as lines:
        if password and not parts.scheme.endswith("sentinel"):
            lines.write(_words("AUTH", *login))
            lines.flush()
            told = lines.readline().decode("utf-8", "replace")
            if not told.startswith("+OK"):
                return told
        lines.write(_words("PING"))
        lines.flush()
        return lines.readline().decode("utf-8", "replace")


def _words(*words: str) -> bytes:
    """A command as Redis reads it."""
    parts = [each.encode() for each in words]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(p), p) for p in parts)


def _tensorboard() -> Finding:
    if installed():
        return Finding("OK", "TensorBoard", "installed: reports leave event files beside them")
    told = "not installed, and not needed; `sh scripts/install.sh training,tensorboard` adds it"
    return Finding("OK", "TensorBoard", told)
