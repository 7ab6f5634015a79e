"""`python -m service`: settings, one process, a clean end; and the commands beside it."""

import argparse
import logging
import math
import os
import sys
import time
from pathlib import Path
from types import FrameType

import uvicorn
from fastapi import FastAPI

from service import reindex
from service.admission import Admission
from service.app import create_app
from service.backup import back_up, restore
from service.logs import configure
from service.protocol import BoundedProtocol
from service.schema import CatalogueError
from service.serving import Serving
from service.settings import (
    BadSettings,
    Settings,
    read_catalogue_dir,
    read_settings,
    reference,
)
from service.tracing import open_tracing

BAD_SETTINGS = 2
FAILED = 1
EPILOG = """Every setting is an environment variable; a flag wins over it:

{}

GET /docs shows the API. Stop with SIGTERM: readiness says `draining` for
LLMEMB_DRAIN_DELAY_S, then requests in flight are finished within LLMEMB_DRAIN_LIMIT_S, those
that are not are answered with 503, and the process exits with 0.
"""

CATALOGUE = "writable folder of the catalogue"
COMMANDS = {
    "backup": (
        "write the catalogue to one file, also while it is served",
        "Write the catalogue, as it is at one moment, to FILE, which must not be there. A service "
        "that runs on it goes on. FILE stands there whole, or not at all.",
    ),
    "restore": (
        "make a catalogue of such a file, in a folder that is empty",
        "Check FILE and make a catalogue of it, in a folder that is empty or not there yet.",
    ),
}


class Server(uvicorn.Server):
    """Uvicorn that says `draining` for a while before it closes its port."""

    def __init__(
        self,
        config: uvicorn.Config,
        serving: Serving,
        admission: Admission,
        drain_delay_s: float,
    ) -> None:
        super().__init__(config)
        self._serving = serving
        self._admission = admission
        self._drain_delay_s = drain_delay_s
        self._stop_at = math.inf

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal drains; a second one does not wait."""
        # Uvicorn's own would raise the signal again at the end, so that the status is not 0.
        again = self._stop_at < math.inf
        self._serving.drain()
        self._stop_at = time.monotonic() + (0 if again else self._drain_delay_s)

    async def on_tick(self, counter: int) -> bool:
        """Whether to stop; uvicorn asks ten times a second."""
        if self._serving.failure or time.monotonic() >= self._stop_at:
            self._admission.close()
            self.should_exit = True
        return await super().on_tick(counter)


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line; without a `command` it is to serve."""
    parser = argparse.ArgumentParser(
        prog="python -m service",
        description="Serve embeddings and recommendations from a bundle over HTTP.",
        epilog=EPILOG.format(reference()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--bundle", help="folder that `python -m training export` wrote")
    parser.add_argument("--host", help="address to listen on")
    parser.add_argument("--port", help="port to listen on")
    parser.add_argument("--catalogue", help=CATALOGUE)
    commands = parser.add_subparsers(dest="command", title="other than to serve")
    for name, (summary, description) in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=description)
        command.add_argument("file", type=Path, metavar="FILE")
        # Left out it must not undo one that stands before the command.
        command.add_argument("--catalogue", help=CATALOGUE, default=argparse.SUPPRESS)
    command = commands.add_parser(
        "reindex",
        help="have the running service serve another bundle, without downtime",
        description=reindex.DESCRIPTION,
    )
    reindex.add_arguments(command)
    return parser


def _copy(command: str, file: Path, catalogue: Path) -> None:
    """Run one of COMMANDS."""
    try:
        if command == "backup":
            count = back_up(catalogue, file)
            sys.stdout.write(f"{file} holds the {count} items of {catalogue}\n")
        else:
            count = restore(file, catalogue)
            sys.stdout.write(f"{catalogue} holds the {count} items of {file}\n")
    except CatalogueError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(FAILED)


def _reindex(arguments: argparse.Namespace) -> None:
    try:
        reindex.run(arguments)
    except (reindex.ReindexError, ConnectionError) as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(FAILED)
    except BadSettings as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(BAD_SETTINGS)
    except KeyboardInterrupt:
        sys.stderr.write("the service goes on with it; --status tells how far, --cancel stops it\n")
        sys.exit(FAILED)


def _end(sentence: str, status: int) -> None:
    sys.stderr.write(f"{sentence}\n" if sentence else "")
    sys.stderr.flush()
    # Without the interpreter's own end: a thread that still works would hold it up.
    os._exit(status)


def _serve(app: FastAPI, settings: Settings) -> None:
    serving: Serving = app.state.serving
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        access_log=False,
        log_config=None,
        http=BoundedProtocol,
        server_header=False,
        timeout_graceful_shutdown=math.ceil(settings.drain_limit_s),
    )
    server = Server(config, serving, app.state.admission, settings.drain_delay_s)
    try:
        server.run()
    except SystemExit:  # uvicorn has logged why, as when the port is taken
        _end(f"the service cannot listen on {settings.host}:{settings.port}", FAILED)
    if serving.failure:
        _end(serving.failure, FAILED)
    if serving.loading:
        _end("stopped while starting", 0)
    logging.shutdown()
    # A forward pass that nobody waits for any more may still run.
    _end("", 0)


def main() -> None:
    """Read the settings and serve until a signal; or run another command."""
    arguments = build_parser().parse_args()
    if arguments.command == "reindex":
        _reindex(arguments)
        return
    if arguments.command:
        try:
            _copy(arguments.command, arguments.file, read_catalogue_dir(arguments.catalogue))
        except BadSettings as error:
            sys.stderr.write(f"{error}\n")
            sys.exit(BAD_SETTINGS)
        return
    try:
        settings = read_settings(
            bundle=arguments.bundle,
            host=arguments.host,
            port=arguments.port,
            catalogue_dir=arguments.catalogue,
        )
        configure(settings.log_level, settings.log_format)
        app = create_app(settings, open_tracing(os.environ))
    except BadSettings as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(BAD_SETTINGS)
    _serve(app, settings)


if __name__ == "__main__":
    main()
