"""`python -m service`, but for an LLM that takes a minute over every text that says `slow`."""

import time
from collections.abc import Sequence
from typing import Any

from models.bundle import Bundle
from models.encoder import Tokens
from service.__main__ import main
from service.batcher import Batcher

encode = Bundle.encode_tokens


def slowly(bundle: Bundle, tokens: Sequence[Tokens], *given: Any) -> Any:  # noqa: ANN401
    tokenizer = bundle._encoder.tokenizer
    if any("slow" in tokenizer.decode(each.ids) for each in tokens):
        time.sleep(60)
    return encode(bundle, tokens, *given)


if __name__ == "__main__":
    Bundle.encode_tokens = slowly  # type: ignore[method-assign]
    Batcher.close.__defaults__ = (0.5,)  # how long a running forward pass is waited for
    main()
