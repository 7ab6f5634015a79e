"""An LLM on disk: find it, load it, convert it from GGUF, tell it from every other one."""

import hashlib
import json
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

# What defines the vectors an LLM gives; other files in a folder (cards, licences) do not.
DEFINING = ("*.safetensors", "*.safetensors.index.json", "config.json", "tokenizer*", "*.model")


class LLMError(ValueError):
    """The folder or id holds no LLM that can be used; the message says why and what to do."""


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Keeps back a warning of no use to anyone: peft 0.21 asks transformers by an old name."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        yield


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def defining_files(folder: Path) -> list[Path]:
    """The files of `folder` that define the LLM, by name.

    Raises:
        LLMError: there are no weights, or no config.json.
    """
    files = sorted({path for pattern in DEFINING for path in folder.glob(pattern)})
    names = {path.name for path in files}
    if "config.json" not in names or not any(name.endswith(".safetensors") for name in names):
        raise LLMError(f"{folder} holds no LLM: it needs config.json and *.safetensors")
    return files


def fingerprint(hashes: Mapping[str, str]) -> str:
    """One SHA-256 that tells an LLM from every other, of its defining files' names and SHA-256s."""
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(hashes.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def fingerprint_folder(folder: Path) -> str:
    """The fingerprint of the LLM in `folder`.

    Raises:
        LLMError: there is none.
    """
    return fingerprint({path.name: sha256_of(path) for path in defining_files(folder)})


def licence_of(folder: Path) -> str | None:
    """The licence that an LLM's README.md opens with, as on the hub; None where it names none."""
    from huggingface_hub.repocard import metadata_load  # noqa: PLC0415 - training only

    try:
        facts = metadata_load(folder / "README.md") or {}
    except Exception:  # there is no such file, or it is no card: anybody may have written it
        return None
    named = facts.get("license_name") or facts.get("license")  # the latter is `other` beside a name
    if isinstance(named, list):
        named = ", ".join(map(str, named))
    return str(named) if named else None


def find(source: str, revision: str | None = None) -> Path:
    """The folder of an LLM, given a folder or a hub id; a hub id is fetched if it is not cached.

    Raises:
        LLMError: no such folder, and the hub does not give it.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_absolute() or source.startswith("."):
        raise LLMError(f"there is no folder {source}")
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - training only

    try:
        return Path(
            snapshot_download(
                source, revision=revision, allow_patterns=[*DEFINING, "*.txt", "README.md"]
            )
        )
    except Exception as error:
        raise LLMError(
            f"{source!r} is neither a folder nor an LLM that the model hub gives "
            f"({type(error).__name__}); name a folder with config.json and *.safetensors"
        ) from error


def load_model(folder: Path, dtype: torch.dtype, **options: object) -> torch.nn.Module:
    """The decoder without its output layer, in evaluation mode. Runs no code from the folder.

    Args:
        options: further ones of transformers.

    Raises:
        LLMError: the folder holds no safetensors model that transformers knows.
    """
    transformers_logging.disable_progress_bar()  # a second of loading needs none
    try:
        model: torch.nn.Module = AutoModel.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, local_files_only=True, **options
        )
    except (OSError, ValueError, KeyError) as error:
        raise LLMError(f"{folder} cannot be loaded as an LLM: {error}") from error
    return model.eval()


def load_tokenizer(folder: Path) -> Any:  # noqa: ANN401 - transformers is untyped here
    """The fast tokenizer of an LLM folder.

    Raises:
        LLMError: there is none.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, use_fast=True, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise LLMError(f"{folder} has no tokenizer that can be loaded: {error}") from error
    if not tokenizer.is_fast:
        raise LLMError(f"{folder} has no tokenizer.json; character offsets are needed")
    return tokenizer


def convert_gguf(file: Path, folder: Path) -> None:
    """De-quantise a GGUF file once into `folder`, as bfloat16 safetensors with a tokenizer.

    The folder appears whole or not at all.

    Raises:
        LLMError: transformers cannot read the file.
    """
    transformers_logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        causal = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=torch.float32
        )
    except (OSError, ValueError, KeyError) as error:
        raise LLMError(f"{file} cannot be read as GGUF: {error}") from error
    # A plain model from a plain config: what transformers returns still calls itself GGUF.
    settings = causal.config.to_dict()
    for field in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        settings.pop(field, None)
    config = AutoConfig.for_model(**settings)
    plain = AutoModel.from_config(config)
    decoder = causal.get_decoder()
    plain.load_state_dict(decoder.state_dict(), strict=True)

    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    plain.to(torch.bfloat16).save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    leftover = json.loads((partial / "config.json").read_text())
    if "quantization_config" in leftover:
        raise LLMError(f"{file}: the converted config still names a quantisation")
    partial.replace(folder)
