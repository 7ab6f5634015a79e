"""`encode --items --engine ray`: the same encoder in many processes, on one machine or a cluster.

Ray Data hands chunks to a pool of actors, each with an encoder of its own; an actor writes a
chunk's shard itself, so vectors do not travel. When a node is lost, Ray gives its chunks to
another; a chunk that was encoded twice has one shard, and the same one.
"""

import os
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from models import OutOfMemory
from models.prompt import PromptTemplate
from training import JobError
from training.run_llm import RunLLM
from training.stream import Chunk, Shards, tokenise_chunk, write_chunk


class Worker:
    """Encodes chunks in a process of its own, on one GPU or one core."""

    def __init__(
        self,
        llm: RunLLM,
        template: PromptTemplate,
        output: str,
        skip: bool,
    ) -> None:
        if not torch.cuda.is_available():
            torch.set_num_threads(1)
        self.encoder = llm.load()
        self.template = template
        self.shards = Shards(output)
        self.skip = skip

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """Encode the chunks of a batch; how many items each held, and what went wrong with it.

        An error is told, not raised: Ray would try a chunk again that can never be encoded.
        """
        columns = (batch[name].tolist() for name in Chunk._fields)
        items, errors = [], []
        for fields in zip(*columns, strict=True):
            count, error = 0, ""
            try:
                count = self._encode(Chunk(*fields))
            except JobError as failed:
                error = str(failed)
            except OutOfMemory as failed:
                error = f"encode: out of memory: {failed}"
            items.append(count)
            errors.append(error)
        return {"items": items, "error": errors}

    def _encode(self, chunk: Chunk) -> int:
        # A lost node's chunks come again, those that it had written among them.
        if self.shards.holds(chunk):
            return self.shards.told(chunk)["items"]
        read = tokenise_chunk(self.encoder, self.template, chunk, self.skip)
        return write_chunk(self.encoder, chunk, read, self.shards)


def encode_on_ray(
    chunks: Sequence[Chunk],
    llm: RunLLM,
    template: PromptTemplate,
    output: str,
    skip: bool,
) -> Iterator[int]:
    """Encode chunks on the cluster that RAY_ADDRESS names, or else on this machine.

    One worker a GPU, or, where there is none, one a core. The LLM, the items and the output must be
    at the same place for every node.

    Yields:
        Items of a chunk, as chunks are done.

    Raises:
        JobError: Ray is not installed, or a chunk could not be encoded.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray  # noqa: PLC0415
        import ray.data  # noqa: PLC0415
    except ImportError:
        raise JobError("--engine ray needs Ray: sh scripts/install.sh training,ray") from None
    if not ray.is_initialized():
        ray.init(log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    has = ray.cluster_resources()
    gpus, cores = int(has.get("GPU", 0)), int(has.get("CPU", 1))
    workers = max(1, min(gpus or cores, len(chunks)))
    made = {
        "llm": llm.settled(),
        "template": template,
        "output": output,
        "skip": skip,
    }
    rows = ray.data.from_items([chunk._asdict() for chunk in chunks])
    # Blocks of a few chunks: what a lost node had in hand is soon done again.
    done = rows.repartition(min(len(chunks), 16 * workers)).map_batches(
        Worker,
        fn_constructor_kwargs=made,
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=workers),
        num_gpus=1 if gpus else 0,
        num_cpus=0 if gpus else 1,
    )
    for row in done.iter_rows():
        if row["error"]:
            raise JobError(row["error"])
        yield int(row["items"])
