"""Curves for TensorBoard, where it is installed: the extra `tensorboard`."""

import importlib.util
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path


def installed() -> bool:
    """Whether event files can be written."""
    return importlib.util.find_spec("tensorboard") is not None


def write_curves(
    folder: Path, curves: Mapping[str, Mapping[str, Sequence[Sequence[float]]]]
) -> bool:
    """Replace a folder by event files of curves: run, name, and (step, value) pairs.

    Returns:
        False where TensorBoard is not installed; nothing is written then.
    """
    if not installed():
        return False
    from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 - an extra

    shutil.rmtree(folder, ignore_errors=True)
    for run, series in curves.items():
        with SummaryWriter(str(folder / run)) as writer:
            for name, points in series.items():
                for step, value in points:
                    writer.add_scalar(name, value, int(step))
    return True
