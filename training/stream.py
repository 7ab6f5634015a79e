"""`encode --items`: LLM vectors of a catalogue that need not fit in memory.

Items are read from JSONL or Parquet, on this disk or at any URL that fsspec knows, in chunks of
`encode.shard_items`, and each chunk's vectors are written as a shard of Parquet that appears whole
or not at all. A chunk is known by its place in the files, so any process can encode it, in any
order, more than once: the shard is the same. A run that was killed goes on with what is missing.

Writes encode.json (what the vectors depend on), NNNNNNNN.parquet (`item_id`, `llm`, `tokens`,
`cut`), NNNNNNNN.rejected.jsonl where lines were skipped, and done.json.
"""

import io
import json
import logging
import os
import re
import uuid
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem
from tqdm import tqdm

from models.encoder import Encoded, Encoder, Tokens
from models.item import InvalidItem, Item, parse_line
from models.prompt import PromptTemplate
from training import JobError
from training.recipe import Run, write_atomically
from training.run_llm import RunLLM
from training.sources import item_of

log = logging.getLogger(__name__)
MADE, DONE = "encode.json", "done.json"
BLOCK = 1 << 23  # bytes read at once to find where lines begin
ENDINGS = (".jsonl", ".parquet")
# What a store calls the ETag or, failing that, the time of the last change.
VERSIONS = ("ETag", "etag", "mtime", "LastModified", "last_modified", "modify", "created")
SHARD = re.compile(r"(\d+)\.parquet")
PARTIAL = re.compile(r"\.(encode\.json|done\.json|\d+\.\w+(\.jsonl)?)\.[0-9a-f]{32}\.partial")
Engine = Literal["local", "ray"]


class Source(NamedTuple):
    """A file of items.

    Attributes:
        version: its ETag or time of change, as its store tells; empty where it tells neither.
    """

    url: str
    size: int
    version: str


class Chunk(NamedTuple):
    """A stretch of a file: bytes of JSONL, or rows of Parquet.

    Attributes:
        first: line, or row, of its first item, from 1.
    """

    number: int
    url: str
    start: int
    stop: int
    first: int

    @property
    def shard(self) -> str:
        """Its shard's name, without an ending."""
        return f"{self.number:08d}"


class ReadChunk(NamedTuple):
    """What a chunk holds, ready for the LLM."""

    ids: list[str]
    tokens: list[Tokens]
    rejected: list[str]


def encode_stream(
    run: Run, items: str, output: str, skip: bool = False, engine: Engine = "local"
) -> dict[str, int]:
    """Encode every item of a file or folder that is not encoded yet; how much there is then.

    Args:
        items: a .jsonl or .parquet file, a folder of them, or a pattern with `*`; a path or a URL.
        output: folder or URL for the shards.
        skip: whether a line that is no item is left out and listed, or ends the run.
        engine: `local` runs the LLM in this process; `ray` as training.on_ray tells.

    Raises:
        JobError: nothing is there to read; a line is no item, and `skip` is False; the output
            holds other vectors, or cannot be written; a vector is not finite.
    """
    config = run.config
    if config.encode.vectors != "llm":
        raise JobError(f'encode.vectors is "{config.encode.vectors}"; --items needs "llm"')
    # Without tuning there is nothing to wait for: no step need be finished.
    llm = RunLLM.untuned(run) if config.scft.steps == 0 else RunLLM.of(run)
    sources = _files(items)
    shards = Shards(output)
    made = {
        **llm.facts(),
        "template": config.template.model_dump(mode="json"),
        "shard_items": config.encode.shard_items,
        "catalogue": [source._asdict() for source in sources],
        "skip": skip,
    }
    shards.claim(made)
    chunks = [*chunks_of([source.url for source in sources], config.encode.shard_items)]
    todo = [chunk for chunk in chunks if chunk.shard not in shards.present]
    log.info("encode: %d of %d shards are there", len(chunks) - len(todo), len(chunks))
    if todo:
        size = config.encode.shard_items
        if engine == "ray":
            from training.on_ray import encode_on_ray  # noqa: PLC0415 - an extra

            counts = encode_on_ray(todo, llm, config.template, shards.url, skip)
        else:
            counts = _encode(llm.load(), todo, config.template, shards, skip)
        with tqdm(total=len(todo) * size, desc="encode", unit="item") as bar:
            for count in counts:
                bar.update(count)
    return shards.finish(chunks)


def _files(items: str) -> list[Source]:
    """The files to read, by name."""
    try:
        fs, path = fsspec.url_to_fs(items)
        if "*" in path:
            found = fs.glob(path)
        elif fs.isdir(path):
            found = [each for each in fs.ls(path, detail=False) if each.endswith(ENDINGS)]
        else:
            found = [path]
        named = [_source(fs, each) for each in sorted(found)]
    except (OSError, ValueError, ImportError) as error:
        raise JobError(f"--items {items} cannot be read: {error}") from None
    if not named:
        raise JobError(f"--items {items}: there is no .jsonl or .parquet file")
    for source in named:
        if not source.url.endswith(ENDINGS):
            raise JobError(f"--items: {source.url} ends in neither .jsonl nor .parquet")
    return named


def _source(fs: fsspec.AbstractFileSystem, path: str) -> Source:
    # A link's own time of change is not that of the file behind it.
    told = fs.info(os.path.realpath(path) if isinstance(fs, LocalFileSystem) else path)
    version = next((str(told[name]) for name in VERSIONS if told.get(name)), "")
    return Source(fs.unstrip_protocol(path), int(told["size"]), version)


def chunks_of(urls: Iterable[str], size: int) -> Iterator[Chunk]:
    """The files' chunks of `size` lines or rows, the last of each file shorter.

    Reads JSONL through once, without looking into it; of Parquet the footer alone.

    Raises:
        JobError: a file cannot be read.
    """
    number = 0
    for url in urls:
        cut = _cut_rows(url, size) if url.endswith(".parquet") else _cut_lines(url, size)
        try:
            for start, stop, first in cut:
                yield Chunk(number, url, start, stop, first)
                number += 1
        except (OSError, pa.ArrowInvalid) as error:
            raise JobError(f"--items: {url} cannot be read: {error}") from None


def _cut_rows(url: str, size: int) -> Iterator[tuple[int, int, int]]:
    with fsspec.open(url, "rb") as file:
        rows = pq.ParquetFile(file).metadata.num_rows
    for start in range(0, rows, size):
        yield start, min(start + size, rows), start + 1


def _cut_lines(url: str, size: int) -> Iterator[tuple[int, int, int]]:
    start = seen = lines = 0
    first = 1
    with fsspec.open(url, "rb") as file:
        while block := file.read(BLOCK):
            at = -1
            while (at := block.find(b"\n", at + 1)) >= 0:
                lines += 1
                if lines % size == 0:
                    yield start, seen + at + 1, first
                    start, first = seen + at + 1, lines + 1
            seen += len(block)
    if seen > start:
        yield start, seen, first


def read_chunk(chunk: Chunk) -> Iterator[Item | InvalidItem]:
    """A chunk's items; in the place of a line that is none, what is wrong with it."""
    name = chunk.url.rsplit("/", 1)[-1]
    rows = _rows(chunk) if chunk.url.endswith(".parquet") else None
    if rows is not None:
        for number, row in enumerate(rows, chunk.first):
            where = f"{name}:row {number}"
            if isinstance(row, str):
                yield InvalidItem(f"{where}: {row}: not UTF-8")
                continue
            try:
                if row.get("item_id") is None:
                    raise InvalidItem(f"{where}: item_id is empty")
                yield item_of(str(row.pop("item_id")), row, where)
            except (InvalidItem, JobError) as error:
                yield InvalidItem(str(error))
        return
    with fsspec.open(chunk.url, "rb") as file:
        file.seek(chunk.start)
        lines = file.read(chunk.stop - chunk.start).split(b"\n")
    for number, line in enumerate(lines, chunk.first):
        if line.strip():
            try:
                yield parse_line(line, f"{name}:{number}", ignore_other_fields=True)
            except InvalidItem as error:
                yield error


def _rows(chunk: Chunk) -> Iterator[dict[str, Any] | str]:
    """Rows of a Parquet file, of the row groups that hold them alone.

    In the place of a row with a text that is no UTF-8, which Parquet does not look for, the
    column's name.
    """
    with fsspec.open(chunk.url, "rb") as source:
        file = pq.ParquetFile(source)
        if "item_id" not in file.schema_arrow.names:
            raise JobError(f"--items: {chunk.url} has no column item_id")
        end = 0
        for group in range(file.num_row_groups):
            begin, end = end, end + file.metadata.row_group(group).num_rows
            if begin < chunk.stop and end > chunk.start:
                table = file.read_row_group(group)
                first, last = max(chunk.start - begin, 0), min(chunk.stop, end) - begin
                yield from _told(table.slice(first, last - first))


def _told(table: pa.Table) -> Iterator[dict[str, Any] | str]:
    try:
        yield from table.to_pylist()
        return
    except UnicodeDecodeError:  # before the first row
        pass
    for number in range(table.num_rows):
        row = table.slice(number, 1)
        for name in table.column_names:
            try:
                row[name].to_pylist()
            except UnicodeDecodeError:
                yield name
                break
        else:
            yield row.to_pylist()[0]


def tokenise_chunk(
    encoder: Encoder, template: PromptTemplate, chunk: Chunk, skip: bool
) -> ReadChunk:
    """A chunk's items as tokens.

    Args:
        skip: whether a line that is no item is left out and told, or ends the run.

    Raises:
        JobError: a line is no item, and `skip` is False; or the file cannot be read.
    """
    ids, tokens, rejected = [], [], []
    try:
        for item in read_chunk(chunk):
            try:
                if isinstance(item, InvalidItem):
                    raise item
                tokens += encoder.tokenise([template.render(item)])
                ids.append(item.item_id)
            except InvalidItem as error:
                if not skip:
                    raise JobError(f"encode: {error}; mend it, or add --skip-unusable") from None
                rejected.append(str(error))
    except (OSError, pa.ArrowInvalid) as error:
        raise JobError(f"--items: {chunk.url} cannot be read: {error}") from None
    return ReadChunk(ids, tokens, rejected)


def write_chunk(encoder: Encoder, chunk: Chunk, read: ReadChunk, shards: "Shards") -> int:
    """Encode a chunk that was read, and write its shard; how many items it holds.

    Raises:
        JobError: a vector is not finite, or the shard cannot be written.
    """
    try:
        encoded = encoder.encode_tokens(read.tokens)
    except FloatingPointError as error:
        raise JobError(f"encode: {error}") from None
    shards.write(chunk, read, encoded)
    return len(read.ids)


def _encode(
    encoder: Encoder,
    chunks: Sequence[Chunk],
    template: PromptTemplate,
    shards: "Shards",
    skip: bool,
) -> Iterator[int]:
    """Encode chunks one after the other, the next read while the LLM runs; items of each."""
    with ThreadPoolExecutor(1) as reader:
        ahead = reader.submit(tokenise_chunk, encoder, template, chunks[0], skip)
        for place, chunk in enumerate(chunks):
            read = ahead.result()
            if place + 1 < len(chunks):
                following = chunks[place + 1]
                ahead = reader.submit(tokenise_chunk, encoder, template, following, skip)
            yield write_chunk(encoder, chunk, read, shards)


class Shards:
    """The folder of shards.

    Attributes:
        url: where it is, for any process.
        present: names of the shards that were whole when it was opened.
    """

    def __init__(self, output: str) -> None:
        self.output = output
        try:
            self.fs, self.root = fsspec.url_to_fs(output)
            self.fs.makedirs(self.root, exist_ok=True)
            names = [each.rsplit("/", 1)[-1] for each in self.fs.ls(self.root, detail=False)]
        except (OSError, ValueError, ImportError) as error:
            raise JobError(f"--output {output} cannot be written: {error}") from None
        local = isinstance(self.fs, LocalFileSystem)
        self.url: str = self.fs.unstrip_protocol(self.root) if local else output
        self.names = set(names)
        self.present = {found[1] for name in names if (found := SHARD.fullmatch(name))}

    def claim(self, made: dict[str, Any]) -> None:
        """Write down what the vectors depend on, or see that it is the same as before.

        Raises:
            JobError: it is not, or something else is in the folder.
        """
        if MADE in self.names:
            before = json.loads(self.fs.cat_file(f"{self.root}/{MADE}"))
            changed = [name for name in made if before.get(name) != made[name]]
            if changed:
                raise JobError(
                    f"--output {self.output} holds vectors of another {changed[0]}; name another "
                    "folder, or empty this one"
                )
        elif any(not name.startswith(".") for name in self.names):  # what a kill left begins so
            raise JobError(
                f"--output {self.output} is not empty, and no encode wrote it; name another folder"
            )
        else:
            self._put(MADE, (json.dumps(made, indent=1) + "\n").encode())

    def write(self, chunk: Chunk, read: ReadChunk, encoded: Encoded) -> None:
        """Write one chunk's shard, whole or not at all.

        Raises:
            JobError: it cannot be written; what is there stays.
        """
        if read.rejected:
            lines = "".join(json.dumps({"error": each}) + "\n" for each in read.rejected)
            self._put(f"{chunk.shard}.rejected.jsonl", lines.encode())
        vectors = pa.array(encoded.vectors.ravel())
        table = pa.table(
            {
                "item_id": pa.array(read.ids, pa.string()),
                "llm": pa.FixedSizeListArray.from_arrays(vectors, encoded.vectors.shape[1]),
                "tokens": encoded.tokens,
                "cut": pa.array([list(names) for names in encoded.cut], pa.list_(pa.string())),
            }
        )
        facts = {
            "tokens": int(encoded.tokens.sum()),
            "cut": sum(bool(names) for names in encoded.cut),
            "rejected": len(read.rejected),
        }
        table = table.replace_schema_metadata({"llmemb": json.dumps(facts)})
        held = io.BytesIO()
        pq.write_table(table, held)
        self._put(f"{chunk.shard}.parquet", held.getvalue())

    def holds(self, chunk: Chunk) -> bool:
        """Whether a chunk's shard is there now, whoever wrote it."""
        self.fs.invalidate_cache()  # a store's listing may be older than the shard
        found: bool = self.fs.exists(f"{self.root}/{chunk.shard}.parquet")
        return found

    def told(self, chunk: Chunk) -> dict[str, int]:
        """What a shard that is there says of itself: items, tokens, cut and rejected.

        Raises:
            JobError: it is damaged.
        """
        try:
            with self.fs.open(f"{self.root}/{chunk.shard}.parquet", "rb") as shard:
                footer = pq.ParquetFile(shard).metadata
            return {"items": footer.num_rows, **json.loads(footer.metadata[b"llmemb"])}
        except (OSError, pa.ArrowInvalid, KeyError, TypeError) as error:
            raise JobError(
                f"encode: {chunk.shard}.parquet in {self.output} cannot be read ({error}); delete "
                "it and run the same command again"
            ) from None

    def finish(self, chunks: Sequence[Chunk]) -> dict[str, int]:
        """Write what there is in all into done.json, and take away what writers left that died."""
        total = {"shards": len(chunks), "items": 0, "tokens": 0, "cut": 0, "rejected": 0}
        self.fs.invalidate_cache()  # other processes may have written since it was listed
        for chunk in chunks:
            for name, value in self.told(chunk).items():
                total[name] += value
        if isinstance(self.fs, LocalFileSystem):
            for path in Path(self.root).iterdir():
                if PARTIAL.fullmatch(path.name):
                    path.unlink(missing_ok=True)
        self._put(DONE, (json.dumps(total, indent=1) + "\n").encode())
        return total

    def _put(self, name: str, content: bytes) -> None:
        """A file that appears whole: an object store's does; on a disk it is renamed into place."""
        try:
            if isinstance(self.fs, LocalFileSystem):
                # Two processes may write the same shard, after a node seemed lost.
                partial = f".{name}.{uuid.uuid4().hex}.partial"
                write_atomically(Path(self.root, name), content, partial)
            else:
                self.fs.pipe_file(f"{self.root}/{name}", content)
        except OSError as error:
            told = error.strerror or error
            raise JobError(
                f"encode: {name} cannot be written to {self.output} ({told}); make room and run "
                "the same command again, it goes on from here"
            ) from None
