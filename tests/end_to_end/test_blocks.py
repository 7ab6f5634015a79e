"""Every block of commands in the documents that a user types them from, typed.

Two comments may stand right above a block: `<!-- not run: REASON -->`, and
`<!-- runs on: REASON -->` of one that serves until it is stopped. The rest are run from top to
bottom in a folder that looks like a clone after `make demo`, offline, with a tiny LLM where the
pinned one would be. A TOML block that opens with `# FILE.toml` is that file.
"""

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from tests.end_to_end.conftest import write_data
from tests.service.running import free_port
from tests.tiny import write_llm, write_tiny_bundle

pytestmark = [pytest.mark.documents, pytest.mark.timeout(900)]  # a busy machine is slow
ROOT = Path(__file__).parents[2]
RUN = {"sh", "bash", "python"}
BLOCK = re.compile(
    r"(?:<!-- (?P<mark>not run|runs on): (?P<reason>[^>]*) -->\n)?"
    r"^```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.M | re.S,
)
# What a clone has that no block may write to.
OWN = {".venv", ".cache", ".git", "runs", "catalogue", "shop", "shop.toml", "path"}
# What `make test` hands down, which would lead a block elsewhere.
HANDED = {"MAKEFLAGS", "MAKELEVEL", "VENV", "PYTHON", "PORT", "BUNDLE", "PYTHONPATH"}
# A refusal of the service fails the block, as a user would notice it by.
PRELUDE = "curl() { command curl --fail-with-body --noproxy '*' \"$@\"; }\n"


class Block(NamedTuple):
    """A fenced block, where it stands, and what the comment above it says."""

    where: str
    language: str
    text: str
    mark: str | None
    reason: str | None


def blocks(name: str) -> list[Block]:
    text = (ROOT / name).read_text()
    found = []
    for match in BLOCK.finditer(text):
        line = text[: match.start("text")].count("\n") + 1
        parts = match.group("language", "text", "mark", "reason")
        found.append(Block(f"{name}:{line}", *parts))
    return found


class Clone:
    """A folder with the project's files, in which blocks are typed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        folder.mkdir()
        for path in ROOT.iterdir():
            if path.name not in OWN:
                (folder / path.name).symlink_to(path)
        python = folder / ".venv" / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.write_text(f'#!/bin/sh\nPYTHONPATH="{folder}" exec "{sys.executable}" "$@"\n')
        python.chmod(0o755)
        pins = (ROOT / "pyproject.toml").read_bytes() + (ROOT / "constraints.txt").read_bytes()
        stamp = [hashlib.sha256(pins).hexdigest(), "service,training", str(folder)]
        (folder / ".venv" / ".installed").write_text("\n".join(stamp) + "\n")
        write_llm(folder / ".cache" / "llm" / "smollm2-135m-instruct")

    def type(self, block: Block) -> "subprocess.Popen[bytes]":
        """Start what a block says, with a free port in the place of 8000."""
        text = re.sub(r"\b8000\b", str(self.port), block.text)
        if block.language == "python":
            command = [str(self.folder / ".venv/bin/python"), "-c", text]
        else:
            command = ["bash", "-euo", "pipefail", "-c", PRELUDE + text]
        nowhere = "http://127.0.0.1:9"
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env={
                **{name: value for name, value in os.environ.items() if name not in HANDED},
                **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "https_proxy"), nowhere),
                **{"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1,localhost"},
                **{"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "PIP_NO_INDEX": "1"},
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def run(self, block: Block) -> str:
        """What a block prints; it fails where the block does."""
        with self.type(block) as process:
            told = process.communicate()[0].decode()
        assert process.returncode == 0, f"{block.where}:\n{told}"
        return told

    @contextmanager
    def running(self, block: Block) -> Iterator[None]:
        """What a block serves, from its being ready to its end."""
        process = self.type(block)
        try:
            self._wait(block, process)
            yield
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.communicate(timeout=30)

    def _wait(self, block: Block, process: "subprocess.Popen[bytes]") -> None:
        deadline = time.monotonic() + 300  # a busy machine is slow
        with httpx.Client(trust_env=False) as client:
            while True:
                assert time.monotonic() < deadline, f"{block.where} is not ready"
                if process.poll() is not None:
                    told = process.communicate()[0].decode()
                    pytest.fail(f"{block.where} has ended:\n{told}")
                try:
                    if client.get(f"http://127.0.0.1:{self.port}/health/ready").is_success:
                        return
                except httpx.TransportError:
                    time.sleep(0.1)


def type_all(clone: Clone, found: list[Block]) -> list[str]:
    """What blocks print, typed from top to bottom; one that serves does so until the end."""
    told: list[str] = []
    for number, block in enumerate(found):
        if block.language == "toml" and (name := re.match(r"# (\S+\.toml)\n", block.text)):
            (clone.folder / name[1]).write_text(block.text)
        if block.language not in RUN or block.mark == "not run":
            continue
        if block.mark == "runs on":
            with clone.running(block):
                return told + type_all(clone, found[number + 1 :])
        told.append(clone.run(block))
    return told


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    if not shutil.which("curl"):
        pytest.skip("no curl, which the documents ask the service with")
    return Clone(tmp_path / "clone")


@pytest.mark.parametrize("name", ["README.md", "docs/tutorial.md"])
def test_few_blocks_are_not_run_and_each_says_why(name: str) -> None:
    found = [block for block in blocks(name) if block.language in RUN]
    left = [block for block in found if block.mark == "not run"]

    assert len(left) <= 2
    assert len(left) < len(found) / 2
    assert all(len((block.reason or "").split()) >= 3 for block in left)
    fences = re.findall(r"^```", (ROOT / name).read_text(), re.M)
    assert len(fences) == 2 * len(blocks(name))  # none is overlooked
    marks = re.findall("<!-- (?:not run|runs on)", (ROOT / name).read_text())
    assert len(marks) == sum(block.mark is not None for block in blocks(name))


def test_what_the_tutorial_tells_to_type_works(clone: Clone) -> None:
    told = type_all(clone, blocks("docs/tutorial.md"))

    assert (clone.folder / "runs" / "shop" / "report.html").exists()
    assert (clone.folder / "runs" / "shop" / "bundle" / "MODEL_CARD.md").exists()
    everything = "\n".join(told)
    assert "unknown items" not in everything
    assert "next to S101 stand ['S1" in everything


def test_what_the_readme_tells_to_type_works(clone: Clone) -> None:
    write_tiny_bundle(
        clone.folder / "runs/demo/bundle", clone.folder / ".cache/llm/smollm2-135m-instruct", 200
    )
    write_data(clone.folder / "path" / "to" / "folder", predictable=True)

    type_all(clone, blocks("README.md"))

    assert (clone.folder / "runs" / "shop" / "bundle" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("sh", "false\ntrue\n"),
        ("sh", ".venv/bin/python -m training run --config none.toml | cat\n"),
        ("python", "import json\njson.loads('')\n"),
    ],
)
def test_a_block_with_a_mistake_fails(clone: Clone, language: str, text: str) -> None:
    with pytest.raises(AssertionError, match=r"README\.md:7"):
        type_all(clone, [Block("README.md:7", language, text, None, None)])
