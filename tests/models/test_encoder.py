from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from models import OutOfMemory
from models import encoder as module
from models.encoder import Encoder, batches_by_length
from models.item import Item
from models.llm import LLMError, fingerprint_folder, load_model
from models.prompt import Prompt, PromptTemplate
from tests.tiny import TEMPLATE, films, write_llm


@pytest.fixture(scope="module")
def encoder(tiny_llm: Path) -> Encoder:
    return Encoder.load(tiny_llm, dtype="float32")


def prompts(count: int) -> list[Prompt]:
    return [TEMPLATE.render(item) for item in films(count)]


def test_a_batch_equals_its_singles(encoder: Encoder) -> None:
    texts = [*prompts(9), Prompt(TEMPLATE.instruction, "x", (("title", 1),))]

    together = encoder.encode(texts).vectors

    alone = np.concatenate([encoder.encode([text]).vectors for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_the_token_budget_changes_no_vector(encoder: Encoder) -> None:
    np.testing.assert_allclose(
        encoder.encode(prompts(9), batch_tokens=1).vectors,
        encoder.encode(prompts(9), batch_tokens=10_000).vectors,
        atol=1e-5,
    )


def test_an_llm_that_is_loaded_elsewhere_meanwhile_changes_no_vector(encoder: Encoder) -> None:
    prompts = [TEMPLATE.render(item) for item in films(5)]
    expected = encoder.encode(prompts).vectors
    torch.set_default_dtype(torch.bfloat16)  # of the process, as transformers does while it loads
    try:
        meanwhile = encoder.encode(prompts).vectors
    finally:
        torch.set_default_dtype(torch.float32)

    np.testing.assert_array_equal(meanwhile, expected)


def test_the_llm_reads_an_instruction_once(tiny_llm: Path) -> None:
    encoder = Encoder.load(tiny_llm, dtype="float32")
    read = []
    encoder.llm.register_forward_pre_hook(
        lambda _module, _inputs, named: read.append(named["input_ids"].shape), with_kwargs=True
    )

    encoder.encode([Prompt("abc", "de", ()), Prompt("abc", "f", ())])
    encoded = encoder.encode([Prompt("abc", "gh", ()), Prompt("abc", "i", ())])

    assert read == [(1, 3), (2, 2), (2, 2)]
    assert encoded.padding == 1 / 4


def test_an_llm_that_is_tuned_reads_everything_each_time(tiny_llm: Path) -> None:
    encoder = Encoder.load(tiny_llm, dtype="float32")
    before = encoder.encode([Prompt("abc", "de", ())]).vectors
    tuned = Encoder(encoder.llm.requires_grad_(True), encoder.tokenizer)

    with torch.no_grad():
        tuned.encode([Prompt("abc", "de", ())])
        for weight in tuned.llm.parameters():
            weight.mul_(1.1)
        after = tuned.encode([Prompt("abc", "de", ())]).vectors
        fresh = Encoder(tuned.llm, tuned.tokenizer)([tuned.tokenise([Prompt("abc", "de", ())])[0]])

    np.testing.assert_allclose(after, fresh, atol=1e-5)
    assert np.abs(after - before).max() > 1e-3


def test_a_step_of_tuning_reads_an_instruction_once_and_has_the_gradients_of_the_whole(
    tiny_llm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TUNED_TOKENS", 12)
    encoder = Encoder.load(tiny_llm, dtype="float32")
    encoder.llm.requires_grad_(True)
    tokens = encoder.tokenise([Prompt("abc", body, ()) for body in ("de", "fghijk", "l", "mnopq")])
    weights = torch.arange(4 * encoder.dim).view(4, -1) % 7.0

    (encoder(tokens) * weights).sum().backward()
    expected = {name: weight.grad for name, weight in encoder.llm.named_parameters()}
    encoder.llm.zero_grad()
    read = []
    encoder.llm.register_forward_pre_hook(
        lambda _module, _inputs, named: read.append(named["input_ids"].shape), with_kwargs=True
    )
    vectors = encoder.tuned(tokens)
    (vectors * weights).sum().backward()

    assert read == [(1, 3), (2, 6), (2, 2)]
    torch.testing.assert_close(vectors, encoder(tokens), atol=1e-5, rtol=1e-4)
    for name, weight in encoder.llm.named_parameters():
        torch.testing.assert_close(weight.grad, expected[name], atol=1e-4, rtol=1e-3)


def test_a_vector_is_the_mean_over_the_items_own_tokens(encoder: Encoder) -> None:
    prompt = Prompt("ab", "cde", (("title", 3),))
    ids = torch.tensor([encoder.tokenizer("abcde")["input_ids"]])
    with torch.inference_mode():
        states = encoder.llm(input_ids=ids).last_hidden_state[0]

    encoded = encoder.encode([prompt])

    np.testing.assert_allclose(encoded.vectors[0], states[2:].mean(dim=0).numpy(), atol=1e-5)
    assert encoded.tokens.tolist() == [3]


def test_a_lower_layers_states_are_pooled_before_those_of_the_last(
    tiny_llm: Path, encoder: Encoder
) -> None:
    both = Encoder.load(tiny_llm, dtype="float32", lower_layer=1)
    ids = torch.tensor([both.tokenizer("abcde")["input_ids"]])
    with torch.inference_mode():
        states = both.llm(input_ids=ids, output_hidden_states=True).hidden_states[1][0]
        lower = both.llm.norm(states)[2:].mean(dim=0).numpy()

    vectors = both.encode([Prompt("ab", "cde", (("title", 3),))]).vectors

    last = encoder.encode([Prompt("ab", "cde", (("title", 3),))]).vectors
    np.testing.assert_allclose(vectors, np.concatenate([lower[None], last], axis=1), atol=1e-5)
    assert both.dim == 2 * encoder.dim


@pytest.mark.parametrize("layer", [2, 5])
def test_a_lower_layer_is_one_below_the_last(tiny_llm: Path, layer: int) -> None:
    with pytest.raises(
        LLMError, match=f"lower_layer={layer}: the LLM has 2 layers; name .* 1 to 1"
    ):
        Encoder.load(tiny_llm, dtype="float32", lower_layer=layer)


def test_text_beyond_the_limit_is_cut_and_its_attributes_are_named(tiny_llm: Path) -> None:
    short = Encoder.load(tiny_llm, dtype="float32", max_tokens=len("title is Sea; br"))
    template = PromptTemplate(priority=("title",))
    item = Item(item_id="1", attributes={"title": "Sea", "brand": "Bee", "colour": "red"})

    encoded = short.encode([template.render(item)])

    assert encoded.cut == [("brand", "colour")]
    assert encoded.tokens.tolist() == [16]


def test_a_merged_adapter_gives_the_vectors_of_the_unmerged_one(
    tiny_llm: Path, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    tuned = get_peft_model(
        load_model(tiny_llm, torch.float32),
        LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False),
    )
    tuned.save_pretrained(str(tmp_path))
    plain = Encoder.load(tiny_llm, dtype="float32")
    unmerged = Encoder(tuned.eval(), plain.tokenizer)

    merged = Encoder.load(tiny_llm, tmp_path, dtype="float32")

    expected = unmerged.encode(prompts(3)).vectors
    np.testing.assert_allclose(merged.encode(prompts(3)).vectors, expected, atol=1e-5)
    assert not np.allclose(expected, plain.encode(prompts(3)).vectors, atol=1e-3)


def test_below_the_layers_that_were_tuned_the_states_are_the_llms_own(
    tiny_llm: Path, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    upper = ["layers.1.self_attn.q_proj", "layers.1.mlp.up_proj"]
    tuned = get_peft_model(
        load_model(tiny_llm, torch.float32),
        LoraConfig(r=2, target_modules=upper, init_lora_weights=False),
    )
    tuned.save_pretrained(str(tmp_path))

    before = Encoder.load(tiny_llm, dtype="float32", lower_layer=1).encode(prompts(3)).vectors
    after = (
        Encoder.load(tiny_llm, tmp_path, dtype="float32", lower_layer=1).encode(prompts(3)).vectors
    )

    width = before.shape[1] // 2
    np.testing.assert_array_equal(after[:, :width], before[:, :width])
    assert not np.allclose(after[:, width:], before[:, width:], atol=1e-3)


def test_batches_hold_every_position_once_and_keep_the_budget() -> None:
    lengths = [3, 9, 1, 4, 4, 30]

    found = list(batches_by_length(lengths, budget=12))

    assert sorted(place for batch in found for place in batch) == list(range(6))
    assert found[0] == [5]  # longer than the budget: alone
    assert all(len(b) * max(lengths[p] for p in b) <= 12 for b in found[1:])


def test_running_out_of_memory_has_an_error_of_its_own(encoder: Encoder) -> None:
    class Full(torch.nn.Module):
        config = encoder.llm.config

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, **_: object) -> None:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    with pytest.raises(OutOfMemory, match="1 prompts"):
        Encoder(Full(), encoder.tokenizer).encode(prompts(1))


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LLMError, match="needs config.json"):
        fingerprint_folder(tmp_path)


def test_two_llms_have_two_fingerprints(tiny_llm: Path, tmp_path: Path) -> None:
    assert fingerprint_folder(tiny_llm) == fingerprint_folder(write_llm(tmp_path / "same"))
    assert fingerprint_folder(tiny_llm) != fingerprint_folder(write_llm(tmp_path / "b", seed=1))


@pytest.mark.parametrize(
    ("cpu", "expected"),
    [
        ("vendor_id : AuthenticAMD\nflags : avx512f avx512_bf16", torch.bfloat16),
        ("vendor_id : GenuineIntel\nflags : avx512f avx512_bf16", torch.float32),
        ("vendor_id : GenuineIntel\nflags : avx512_bf16 amx_bf16", torch.bfloat16),
        ("vendor_id : AuthenticAMD\nflags : avx2", torch.float32),
    ],
)
def test_bfloat16_is_chosen_where_it_is_faster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpu: str, expected: torch.dtype
) -> None:
    (tmp_path / "cpuinfo").write_text(cpu)
    monkeypatch.setattr("models.cpu.CPU", tmp_path / "cpuinfo")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    assert module.runtime_dtype() == expected


def test_of_a_text_far_beyond_the_limit_only_the_beginning_is_tokenised(tiny_llm: Path) -> None:
    reader = Encoder.load(tiny_llm, dtype="float32", max_tokens=8)
    longest = 2 * 8 * max(map(len, reader.tokenizer.get_vocab()))
    seen: list[int] = []
    tokenizer = reader.tokenizer

    def watched(texts: list[str], **options: Any) -> Any:  # noqa: ANN401 - transformers' own
        seen.extend(map(len, texts))
        return tokenizer(texts, **options)

    text = "a" * 1_000_000
    prompts = [
        Prompt("", text[:longest] + end, (("title", longest + len(end)),)) for end in ("", text)
    ]
    reader.tokenizer = watched
    short, long = reader.tokenise(prompts)

    assert seen == [longest, longest]
    assert (short.ids, short.cut) == (long.ids, long.cut) == ([*short.ids[:8]], ("title",))
