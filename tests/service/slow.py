"""`python -m service`, but for an LLM that takes a minute over every text that says `slow`."""

import time
from collections.abc import Sequence
from typing import Any

from models.bundle import Bundle
from models.prompt import Prompt
from service.__main__ import main
from service.batcher import Batcher

encode = Bundle.encode


def slowly(bundle: Bundle, prompts: Sequence[Prompt], *given: Any) -> Any:  # noqa: ANN401
    if any("slow" in prompt.body for prompt in prompts):
        time.sleep(60)
    return encode(bundle, prompts, *given)


if __name__ == "__main__":
    Bundle.encode = slowly  # type: ignore[method-assign]
    Batcher.close.__defaults__ = (0.5,)  # how long a running forward pass is waited for
    main()
