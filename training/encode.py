"""Recipe `encode`: LLM vectors of the whole catalogue, shard by shard.

Writes shards/NNNNN.safetensors, each whole or not there, so that a killed run goes on at the
first missing one. They are made in the cache and linked from the step, so that another run of the
same LLM on the same catalogue finds them.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save, save_file
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from tqdm import tqdm

from models.encoder import Encoder, settled_dtype
from models.item import Catalogue
from training import JobError
from training.config import RunConfig
from training.prepare import read_prepared
from training.recipe import Run, Step, digest, write_atomically
from training.run_llm import RunLLM

TF_IDF_DIM = 576  # as wide as the default LLM's vectors


def encode(run: Run) -> Step:
    """Encode what is not encoded yet.

    Raises:
        JobError: the LLM gives a vector that is not finite.
    """
    config = run.config
    dtype = settled_dtype(config.llm.dtype)
    step = run.step("encode", dtype=dtype)
    if step.done:
        return step
    catalogue, split = read_prepared(run)
    if config.encode.vectors == "tf-idf":
        texts = [config.template.render(item).body for item in catalogue]
        vectors = tf_idf(texts, split.counts[1:] > 0)
        (step.folder / "shards").mkdir(exist_ok=True)
        save_file({"llm": vectors}, step.folder / "shards" / "00000.safetensors")
        step.finish(items=len(catalogue), dtype="float32", dim=vectors.shape[1])
        return step
    with _vectors(run, RunLLM.of(run), catalogue) as shared:
        shutil.rmtree(step.folder / "shards", ignore_errors=True)
        (step.folder / "shards").mkdir()
        for shard in shared.folder.glob("*.safetensors"):
            _link(shard, step.folder / "shards" / shard.name)
        step.finish(dtype=dtype, **shared.facts)
    return step


@contextmanager
def _vectors(run: Run, llm: RunLLM, catalogue: Catalogue) -> Iterator[Step]:
    """The folder, in the cache, of the catalogue's shards by an LLM, once all are encoded."""
    config = run.config
    made = {
        **llm.facts(),
        "prompts": digest([config.template.render(item).text for item in catalogue]),
        "shard_items": config.encode.shard_items,
    }
    with run.shared("vectors", **made) as shared:
        if not shared.done:
            _encode(llm.load(), catalogue, config, shared)
        yield shared


def tf_idf(texts: list[str], fitted: NDArray[np.bool_]) -> NDArray[np.float32]:
    """What the words alone say: (n, at most TF_IDF_DIM) float32, TF-IDF and a truncated SVD of it.

    Words, single characters too, and pairs of words that stand in two texts or more, with
    sublinear counts.

    Args:
        fitted: (n,), the texts that vocabulary, frequencies and directions are taken from.

    Raises:
        JobError: they share fewer than two words.
    """
    words = TfidfVectorizer(
        ngram_range=(1, 2),
        min_df=2,
        sublinear_tf=True,
        token_pattern=r"(?u)\b\w+\b",  # noqa: S106 - of words, no password
        dtype=np.float32,
    )
    try:
        known = words.fit_transform(
            [text for text, fits in zip(texts, fitted, strict=True) if fits]
        )
    except ValueError:
        known = None
    if known is None or min(known.shape) < 2:
        raise JobError('encode.vectors="tf-idf": too few words stand in two items or more')
    svd = TruncatedSVD(min(TF_IDF_DIM, min(known.shape) - 1), random_state=0).fit(known)
    found: NDArray[np.float32] = svd.transform(words.transform(texts)).astype(np.float32)
    return found


def _encode(encoder: Encoder, catalogue: Catalogue, config: RunConfig, shared: Step) -> None:
    """Encode the shards that are not there yet.

    Raises:
        JobError: the LLM gives a vector that is not finite, or a shard cannot be written.
    """
    tokens = cut = 0
    with tqdm(total=len(catalogue), desc="encode", unit="item") as bar:
        for number, start in enumerate(range(0, len(catalogue), config.encode.shard_items)):
            items = catalogue[start : start + config.encode.shard_items]
            path = shared.folder / f"{number:05d}.safetensors"
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
                try:
                    write_atomically(path, save(arrays))
                except OSError as error:
                    raise JobError(
                        f"encode: {path} cannot be written ({error.strerror}); make room and run "
                        "the same command again, it goes on from here"
                    ) from None
                shared.log(shard=number, items=len(items), padding=round(encoded.padding, 5))
            arrays = load_file(path)
            tokens += int(arrays["tokens"].sum())
            cut += int(arrays["cut"].sum())
            bar.update(len(items))
    shared.finish(items=len(catalogue), tokens=tokens, items_cut=cut, dim=encoder.dim)


def _link(source: Path, target: Path) -> None:
    """One file under two names, or a copy where the cache is on another disk."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def read_llm_vectors(step: Step) -> NDArray[np.float32]:
    """(n, d_llm) float32 in catalogue order, of a finished encode step."""
    return _read(step.folder / "shards")


def read_untuned_vectors(run: Run) -> NDArray[np.float32]:
    """The same of the LLM as it was before `scft`; encoded first, where no run has done it yet.

    Of its last layer alone, so that runs share them; those of the encode step where that is the
    same.

    Raises:
        JobError: the encode step is not finished, or the LLM gives a vector that is not finite.
    """
    encoded, config = run.finished("encode"), run.config
    changed = run.finished("scft").facts["adapter"] or config.llm.lower_layer
    if config.encode.vectors == "tf-idf" or not changed:
        return read_llm_vectors(encoded)
    with _vectors(run, RunLLM.untuned(run).last_layer(), read_prepared(run)[0]) as shared:
        return _read(shared.folder)


def read_untuned_vectors_of(run: Run, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """What `encode` would have given without `scft`, of some places (m,), ascending: (m, d_llm)."""
    encoded = run.finished("encode")
    if run.config.encode.vectors == "tf-idf" or not run.finished("scft").facts["adapter"]:
        return read_llm_vectors(encoded)[rows]
    catalogue = read_prepared(run)[0]
    some = Catalogue(catalogue[place] for place in rows.tolist())
    with _vectors(run, RunLLM.untuned(run), some) as shared:
        return _read(shared.folder)


def _read(folder: Path) -> NDArray[np.float32]:
    return np.concatenate([load_file(path)["llm"] for path in sorted(folder.glob("*.safetensors"))])
