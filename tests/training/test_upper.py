import resource
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import BertConfig

from models.encoder import Attention, Encoder
from models.llm import load_model, load_tokenizer
from tests.models.test_llms import FAMILIES
from tests.tiny import TEMPLATE, films, write_llm
from training import JobError
from training.upper import UpperLayers, stored_in, upper_linears

LAYERS = 4
UPPER = ["layers.2.self_attn.q_proj", "layers.3.mlp.down_proj"]


@pytest.fixture(params=FAMILIES)
def llm(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    kind, options = FAMILIES[request.param]
    return write_llm(tmp_path / "llm", kind=kind, layers=LAYERS, **options)


def whole(folder: Path, attention: Attention = "native") -> Encoder:
    return Encoder(load_model(folder, torch.float32), load_tokenizer(folder), attention=attention)


def upper_layers(encoder: Encoder, folder: Path, layers: int = 2) -> UpperLayers:
    prompts = encoder.tokenise([TEMPLATE.render(item) for item in films(7)])
    return UpperLayers(encoder.llm, layers, encoder, prompts, folder / "stored")


@pytest.mark.parametrize("attention", ["native", "bidirectional"])
def test_upper_layers_over_stored_activations_are_the_whole_llm(
    llm: Path, tmp_path: Path, attention: Attention
) -> None:
    encoder = whole(llm, attention)

    upper = upper_layers(encoder, tmp_path)

    expected = torch.from_numpy(encoder.encode([TEMPLATE.render(f) for f in films(7)]).vectors)
    torch.testing.assert_close(upper.all(), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(upper([5, 1]), expected[[5, 1]], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("note", "again"), [(None, True), ("0 of 1", True), ("1 of 1", False), ("1 of 2", True)]
)
def test_what_a_process_stored_before_it_was_killed_is_not_computed_again(
    tmp_path: Path, note: str | None, again: bool
) -> None:
    encoder = whole(write_llm(tmp_path / "llm", layers=LAYERS))
    expected = upper_layers(encoder, tmp_path).all()
    activations, noted = stored_in(tmp_path / "stored")
    assert noted.read_text() == "1 of 1"  # batches: seven films fit in one
    with activations.open("rb+") as file:
        file.write(bytes(4000))
    if note is None:
        noted.unlink()
    else:
        noted.write_text(note)

    found = upper_layers(encoder, tmp_path).all()

    assert torch.equal(found, expected) is again
    assert noted.read_text() == "1 of 1"


def test_activations_of_another_size_are_computed_anew(tmp_path: Path) -> None:
    encoder = whole(write_llm(tmp_path / "llm", layers=LAYERS))
    expected = upper_layers(encoder, tmp_path).all()
    (tmp_path / "stored").write_bytes(b"of another catalogue")

    torch.testing.assert_close(upper_layers(encoder, tmp_path).all(), expected, atol=0, rtol=0)


def test_what_peft_puts_into_the_llm_runs_in_its_upper_layers_too(
    llm: Path, tmp_path: Path
) -> None:
    encoder = whole(llm)
    upper = upper_layers(encoder, tmp_path)
    torch.manual_seed(1)
    tuned = get_peft_model(
        encoder.llm,  # type: ignore[arg-type]
        LoraConfig(r=2, target_modules=UPPER, init_lora_weights=False),
    )

    vectors = upper([0, 4])
    unmerged = Encoder(tuned, encoder.tokenizer)([upper.prompts[0], upper.prompts[4]])
    torch.testing.assert_close(vectors, unmerged, atol=1e-5, rtol=1e-4)
    vectors.sum().backward()
    moved = [name for name, weight in tuned.named_parameters() if weight.grad is not None]
    assert len(moved) == 2 * len(UPPER)
    assert all("lora_" in name for name in moved)


def test_activations_that_do_not_fit_on_the_disk_are_a_clear_error(tmp_path: Path) -> None:
    encoder = whole(write_llm(tmp_path / "llm", layers=LAYERS))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(JobError, match="activations cannot be written"):
            upper_layers(encoder, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

    assert not (tmp_path / "stored").exists()


def test_an_encoder_of_another_build_is_refused_by_its_name(tmp_path: Path) -> None:
    encoder = whole(write_llm(tmp_path / "bert", kind=BertConfig))

    with pytest.raises(JobError, match="scft.layers=1: BertModel is no decoder"):
        upper_layers(encoder, tmp_path, 1)
    with pytest.raises(JobError, match="scft.layers=1: BertModel is no decoder"):
        upper_linears(encoder.llm, 1)


@pytest.mark.parametrize("layers", [LAYERS, 9])
def test_an_llm_without_so_many_layers_says_so(tmp_path: Path, layers: int) -> None:
    encoder = whole(write_llm(tmp_path / "llm", layers=LAYERS))

    with pytest.raises(JobError, match=f"scft.layers={layers}: the LLM has 4 layers"):
        upper_layers(encoder, tmp_path, layers)
