"""Recipe `scft`: tune the LLM with LoRA, by one of two objectives.

`copies`: two thinned copies of an item land together. Source: LLMEmb (arXiv 2409.19925),
supervised contrastive fine-tuning. Departs from its published code: copies are drawn afresh every
epoch, and thinned inside values too; the title stays; items of identical text are no negatives of
each other; only the item's own words are pooled.

`places`: an item's vector tells, through a linear map, its place among what is bought together
(training.places), found among those of all training items.

Writes adapter/ in peft's layout; nothing where `steps` is 0. It is made in the cache, where
another run that tunes the same LLM on the same items finds it.
"""

import functools
import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from models.item import Item
from models.llm import fingerprint_folder
from training.config import SCFT, NeighboursSpec, RunConfig
from training.content import content_quality
from training.fetch import llm_folder
from training.places import collaborative_places
from training.prepare import read_prepared, split_digest
from training.processes import this_job
from training.recipe import Run, Step, digest, write_atomically
from training.run_llm import RunLLM
from training.tuner import ACTIVATIONS, Tuner, Watched, follow_tuning
from training.upper import stored_in

log = logging.getLogger(__name__)
CALIBRATION_STEPS = 3
Look = Callable[[NDArray[np.float32]], dict[str, float]]


def scft(run: Run) -> Step:
    """Tune the LLM on the items with training interactions, or go on with it after a kill.

    Without `steps` and `epochs`, three steps are timed and as many taken as fit in `minutes`; the
    count is decided once, written down, and kept when the run is resumed. Of `places`, items
    without a neighbour in the training histories are left out.

    Raises:
        JobError: the LLM cannot be had, or the loss is no number any more.
        InvalidItem: the template leaves nothing of an item.
    """
    config = run.config
    folder = llm_folder(config.llm.path, config.llm.revision, run.cache)
    step = run.step("scft", llm=fingerprint_folder(folder))
    if step.done:
        return step
    catalogue, split = read_prepared(run)
    for item in catalogue:
        config.template.render(item)
    if config.scft.steps == 0:
        step.finish(steps=0, adapter=None, llm=str(folder))
        return step
    places = told = None
    known = np.flatnonzero(split.counts[1:])
    if config.scft.objective == "places":
        spec = NeighboursSpec()
        everywhere = collaborative_places(split.train, len(catalogue), spec)
        known = np.flatnonzero(everywhere.any(axis=1))
        places = everywhere[known]
        # By what they are made of: their last digits depend on how many threads made them.
        told = digest([[history.tolist() for history in split.train], spec.model_dump()])
    trained = [catalogue[row] for row in known]
    # The loss reads the last layer alone.
    made = {
        **RunLLM(folder, None, config.llm).last_layer().facts(),
        "prompts": digest([config.template.render(item).text for item in trained]),
        "scft": config.facts("scft")["scft"],
        "places": told,
        "seed": config.seed,
    }
    look: Look | None = None
    if config.scft.patience:
        # What is seen decides when to stop, so the adapter depends on it.
        made["watched"] = split_digest(split)
        look = functools.partial(content_quality, rows=known, split=split)
    with run.shared("adapters", **made) as shared:
        if not shared.done:
            job = this_job()
            job.lead(follow_tuning, trained, folder.resolve(), config, places)
            tuner = Tuner(trained, folder, config, places, shared.folder, job)
            _tune(tuner, shared, config.scft, look)
            job.end()
        shutil.rmtree(step.folder / "adapter", ignore_errors=True)
        shutil.copytree(shared.folder / "adapter", step.folder / "adapter")
        shutil.copyfile(shared.folder / "metrics.jsonl", step.folder / "metrics.jsonl")
        step.finish(**shared.facts, adapter="adapter", llm=str(folder))
    return step


def _tune(tuner: Tuner, shared: Step, spec: SCFT, look: Look | None) -> None:
    """Take the steps that are not taken yet.

    Args:
        look: what the vectors (m, D) of the tuned items do by themselves; None where nobody asks.
    """
    steps, taken, watched = _plan(tuner, shared, spec)
    checkpoint, best = shared.folder / "checkpoint.pt", shared.folder / "best.pt"
    bar = tqdm(total=steps, initial=taken, desc="scft", unit="step")
    while taken < steps and not (spec.patience and watched.since >= spec.patience):
        loss = tuner.step(taken, steps)
        taken += 1
        shared.log(step=taken, loss=round(loss, 5))
        bar.update()
        bar.set_postfix(loss=f"{loss:.3f}")
        if look and (taken % tuner.batches == 0 or taken == steps):
            seen = look(tuner.vectors())
            shared.log(step=taken, **seen)
            watched = watched.after(seen["validation_ndcg10"], taken)
            if not watched.since:
                tuner.save(best, taken, watched)
        if taken % spec.checkpoint_steps == 0 or taken == steps:
            tuner.save(checkpoint, taken, watched)
    bar.close()
    if best.exists():
        tuner.load(best)
    tuner.save_adapter(shared.folder / "adapter")
    shared.finish(steps=watched.step if look else steps)
    for each in (checkpoint, best, *stored_in(shared.folder / ACTIVATIONS)):
        each.unlink(missing_ok=True)


def step_seconds(items: Sequence[Item], folder: Path, config: RunConfig) -> float:
    """What a step takes here, by one of them on some items; nothing of it is kept.

    Args:
        items: as many as one batch has, or more.
        folder: of the LLM.
    """
    places = None
    if config.scft.objective == "places":
        places = np.random.default_rng(0).normal(size=(len(items), 64)).astype(np.float32)
    with tempfile.TemporaryDirectory() as work:
        tuner = Tuner(items, folder, config, places, Path(work))
        started = time.monotonic()
        tuner.step(0, 2)
        return time.monotonic() - started


def _plan(tuner: Tuner, step: Step, spec: SCFT) -> tuple[int, int, Watched]:
    """How many steps there are in all, how many of them are done, and what was seen by then."""
    plan = step.folder / "steps"
    checkpoint = step.folder / "checkpoint.pt"
    if plan.exists():
        done = tuner.load(checkpoint) if checkpoint.exists() else (0, Watched())
        return int(plan.read_text()), *done
    steps = spec.steps
    if steps is None and spec.epochs:
        steps = max(1, round(spec.epochs * tuner.batches))
    if steps is None:
        started = time.monotonic()
        for number in range(CALIBRATION_STEPS):
            tuner.step(number, CALIBRATION_STEPS)
        seconds = (time.monotonic() - started) / CALIBRATION_STEPS
        steps = max(1, int(spec.minutes * 60 / seconds))
        log.info("scft: %.1f s a step, so %d steps in %g minutes", seconds, steps, spec.minutes)
        tuner.reset()
    write_atomically(plan, str(steps))
    return steps, 0, Watched()
