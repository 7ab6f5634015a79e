"""What other software reads: item vectors as .npy or Parquet, and a sentence-transformers model."""

import json
import shutil
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from models.projection import Projection
from training import JobError
from training.encode import read_llm_vectors
from training.prepare import read_prepared
from training.rat import Trained, read_trained
from training.recipe import Run
from training.run_llm import RunLLM

Format = Literal["npy", "parquet", "sentence-transformers"]
MARK = "llmemb.json"  # of a folder that an export wrote, and may replace
ROWS = 4096  # of one row group
TYPES = "sentence_transformers.models."  # by which every release since the first knows its modules


def export_as(run: Run, form: Format, folder: Path) -> None:
    """Write a finished run for other software, whole or not at all.

    - `npy`: item_ids.json, a list in row order; llm.npy (n, D); of each view in the sum NAME.npy
      (n, W), and NAME.present.npy (n,) bool where not every item has it - its other rows are 0.
      All float32.
    - `parquet`: items.parquet with `item_id`, `llm`, and each view in the sum, null where an item
      does not have it.
    - `sentence-transformers`: a model that the library loads from the folder. It renders no
      attributes: it reads a prompt's body, and puts the instruction in front. It gives what the
      text view has for an item; without that view, the LLM vector.

    Raises:
        JobError: the run is not finished; the folder is there, and no export wrote it; or
            sentence-transformers cannot run such an encoder.
    """
    if folder.exists() and not (folder / MARK).exists():
        raise JobError(f"{folder} is there already, and no export wrote it; name another --output")
    if run.config.encode.vectors != "llm" and form == "sentence-transformers":
        raise JobError('encode.vectors is "tf-idf": there is no LLM to export')
    trained = read_trained(run)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    if form == "sentence-transformers":
        _write_model(run, trained, partial)
    else:
        _write_vectors(run, trained, form, partial)
    facts = {"name": run.config.name, "format": form}
    (partial / MARK).write_text(json.dumps(facts, indent=1) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def _write_vectors(run: Run, trained: Trained, form: Format, folder: Path) -> None:
    catalogue, _ = read_prepared(run)
    ids = [item.item_id for item in catalogue]
    llm = read_llm_vectors(run.finished("encode"))
    tables = {"llm": (llm, np.ones(len(llm), bool))}
    tables |= {view.name: (view.items, view.present) for view in trained.summed}
    if form == "npy":
        (folder / "item_ids.json").write_text(json.dumps(ids, ensure_ascii=False) + "\n")
        for name, (vectors, present) in tables.items():
            np.save(folder / f"{name}.npy", np.where(present[:, None], vectors, np.float32(0)))
            if not present.all():
                np.save(folder / f"{name}.present.npy", present)
        return
    columns: dict[str, Any] = {"item_id": pa.array(ids, pa.string())}
    for name, (vectors, present) in tables.items():
        values = pa.array(np.ascontiguousarray(vectors, np.float32).ravel())
        columns[name] = pa.FixedSizeListArray.from_arrays(
            values, vectors.shape[1], mask=pa.array(~present)
        )
    pq.write_table(pa.table(columns), folder / "items.parquet", row_group_size=ROWS)


def _write_model(run: Run, trained: Trained, folder: Path) -> None:
    """The layout of sentence-transformers: the merged LLM, pooling, and the projection's layers."""
    config = run.config
    if config.llm.attention != "native":
        raise JobError(
            f'llm.attention is "{config.llm.attention}", which sentence-transformers cannot be told'
        )
    if config.llm.lower_layer:
        raise JobError(
            f"llm.lower_layer is {config.llm.lower_layer}, "
            "which sentence-transformers cannot be told"
        )
    # In what the catalogue's vectors were made with: others lie beside them, not among them.
    dtype = run.finished("encode").facts["dtype"]
    if dtype == "int8":
        raise JobError('llm.dtype is "int8", which sentence-transformers cannot be told')
    encoder = RunLLM.of(run).load(dtype)
    encoder.llm.save_pretrained(folder)  # type: ignore[operator]
    tokenizer = encoder.tokenizer
    tokenizer.padding_side = "right"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(folder)
    instruction = config.template.instruction
    opening = len(tokenizer(instruction)["input_ids"])
    _write(
        folder / "sentence_bert_config.json",
        {"max_seq_length": opening + config.llm.max_tokens, "do_lower_case": False},
    )
    _write(
        folder / "config_sentence_transformers.json",
        {"prompts": {"item": instruction}, "default_prompt_name": "item"},
    )
    pooling = {
        "word_embedding_dimension": encoder.dim,
        "pooling_mode_cls_token": False,
        "pooling_mode_mean_tokens": True,
        "pooling_mode_max_tokens": False,
        "pooling_mode_mean_sqrt_len_tokens": False,
        "include_prompt": False,
    }
    modules: list[tuple[str, str, dict[str, Any], dict[str, Tensor]]]
    modules = [("Transformer", "", {}, {}), ("Pooling", "1_Pooling", pooling, {})]
    if any(view.name == "text" for view in trained.summed):
        for linear, activation in linears_of(trained.projection):
            kind = "activation.GELU" if activation else "linear.Identity"
            facts = {
                "in_features": linear.in_features,
                "out_features": linear.out_features,
                "bias": True,
                "activation_function": f"torch.nn.modules.{kind}",
            }
            weights = {f"linear.{name}": value for name, value in linear.state_dict().items()}
            modules.append(("Dense", f"{len(modules)}_Dense", facts, weights))
        if trained.projection.unit:
            modules.append(("Normalize", f"{len(modules)}_Normalize", {}, {}))
    listed = [
        {"idx": place, "name": str(place), "path": path, "type": TYPES + kind}
        for place, (kind, path, _, _) in enumerate(modules)
    ]
    _write(folder / "modules.json", listed)
    for _, path, facts, weights in modules[1:]:
        (folder / path).mkdir()
        if facts:
            _write(folder / path / "config.json", facts)
        if weights:
            save_file(weights, folder / path / "model.safetensors")


def linears_of(projection: Projection) -> list[tuple[nn.Linear, bool]]:
    """A projection as linear layers with bias, and whether a GELU follows each.

    The fitted scaling is the first: directions' x + (-directions' mean).
    """
    directions, mean = projection.directions, projection.mean
    scaling = nn.Linear(directions.shape[0], directions.shape[1])
    with torch.no_grad():
        scaling.weight.copy_(directions.T)
        scaling.bias.copy_(-mean.double() @ directions.double())
    found = [(scaling, False)]
    for layer in projection.layers:
        if isinstance(layer, nn.Linear):
            found.append((layer, False))
        else:  # it follows the layer before
            found[-1] = (found[-1][0], True)
    return found


def _write(path: Path, facts: object) -> None:
    path.write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
