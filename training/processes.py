"""The processes of one job, as `accelerate launch` starts them: one leads, the others follow.

The main process does the job as if it were alone: it alone reads the run, writes, logs and shows
bars. Where work is shared out it has the others call a function with what they need, and all meet
in sums. So a file, a lock or a decision is one process's, and an LLM's folder is all that must be
at the same place for every node.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from training import JobError

# The others wait for hours while the main process encodes; one that ends is noticed at once.
PATIENCE = timedelta(days=30)


class Processes:
    """The processes of a job.

    Attributes:
        index: which of them this is; 0 is the main one.
        count: how many there are.
        sharded: whether an LLM's frozen weights are to be shared out among them (FSDP).

    Args:
        telling: the group that calls and arguments travel in; it has to work while a GPU waits.
        store: what all of them can count in.
    """

    def __init__(
        self,
        index: int = 0,
        count: int = 1,
        sharded: bool = False,
        telling: Any = None,  # noqa: ANN401 - torch's groups have no type of their own
        store: Any = None,  # noqa: ANN401
    ) -> None:
        self.index = index
        self.count = count
        self.sharded = sharded and count > 1
        self._telling = telling
        self._store = store

    @property
    def main(self) -> bool:
        """Whether this is the process that reads, writes and tells the others."""
        return self.index == 0

    def share(self, count: int) -> NDArray[np.int64]:
        """Which of `count` things this process does: as many as any other, or one more or less."""
        mine: NDArray[np.int64] = np.array_split(np.arange(count), self.count)[self.index]
        return mine

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of what every process has there, in place; all of them have to ask for it."""
        if self.count > 1:
            with _loss_told():
                distributed.all_reduce(tensor)
        return tensor

    def sum_gradients(self, weights: Iterable[Tensor]) -> None:
        """Sum up what every process found for these; what one of them did not ask for is 0."""
        if self.count == 1:
            return
        gradients = []
        for weight in weights:
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
            gradients.append(weight.grad)
        vector_to_parameters(self.sum(parameters_to_vector(gradients)), gradients)

    def part_of_all(self, count: int, device: torch.device) -> float:
        """What share of all processes' counts this one's is."""
        if self.count == 1:
            return 1.0
        return count / float(self.sum(torch.tensor(float(count), device=device)))

    def seed(self, *numbers: int) -> None:
        """Draw by these numbers from here on; a process that is alone goes on as it draws."""
        if self.count > 1:
            drawn = np.random.SeedSequence(numbers).generate_state(1, np.uint64)
            torch.manual_seed(int(drawn[0] >> 1))

    def same(self, tensors: Sequence[Tensor]) -> None:
        """Give every process what the main one has in these tensors."""
        if self.count > 1:
            with _loss_told(), torch.no_grad():
                for tensor in tensors:
                    distributed.broadcast(tensor, 0)

    def tell(self, told: object) -> None:
        """Hand the other processes something, if this is the main one; it must be picklable."""
        if self.main and self.count > 1:
            with _loss_told():
                distributed.broadcast_object_list([told], 0, self._telling)

    def told(self) -> Any:  # noqa: ANN401 - what the main process tells
        """What the main process tells next; waits for it."""
        told = [None]
        with _loss_told():
            distributed.broadcast_object_list(told, 0, self._telling)
        return told[0]

    def lead(self, job: Callable[..., object], *arguments: object) -> None:
        """Have the others call job(*arguments), while this one does its own part of it."""
        self.tell((job, arguments))

    def follow(self) -> None:
        """Do what the main process has the others do, until its job is done."""
        while (asked := self.told()) is not None:
            job, arguments = asked
            job(*arguments)

    def follow_on(self, leader: object) -> None:
        """Call the methods that the main process tells, by name and arguments, until it ends it."""
        while (asked := self.told()) is not None:
            name, *arguments = asked
            getattr(leader, name)(*arguments)

    def first_to_fail(self) -> bool:
        """Whether no other process failed before this one, which then is the one to say why."""
        if self.count == 1:
            return True
        try:
            return int(self._store.add("failed", 1)) == 1
        except RuntimeError:  # the node that kept it is gone
            return self.main

    def end(self) -> None:
        """The job, or the part of it that is led, is done: the others wait for the next."""
        self.tell(None)

    def leave(self) -> None:
        """The whole job is done."""
        self.end()
        if self.count > 1:
            distributed.destroy_process_group()


ALONE = Processes()


@functools.cache
def this_job() -> Processes:
    """The processes that this one was started with; ALONE where nothing started several."""
    if not distributed.is_torchelastic_launched():
        return ALONE
    from accelerate import PartialState  # noqa: PLC0415 - a second, which one process needs not
    from accelerate.utils import parse_flag_from_env  # noqa: PLC0415

    state = PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)
    if state.num_processes == 1:
        return ALONE
    telling = distributed.new_group(backend="gloo", timeout=PATIENCE)
    sharded = parse_flag_from_env("ACCELERATE_USE_FSDP")
    store = distributed.distributed_c10d._get_default_store()
    return Processes(state.process_index, state.num_processes, sharded, telling, store)


@contextmanager
def _loss_told() -> Iterator[None]:
    """Turns what a broken connection raises into a sentence."""
    try:
        yield
    except RuntimeError as error:
        raise JobError(
            "another process of this job was lost: killed, or its node is gone"
        ) from error
