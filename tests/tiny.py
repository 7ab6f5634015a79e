"""Tiny real parts for tests: a random Llama, a byte-level tokenizer, a bundle made of them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModel, LlamaConfig, PreTrainedConfig, PreTrainedTokenizerFast

from models.bundle_writing import TrainedView, write_bundle
from models.encoder import Attention, Encoder, RuntimeDType
from models.item import Catalogue, Item
from models.manifest import ProjectionSpec
from models.neighbours import Neighbours
from models.projection import Projection
from models.prompt import PromptTemplate
from models.sasrec import SASRec

TEMPLATE = PromptTemplate(noun="film")
LLM_DIM = 16
DIM = 8
MAX_HISTORY = 10
OPTIONS: dict[str, int | float] = {"layers": 1, "heads": 2, "dropout": 0.0}


def write_llm(
    folder: Path,
    seed: int = 0,
    kind: type[PreTrainedConfig] = LlamaConfig,
    layers: int = 2,
    **options: object,
) -> Path:
    """A small random LLM over bytes, a Llama unless told, saved as transformers saves any LLM."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(["<pad>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>").save_pretrained(folder)
    torch.manual_seed(seed)
    config = kind(
        vocab_size=len(vocabulary),
        hidden_size=LLM_DIM,
        intermediate_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=1024,
        pad_token_id=0,
        **options,
    )
    AutoModel.from_config(config).save_pretrained(folder)
    return folder


def films(count: int) -> list[Item]:
    """Films that differ in title, year and genres."""
    genres = ["Action", "Comedy", "Drama", "Horror"]
    return [
        Item(
            item_id=str(number),
            attributes={
                "title": f"Film number {number}",
                "release_year": str(1950 + number % 50),
                "genres": [genres[number % 4], genres[number // 4 % 4]],
            },
        )
        for number in range(count)
    ]


def next_film(catalogue: Catalogue) -> Neighbours:
    """Film number i is followed by number i + 1, and by nothing else."""
    rows = np.array(
        [[catalogue.rows.get(str(int(item.item_id) + 1), 0)] for item in catalogue], np.int32
    )
    return Neighbours(rows, (rows > 0).astype(np.float32), decay=0.5, latest=3)


def write_tiny_bundle(
    folder: Path,
    llm: Path,
    count: int = 12,
    seed: int = 0,
    include_llm: bool = True,
    attention: Attention = "native",
    lower_layer: int = 0,
    dtype: RuntimeDType = "float32",
    template: PromptTemplate = TEMPLATE,
    views: Sequence[str] = ("text", "id"),
    width: int = DIM,
) -> Path:
    """A bundle with a `text` view of all films and an `id` view of all but the last film.

    Each film is followed by the next. Of 12 films number 0 to 11 have 6, 5, 5, 4, 4, 3, 3, 2, 2,
    1, 1 and 0 interactions; number 0 is the head, with more than the third of them.

    Args:
        width: of the `text` view.
    """
    catalogue = Catalogue(films(count))
    encoder = Encoder.load(llm, dtype=dtype, attention=attention, lower_layer=lower_layer)
    llm_vectors = encoder.encode([template.render(item) for item in catalogue]).vectors
    torch.manual_seed(seed)
    spec = ProjectionSpec(dims=(8, 12, width), scaling="whiten", unit=True, activation="gelu")
    projection = Projection(llm_vectors.shape[1], **dict(spec))
    projection.fit(llm_vectors)
    with torch.inference_mode():
        text = projection(torch.from_numpy(llm_vectors)).numpy()
    everyone = np.ones(count, bool)
    known = everyone.copy()
    known[catalogue.rows[str(count - 1)] - 1] = False

    def view(name: str, items: np.ndarray, present: np.ndarray) -> TrainedView:
        return TrainedView(
            name=name,
            source="projection" if name == "text" else "table",
            sequence_model="sasrec",
            options=OPTIONS,
            max_history=MAX_HISTORY,
            weight=0.5,
            model=SASRec(items.shape[1], MAX_HISTORY, **OPTIONS).eval(),  # type: ignore[arg-type]
            items=items,
            present=present,
            trained=known,
        )

    interactions = np.array([(count - int(item.item_id)) // 2 for item in catalogue], np.int64)
    ids = np.random.default_rng(seed).normal(size=(count, 4)).astype(np.float32)
    both = [view("text", text, everyone), view("id", ids * known[:, None], known)]
    write_bundle(
        folder,
        name="tiny",
        version="0",
        llm=llm,
        llm_name="tiny-llama",
        llm_revision=None,
        include_llm=include_llm,
        adapter=None,
        template=template,
        max_tokens=128,
        attention=attention,
        lower_layer=lower_layer,
        dtype=dtype,
        catalogue=catalogue,
        llm_vectors=llm_vectors,
        interactions=interactions,
        head=interactions > np.sort(interactions)[::-1][count // 5],
        projection=projection,
        projection_spec=spec,
        views=[each for each in both if each.name in views],
        partial_factors={},
        neighbours=next_film(catalogue),
        neighbours_weight=0.5,
        data="tiny",
        metrics={},
        card=lambda _: "# tiny\n",
    )
    return folder
