"""`make demo`: train on MovieLens-100K, then ask the real service for recommendations.

Everything it shows comes out of the run it makes or out of the service's HTTP answers.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from models.encoder import settled_dtype  # noqa: E402
from training.interactions import Interactions, leave_one_out  # noqa: E402
from training.report import as_text  # noqa: E402

RUN = Path("runs/demo")
CONFIG = Path("training/configs/ml-100k.toml")
# A film of 1999; the data ends in 1998 and does not hold it.
NEW_FILM = {
    "title": "Star Wars Episode I The Phantom Menace",
    "release_year": "1999",
    "genres": ["Action", "Adventure", "Fantasy", "Sci-Fi"],
}
NEW_ID = "new-film-1999"
USERS_ASKED = 300
SHOWN = 10


def say(text: str = "") -> None:
    """Print at once, so that lines keep their order with those of the jobs."""
    print(text, flush=True)


def estimate() -> str:
    """How long this will take, by what the CPU can do."""
    cores = os.cpu_count() or 1
    if settled_dtype() == "bfloat16":
        return f"about {5 + 14 / cores:.0f} minutes on {cores} cores"
    return f"about {5 + 20 / cores:.0f} minutes on {cores} cores in float32, the faster dtype here"


def train() -> bool:
    """Run every job; whether anything was left to do."""
    finished = (RUN / "export" / "done.json").exists()
    if finished:
        say(f"{RUN} is there from an earlier demo: finished steps are reused.")
    else:
        say(f"Training takes {estimate()}, most of it the LLM; stop it when you like,")
        say("the same command goes on where it was.")
    command = [sys.executable, "-m", "training", "run", "--config", str(CONFIG)]
    with subprocess.Popen([*command, "--set", f"folder={RUN}"]) as process:
        try:
            status = process.wait()
        except BaseException:
            process.terminate()
            raise
    if status:
        sys.exit(status)
    return not finished


class Service:
    """The real service on the demo's bundle, on a free port, with a catalogue of its own."""

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.address = f"http://127.0.0.1:{port}"
        self.folder = tempfile.TemporaryDirectory(prefix="llmemb-demo-")
        self.log = Path(self.folder.name) / "service.log"
        command = [sys.executable, "-m", "service", "--bundle", str(RUN / "bundle")]
        command += ["--port", str(port), "--catalogue", f"{self.folder.name}/catalogue"]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)

    def __enter__(self) -> "Service":
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                self.call("GET", "/health/ready")
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.2)
            else:
                return self
        self.__exit__()
        sys.exit("error: the service did not become ready:\n" + self.last_words)

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.last_words = self.log.read_text()[-2000:]
        self.folder.cleanup()

    def call(self, method: str, path: str, body: object = None) -> Any:
        """The decoded answer of one request."""
        request = urllib.request.Request(self.address + path, method=method)
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        data = None
        if body is not None:
            data = json.dumps(body).encode()
            request.add_header("Content-Type", "application/json")
        with direct.open(request, data, timeout=60) as answer:
            return json.loads(answer.read() or "null")

    def film(self, item_id: str) -> str:
        """A film as a person would write it."""
        path = "/items/" + urllib.parse.quote(item_id, safe="")
        attributes = self.call("GET", path)["attributes"]
        genres = ", ".join(attributes.get("genres", []))
        return f"{attributes['title']} ({attributes.get('release_year', '?')}) - {genres}"


def show(service: Service) -> None:
    """Embed, recommend, add a film, and see it recommended."""
    catalogue = [json.loads(line)["item_id"] for line in (RUN / "bundle/items.jsonl").open()]
    split = leave_one_out(Interactions.load(RUN / "prepare"), len(catalogue))
    histories = [[catalogue[row - 1] for row in rows] for rows in split.test_histories]

    embedded = service.call(
        "POST", "/embed", {"items": [{"item_id": NEW_ID, "attributes": NEW_FILM}], "view": "text"}
    )
    (result,) = embedded["results"]
    vector = result["vectors"]["text"]
    numbers = ", ".join(f"{number:.3f}" for number in vector[:4])
    say("POST /embed turns attributes into a vector:")
    say(f"  {json.dumps(NEW_FILM)}")
    say(f"  -> [{numbers}, ...] {len(vector)} numbers from {result['tokens']} tokens")

    before = [ask(service, history)["items"] for history in histories[:USERS_ASKED]]
    if any(item["item_id"] == NEW_ID for items in before for item in items):
        sys.exit(f"error: {NEW_ID} was recommended before it was added")
    started = time.monotonic()
    service.call("PUT", f"/items/{NEW_ID}", {"attributes": NEW_FILM})
    took = time.monotonic() - started
    say()
    say(f"PUT /items/{NEW_ID} adds it to the catalogue ({took * 1000:.0f} ms, nothing retrained).")
    say(f"The same {USERS_ASKED} real users are asked for 25 recommendations again:")
    places: dict[int, int] = {}
    for user, history in enumerate(histories[:USERS_ASKED]):
        ids = [item["item_id"] for item in ask(service, history)["items"]]
        if NEW_ID in ids:
            places[user] = ids.index(NEW_ID) + 1
    say(f"  it is recommended to {len(places)} of them")
    user = min(places, key=lambda u: (places[u], u)) if places else 0

    history = histories[user]
    say()
    say(f"POST /recommend for one of them, who has seen {len(history)} films, lately:")
    for item_id in history[-8:]:
        say(f"    {service.film(item_id)}")
    say("  and is recommended:")
    for place, item in enumerate(ask(service, history)["items"][:SHOWN], 1):
        mark = "   <- the film added a moment ago" if item["item_id"] == NEW_ID else ""
        say(f"  {place:2} {item['score']:6.2f}  {service.film(item['item_id'])}{mark}")
    if not places:
        sys.exit("error: the new film is recommended to nobody")


def ask(service: Service, history: list[str]) -> Any:
    """The service's recommendations for a history."""
    return service.call("POST", "/recommend", {"history": history, "k": 25})


def main() -> None:
    """The demo, start to end."""
    os.chdir(ROOT)
    started = time.monotonic()
    trained = train()
    say()
    with Service() as service:
        show(service)
    say("The service is stopped.")
    figures = json.loads((RUN / "evaluate" / "metrics.json").read_text())
    say()
    say(as_text(figures))
    say(
        f"\nSCFT: {figures['scft_steps']} steps. Head, tail and cold are by interactions in the "
        "training split;\nbrackets are 95 % bootstrap intervals over users. One seed: "
        "see docs/results.md."
    )
    minutes = (time.monotonic() - started) / 60
    how = "Done" if trained else "Reused the finished run; done"
    say(f"\n{how} in {minutes:.1f} minutes. Next:")
    say(f"  make serve BUNDLE={RUN}/bundle    then open http://127.0.0.1:8000/docs")
    say("  make test                             the project's tests, offline")
    say(f"  BUNDLE=./{RUN}/bundle docker compose up   service, Redis and Prometheus")
    say('  README.md, "Your own data"           train on your own items and interactions')


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # children are stopped on the way out
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("stopped; `make demo` goes on from here")
