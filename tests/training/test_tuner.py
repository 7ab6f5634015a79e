"""One step of tuning: parts of a batch, and less memory for the same gradients."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.tiny import TEMPLATE, films
from training import JobError
from training.config import LLM, SCFT, Data, RunConfig
from training.processes import Processes
from training.tuner import Tuner

ITEMS, BATCH = 15, 7
Make = Callable[..., Tuner]


@pytest.fixture
def tuner_of(tiny_llm: Path, tmp_path: Path) -> Make:
    """A tuner of films, its adapter no longer as it starts, where half of it has no gradient."""

    def make(processes: Processes | None = None, **settings: object) -> Tuner:
        spec = SCFT(batch_items=BATCH, **settings)  # type: ignore[arg-type]
        config = RunConfig(
            name="t",
            data=Data(source="tabular", path="none"),
            template=TEMPLATE,
            llm=LLM(path=str(tiny_llm), dtype="float32"),
            scft=spec,
        )
        places = None
        if spec.objective == "places":
            drawn = np.random.default_rng(0).normal(size=(ITEMS, 4))
            places = (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)
        tuner = Tuner(films(ITEMS), tiny_llm, config, places, tmp_path)
        if processes:
            tuner.processes = processes
        torch.manual_seed(1)
        for weight in tuner.weights.values():
            torch.nn.init.normal_(weight, std=0.1)
        tuner.peft.train()
        return tuner

    return make


def gradients(tuner: Tuner) -> dict[str, Tensor]:
    return {name: weight.grad for name, weight in tuner.weights.items() if weight.grad is not None}


OBJECTIVES: list[dict[str, object]] = [
    {},
    {"loss": "soft_target"},
    {"objective": "places"},
    {"objective": "places", "layers": 1},
]


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("chunk", [2, 3])
def test_a_batch_in_chunks_has_the_gradients_of_the_whole(
    tuner_of: Make, objective: dict[str, object], chunk: int
) -> None:
    whole = tuner_of(**objective)
    chunked = tuner_of(**objective, chunk_items=chunk)

    losses = [tuner._find_gradients(1) for tuner in (whole, chunked)]

    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    expected = gradients(whole)
    assert expected.keys() == whole.weights.keys()
    torch.testing.assert_close(gradients(chunked), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_a_chunk_is_read_a_second_time_with_the_same_dropout(
    tuner_of: Make, objective: dict[str, object]
) -> None:
    tuner = tuner_of(chunk_items=3, lora_dropout=0.5, **objective)
    batch = tuner._batch(1)
    vectors = torch.zeros(batch.copies * batch.items, tuner.encoder.dim)
    for turn, texts in enumerate(tuner._parts(batch)):
        vectors[texts] = tuner._read(batch, 1, turn, texts)
    tuner.optimiser.zero_grad()  # the head has learnt before
    batch.loss(vectors).backward()
    expected = {name: gradient.clone() for name, gradient in gradients(tuner).items()}

    tuner._find_gradients(1)

    torch.testing.assert_close(gradients(tuner), expected, rtol=1e-4, atol=1e-6)


def test_vectors_of_upper_layers_have_no_dropout(tuner_of: Make) -> None:
    tuner = tuner_of(objective="places", layers=1, lora_dropout=0.5)

    torch.testing.assert_close(tuner.vectors(), tuner.vectors())


def test_processes_share_a_batch_and_take_as_many_turns(tuner_of: Make) -> None:
    tuners = [tuner_of(Processes(index, 2), chunk_items=3) for index in range(2)]

    parts = [[part.tolist() for part in tuner._parts(tuner._batch(0))] for tuner in tuners]

    # Seven items: four and three of them, each with its second copy seven texts on.
    assert parts[0] == [[0, 1, 7, 8], [2, 3, 9, 10]]
    assert parts[1] == [[4, 5, 11, 12], [6, 13]]


def test_layers_that_are_computed_again_give_the_same_gradients(tuner_of: Make) -> None:
    kept, again = tuner_of(), tuner_of(gradient_checkpointing=True)
    ran: list[object] = []
    attention: torch.nn.Module = again.llm.layers[0].self_attn  # type: ignore[index, union-attr]
    attention.register_forward_pre_hook(lambda *told: ran.append(told))

    losses = [tuner._find_gradients(1) for tuner in (kept, again)]

    assert losses[1] == pytest.approx(losses[0], rel=1e-5)  # the one reads the instruction once
    assert len(ran) == 2
    torch.testing.assert_close(gradients(again), gradients(kept), rtol=1e-4, atol=1e-6)


def test_more_processes_than_items_are_refused(tiny_llm: Path, tmp_path: Path) -> None:
    config = RunConfig(
        name="t",
        data=Data(source="tabular", path="none"),
        llm=LLM(path=str(tiny_llm)),
        scft=SCFT(batch_items=2),
    )

    with pytest.raises(JobError, match="a batch of 2 items cannot be shared by 3 processes"):
        Tuner(films(4), tiny_llm, config, None, tmp_path, Processes(1, 3))


@pytest.mark.skipif(
    torch.cuda.is_available() and importlib.util.find_spec("bitsandbytes") is not None,
    reason="this machine can",
)
def test_four_bits_without_a_gpu_are_refused(tuner_of: Make) -> None:
    with pytest.raises(JobError, match='scft.quantise = "4bit" needs a GPU with CUDA'):
        tuner_of(quantise="4bit")


@pytest.mark.parametrize("name", ["gradient_checkpointing", "quantise"])
def test_upper_layers_over_stored_activations_are_run_as_they_are(name: str) -> None:
    value = {"gradient_checkpointing": True, "quantise": "4bit"}[name]

    with pytest.raises(ValueError, match=f"{name} does not go with"):
        SCFT.model_validate({"objective": "places", "layers": 1, name: value})


def test_how_memory_is_spent_makes_no_other_adapter() -> None:
    def facts(**settings: object) -> dict[str, object]:
        config = RunConfig(
            name="t",
            data=Data(source="tabular", path="none"),
            llm=LLM(path="none"),
            scft=SCFT.model_validate(settings),
        )
        return config.facts("scft", "seed")

    assert facts(chunk_items=3, gradient_checkpointing=True) == facts()
    assert facts(quantise="4bit") != facts()
    assert facts(steps=3) != facts()
