"""The LLM of a run: which folder, which adapter, and what its vectors depend on."""

from pathlib import Path
from typing import Any, NamedTuple

from models.encoder import DTypeName, Encoder, RuntimeDType, settled_dtype
from models.llm import fingerprint_folder, sha256_of
from training.config import LLM
from training.fetch import llm_folder
from training.recipe import Run


class RunLLM(NamedTuple):
    """The LLM that a run's vectors come from.

    Attributes:
        folder: of the LLM.
        adapter: folder of its LoRA adapter; None where nothing was tuned.
        spec: what it runs in, how much of a prompt it reads, and how.
    """

    folder: Path
    adapter: Path | None
    spec: LLM

    @classmethod
    def of(cls, run: Run) -> "RunLLM":
        """As the finished scft step left it.

        Raises:
            JobError: that step is not finished.
        """
        tuned = run.finished("scft")
        name = tuned.facts["adapter"]
        adapter = tuned.folder / name if name else None
        return cls(Path(tuned.facts["llm"]), adapter, run.config.llm)

    @classmethod
    def untuned(cls, run: Run) -> "RunLLM":
        """As it comes, whatever steps are finished.

        Raises:
            JobError: it cannot be had.
        """
        llm = run.config.llm
        return cls(llm_folder(llm.path, llm.revision, run.cache), None, llm)

    @property
    def dtype(self) -> RuntimeDType:
        """What it runs in on this machine."""
        return settled_dtype(self.spec.dtype)

    def facts(self) -> dict[str, Any]:
        """All that a prompt's vector depends on beside the prompt."""
        weights = self.adapter / "adapter_model.safetensors" if self.adapter else None
        return {
            "llm": fingerprint_folder(self.folder),
            "adapter": sha256_of(weights) if weights else None,
            "dtype": self.dtype,
            "max_tokens": self.spec.max_tokens,
            "attention": self.spec.attention,
            **({"lower_layer": self.spec.lower_layer} if self.spec.lower_layer else {}),
        }

    def last_layer(self) -> "RunLLM":
        """The same with no lower layer's states pooled beside the last's."""
        return self._replace(spec=self.spec.model_copy(update={"lower_layer": 0}))

    def settled(self) -> "RunLLM":
        """The same in any process: paths absolute, and the dtype that `auto` is here."""
        adapter = self.adapter.resolve() if self.adapter else None
        spec = self.spec.model_copy(update={"dtype": self.dtype})
        return RunLLM(self.folder.resolve(), adapter, spec)

    def load(self, dtype: DTypeName | None = None) -> Encoder:
        """Its encoder, the adapter merged.

        Args:
            dtype: what to run in; None: what the run does.

        Raises:
            LLMError: the folder holds no usable LLM.
        """
        spec = self.spec
        return Encoder.load(
            self.folder,
            self.adapter,
            dtype or spec.dtype,
            spec.max_tokens,
            spec.attention,
            spec.lower_layer,
        )
