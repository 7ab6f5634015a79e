"""The same encoder over LLMs of other families: random small ones, as transformers builds them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen3Config,
)

from models.encoder import Attention, Encoder
from models.prompt import Prompt
from tests.tiny import TEMPLATE, films, write_llm

# A window shorter than the prompts, where the family has windows.
FAMILIES: dict[str, tuple[type[PreTrainedConfig], dict[str, Any]]] = {
    "llama": (LlamaConfig, {}),
    "qwen3": (Qwen3Config, {"head_dim": 8}),
    "mistral": (MistralConfig, {"sliding_window": 16}),
    "gemma2": (Gemma2Config, {"head_dim": 8, "sliding_window": 16}),
    "gemma3": (Gemma3TextConfig, {"head_dim": 8, "sliding_window": 16}),
}


@pytest.fixture(scope="module", params=FAMILIES)
def llm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    kind, options = FAMILIES[request.param]
    return write_llm(tmp_path_factory.mktemp(request.param), kind=kind, **options)


def prompts() -> list[Prompt]:
    return [*map(TEMPLATE.render, films(5)), Prompt(TEMPLATE.instruction, "x", (("title", 1),))]


@pytest.mark.parametrize("lower_layer", [0, 1])
@pytest.mark.parametrize("attention", ["native", "bidirectional"])
def test_padding_is_invisible_whichever_way_tokens_see_each_other(
    llm: Path, attention: Attention, lower_layer: int
) -> None:
    encoder = Encoder.load(llm, dtype="float32", attention=attention, lower_layer=lower_layer)

    together = encoder.encode(prompts()).vectors

    alone = np.concatenate([encoder.encode([prompt]).vectors for prompt in prompts()])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert np.ptp(together, axis=0).max() > 0.01  # items differ


@pytest.mark.parametrize("lower_layer", [0, 1])
@pytest.mark.parametrize("instruction", ["A film: ", TEMPLATE.instruction])  # in a window, and not
def test_an_instruction_read_once_gives_the_vectors_of_one_read_every_time(
    llm: Path, instruction: str, lower_layer: int
) -> None:
    encoder = Encoder.load(llm, dtype="float32", lower_layer=lower_layer)
    batch = encoder.tokenise([Prompt(instruction, each.body, each.ends) for each in prompts()])

    with torch.inference_mode():
        once = [encoder(batch), encoder(batch)]

    with torch.enable_grad():  # reads everything
        every_time = encoder(batch)
    for each in once:
        np.testing.assert_allclose(each, every_time, atol=1e-5)


def test_a_token_sees_what_comes_later_only_if_attention_is_bidirectional(llm: Path) -> None:
    def first_state(encoder: Encoder, text: str) -> torch.Tensor:
        tokens = encoder.tokenise([Prompt("", text, (("title", len(text)),))])[0]
        states = []
        hook = encoder.llm.register_forward_hook(
            lambda _module, _inputs, output: states.append(output.last_hidden_state)
        )
        with torch.inference_mode():
            encoder([tokens])
        hook.remove()
        return states[0][0, 0]

    native = Encoder.load(llm, dtype="float32")
    both = Encoder.load(llm, dtype="float32", attention="bidirectional")

    assert torch.equal(first_state(native, "abc"), first_state(native, "abd"))
    assert not torch.allclose(first_state(both, "abc"), first_state(both, "abd"), atol=1e-4)
