"""Recipe `encode`: LLM vectors of the whole catalogue, shard by shard.

Writes shards/NNNNN.safetensors, each whole or not there, so that a killed run goes on at the
first missing one.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from tqdm import tqdm

from models.encoder import Encoder, dtype_name, runtime_dtype
from training.prepare import read_prepared
from training.recipe import JobError, Run, Step


def encode(run: Run) -> Step:
    """Encode what is not encoded yet.

    Raises:
        JobError: the LLM gives a vector that is not finite.
    """
    config = run.config
    dtype = dtype_name(runtime_dtype(config.llm.dtype))
    step = run.step("encode", dtype=dtype)
    if step.done:
        return step
    tuned = run.finished("scft")
    catalogue, _ = read_prepared(run)
    adapter = tuned.folder / tuned.facts["adapter"] if tuned.facts["adapter"] else None
    encoder = Encoder.load(Path(tuned.facts["llm"]), adapter, dtype, config.llm.max_tokens)
    shards = step.folder / "shards"
    shards.mkdir(exist_ok=True)
    tokens = cut = 0
    with tqdm(total=len(catalogue), desc="encode", unit="item") as bar:
        for number, start in enumerate(range(0, len(catalogue), config.encode.shard_items)):
            items = catalogue[start : start + config.encode.shard_items]
            path = shards / f"{number:05d}.safetensors"
            if not path.exists():
                try:
                    encoded = encoder.encode([config.template.render(item) for item in items])
                except FloatingPointError as error:
                    raise JobError(f"encode: {error}") from None
                arrays = {
                    "llm": encoded.vectors,
                    "tokens": encoded.tokens,
                    "cut": np.array([bool(names) for names in encoded.cut]),
                }
                partial = path.with_suffix(".partial")
                save_file(arrays, partial)
                partial.replace(path)
            arrays = load_file(path)
            tokens += int(arrays["tokens"].sum())
            cut += int(arrays["cut"].sum())
            bar.update(len(items))
    step.finish(items=len(catalogue), dtype=dtype, tokens=tokens, items_cut=cut, dim=encoder.dim)
    return step


def read_llm_vectors(step: Step) -> NDArray[np.float32]:
    """(n, d_llm) float32 in catalogue order, of a finished encode step."""
    shards = sorted((step.folder / "shards").glob("*.safetensors"))
    return np.concatenate([load_file(path)["llm"] for path in shards])
