"""`python -m service reindex`: the client that has a running service change its bundle."""

import http.client
import json
import sys
import time
from argparse import ArgumentParser, Namespace
from typing import Any
from urllib.parse import urlsplit

from service.settings import read_client_settings

DESCRIPTION = """Have a running service serve another bundle, without downtime: it embeds its
catalogue anew beside the one that it serves, compares both, and changes over at once. Stopping this
command stops nothing; the same again shows how far it is. LLMEMB_API_KEY is a key with the scopes
read and write, where the service has keys."""

OVER = {"flipped", "held", "cancelled", "failed"}
POLL_S = 0.5
TOLD_S = 5.0  # between two lines of one state
AWAY_S = 30.0  # how long the service may be away, as while it restarts
TIMEOUT_S = 30.0

Answer = dict[str, Any]


class ReindexError(RuntimeError):
    """It did not come to what was asked for; the message says why and what to do."""


def add_arguments(parser: ArgumentParser) -> None:
    """The command's own arguments."""
    wanted = parser.add_mutually_exclusive_group(required=True)
    wanted.add_argument(
        "--bundle", dest="name", metavar="NAME", help="its folder's name in LLMEMB_BUNDLES_DIR"
    )
    wanted.add_argument(
        "--rollback", action="store_true", help="back to the bundle that was active before"
    )
    wanted.add_argument("--cancel", action="store_true", help="stop it; what is done is kept")
    wanted.add_argument("--status", action="store_true", help="say how far it is")
    parser.add_argument(
        "--hold", action="store_true", help="make it ready and compare, and do not change over"
    )
    parser.add_argument(
        "--accept-lost",
        action="store_true",
        help="change over even if the bundle can make no vector of some items",
    )
    parser.add_argument(
        "--url", help="of the service (default http://127.0.0.1 and LLMEMB_PORT, or 8000)"
    )


def run(arguments: Namespace) -> None:
    """Do what was asked for, and tell on stdout how far it is.

    Raises:
        ReindexError: it did not come to that.
        BadSettings: LLMEMB_PORT is no port.
    """
    settings = read_client_settings()
    service = _Service(arguments.url or f"http://127.0.0.1:{settings.port}", settings.api_key)
    if arguments.status:
        _show(service.ask("GET", "/admin/bundles"))
        return
    if arguments.cancel:
        status = service.ask("POST", "/admin/bundles:cancel")
        _say(f"{status['name']}: asked to stop; it was {status['state']}")
        return
    wanted: Answer = {"flip": not arguments.hold, "accept_lost": arguments.accept_lost}
    wanted |= {"rollback": True} if arguments.rollback else {"bundle": arguments.name}
    status = _followed(service, service.ask("POST", "/admin/bundles", wanted))
    if status["comparison"]:
        _compare(status["comparison"])
    _end(status, arguments.hold)


class _Service:
    """A running service."""

    def __init__(self, url: str, key: str | None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ReindexError(f"--url is {url!a}; write http://HOST:PORT")
        self._url = url
        self._secure = parts.scheme == "https"
        self._host, self._port = parts.hostname, parts.port
        self._prefix = parts.path.rstrip("/")
        self._headers = {"content-type": "application/json"}
        if key:
            self._headers["authorization"] = f"Bearer {key}"

    def ask(self, method: str, path: str, body: Answer | None = None) -> Answer:
        """The answer to one request.

        Raises:
            ConnectionError: there is none.
            ReindexError: it is an error; says what the service says.
        """
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        connection = kind(self._host, self._port, timeout=TIMEOUT_S)
        try:
            sent = None if body is None else json.dumps(body)
            connection.request(method, self._prefix + path, sent, self._headers)
            response = connection.getresponse()
            status, content = response.status, response.read()
        except (OSError, http.client.HTTPException) as error:
            raise ConnectionError(f"{self._url} does not answer: {error}") from None
        finally:
            connection.close()
        try:
            answer = json.loads(content)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise ReindexError(f"{self._url} answers {status}, and not as this service does")
        if status >= 500:
            raise ConnectionError(f"{self._url} says: {answer.get('detail')}")
        if status >= 400:
            raise ReindexError(f"{self._url} says: {answer.get('detail')}")
        return answer


def _followed(service: _Service, status: Answer) -> Answer:
    """The status once it is over; each state and, in between, how far it is goes to stdout."""
    said, seen = 0.0, time.monotonic()
    shown = None
    while True:
        now = time.monotonic()
        if status["state"] != shown or now - said >= TOLD_S:
            _say(f"{status['name']}: {status['state']}{_progress(status)}")
            shown, said = status["state"], now
        if status["state"] in OVER:
            return status
        time.sleep(POLL_S)
        try:
            found = service.ask("GET", "/admin/bundles")["upgrade"]
        except ConnectionError:
            if time.monotonic() - seen >= AWAY_S:
                raise
            continue
        seen = time.monotonic()
        if found is None or found["name"] != status["name"]:
            raise ReindexError(
                "the service was restarted, and serves what it served before; the same command "
                "again goes on where it was"
            )
        status = found


def _progress(status: Answer) -> str:
    if not status["told"] + status["left"]:
        return ""
    return f", {status['told']} of {status['told'] + status['left']} items"


def _compare(told: Answer) -> None:
    """The numbers, the served bundle before the new one."""
    _say(f"compared on {told['items']} items and {told['histories']} histories of them:")
    _say(f"  of {told['k']} recommended, the share that both recommend: {told['overlap']}")
    _say(
        f"  scores of those are apart by {told['score_drift']}; "
        f"their deviation is {told['score_deviation']}"
    )
    _say(f"  of 10 neighbours, the share that both have: {told['neighbours_overlap']}")
    _say(f"  parity: {told['parity']:.5f}")
    sides = told["served"], told["other"]
    for view in sorted({*sides[0]["lengths"], *sides[1]["lengths"]}):
        lengths = [side["lengths"].get(view) for side in sides]
        shown = [f"{each['mean']} ± {each['deviation']}" if each else "-" for each in lengths]
        _say(f"  lengths of {view}: {shown[0]} -> {shown[1]}")
    for name in ("hub_skewness", "hub_share"):
        _say(f"  {name}: {sides[0][name]} -> {sides[1][name]}")


def _end(status: Answer, hold: bool) -> None:
    if status["given"]:
        _say(f"{status['given']} items had vectors of their own; now their attributes make them")
    if status["lost"]:
        _say(f"{status['lost']} items are lost to this bundle: {', '.join(status['lost_ids'])}")
    if status["state"] == "flipped":
        _say(f"active: {status['bundle']}")
    elif not (hold and status["state"] == "held" and not status["lost"]):
        raise ReindexError(f"{status['state']}: {status['error'] or 'somebody has stopped it'}")


def _show(told: Answer) -> None:
    for each in told["bundles"]:
        role = "active" if each["active"] else "previous" if each["previous"] else ""
        _say(f"{each['bundle'][:12]}  {each['name'] or '-':<24}  {role}")
    status = told["upgrade"]
    if status:
        reason = f": {status['error']}" if status["error"] else ""
        _say(f"{status['name']}: {status['state']}{_progress(status)}{reason}")


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
