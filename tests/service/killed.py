"""`python -m service`, but killed at a step of an upgrade: KILL_AT is `commit` or `swap`."""

import os
import signal
from typing import Any

from service import beside
from service.__main__ import main
from service.serving import Serving

activate, serve = beside.activate, Serving.serve


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killed_before_the_commit(*given: Any) -> None:  # noqa: ANN401
    activate(*given)
    _die()


def killed_after_the_commit(serving: Serving, parts: Any) -> None:  # noqa: ANN401
    if serving._parts:
        _die()
    serve(serving, parts)


if __name__ == "__main__":
    if os.environ["KILL_AT"] == "commit":
        beside.activate = killed_before_the_commit
    else:
        Serving.serve = killed_after_the_commit  # type: ignore[method-assign]
    main()
