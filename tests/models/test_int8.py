from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from models.bundle import Bundle
from models.encoder import Encoder
from models.int8 import Int8Linear, exactly, quantise, why_not_int8
from models.llm import LLMError
from models.manifest import BundleError
from tests.tiny import TEMPLATE, films, write_tiny_bundle

MISSING = why_not_int8()
here = pytest.mark.skipif(MISSING is not None, reason=MISSING or "")
PROMPTS = [TEMPLATE.render(item) for item in films(9)]


@pytest.fixture(scope="module")
def encoder(tiny_llm: Path) -> Encoder:
    return Encoder.load(tiny_llm, dtype="int8")


def linear(weight: list[list[float]], bias: list[float] | None = None) -> nn.Linear:
    layer = nn.Linear(len(weight[0]), len(weight), bias=bias is not None)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight))
        if bias is not None:
            layer.bias.copy_(torch.tensor(bias))
    return layer


def int8(layer: nn.Linear) -> nn.Module:
    """The layer as quantise makes it, measured on states of ones."""
    llm = nn.Sequential(layer)
    llm.forward = lambda input_ids, **_: layer_of(llm)(torch.ones(1, 8, layer.in_features))  # type: ignore[method-assign]
    quantise(llm, [[0]])
    return layer_of(llm)


def layer_of(llm: nn.Sequential) -> nn.Module:
    return llm[0]


@here
def test_a_map_in_int8_is_near_the_map() -> None:
    torch.manual_seed(0)
    exact = nn.Linear(64, 32)
    states = torch.randn(2, 5, 64)

    found = int8(exact)(states)

    expected = exact(states)
    assert isinstance(int8(exact), Int8Linear)
    assert found.shape == (2, 5, 32)
    # Of each factor 1/127 is lost at most, half of it on average, and much of that cancels.
    assert (found - expected).norm() < 0.015 * expected.norm()


@here
def test_a_large_token_does_not_coarsen_another() -> None:
    layer = int8(linear([[1.0, 1.0]]))
    small, large = torch.tensor([[0.01, 0.005]]), torch.tensor([[1e6, 3.0]])

    torch.testing.assert_close(layer(torch.cat([small, large]))[:1], layer(small), rtol=0, atol=0)
    torch.testing.assert_close(layer(small), torch.tensor([[0.015]]), rtol=0.005, atol=0)


@here
def test_a_token_of_zeros_stays_one_and_what_is_not_finite_shows() -> None:
    layer = int8(linear([[1.0, 2.0]], bias=[0.5]))

    assert layer(torch.zeros(1, 2)).item() == 0.5
    assert not torch.isfinite(layer(torch.tensor([[torch.nan, 1.0]]))).any()
    assert not torch.isfinite(layer(torch.tensor([[torch.inf, 1.0]]))).any()


@here
def test_tokens_can_be_read_exactly_meanwhile() -> None:
    layer = int8(linear([[1.0, -1.0]], bias=[0.5]))
    states = torch.tensor([[1000.0, 0.125]])

    with exactly(nn.Sequential(layer)):
        assert layer(states).item() == 1000.375

    assert layer(states).item() == pytest.approx(1000.5, abs=1e-3)  # of 1000 an eighth is nothing


@here
def test_maps_that_are_not_run_stay_as_they_are() -> None:
    llm = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    llm.forward = lambda input_ids, **_: llm[0](torch.ones(1, 8, 2))  # type: ignore[method-assign]

    assert quantise(llm, [[0]]) == 1
    assert [type(each) for each in llm] == [Int8Linear, nn.Linear]


@here
def test_vectors_are_near_those_of_float32(encoder: Encoder, tiny_llm: Path) -> None:
    found = encoder.encode(PROMPTS).vectors

    exact = Encoder.load(tiny_llm, dtype="float32").encode(PROMPTS).vectors
    assert encoder.runs_in == "int8"
    lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(exact, axis=1)
    assert ((found * exact).sum(axis=1) / lengths).min() > 0.999
    assert np.abs(found - exact).max() > 1e-5


@here
def test_a_batch_equals_its_singles(encoder: Encoder) -> None:
    together = encoder.encode(PROMPTS).vectors

    alone = np.concatenate([encoder.encode([prompt]).vectors for prompt in PROMPTS])

    # Where a sum's last digit decides how a number is rounded, it is one of 127 steps off.
    np.testing.assert_allclose(together, alone, atol=0.01 * np.abs(alone).max())


@here
def test_a_bundle_in_int8_shares_no_cached_vector_with_another_dtype(
    tmp_path: Path, tiny_llm: Path
) -> None:
    folder = write_tiny_bundle(tmp_path / "bundle", tiny_llm, dtype="int8")

    own, exact = Bundle.open(folder), Bundle.open(folder, dtype="float32")

    assert (own.dtype, exact.dtype) == ("int8", "float32")
    assert own.encoder_hash != exact.encoder_hash
    assert own.bundle_hash == exact.bundle_hash
    vectors = own.encode([own.prompt(item) for item in own.catalogue]).vectors
    np.testing.assert_allclose(vectors, own.llm_vectors, atol=0.01 * np.abs(vectors).max())


def test_a_machine_that_cannot_multiply_int8_is_told_what_to_take(
    tmp_path: Path, tiny_llm: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text("flags : avx2 fma")
    monkeypatch.setattr("models.cpu.CPU", tmp_path / "cpuinfo")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    with pytest.raises(LLMError, match="AVX512_VNNI.*take float32 or bfloat16"):
        Encoder.load(tiny_llm, dtype="int8")
    with pytest.raises(BundleError, match="cannot be opened here: int8 needs"):
        Bundle.open(tiny_bundle, dtype="int8")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert why_not_int8() == "int8 is for CPUs; on a GPU take bfloat16"
