"""Recipe `export`: everything the service needs, as one bundle."""

import dataclasses
from importlib.metadata import PackageNotFoundError, version

from models.bundle_writing import write_bundle
from models.manifest import FORMAT
from training import JobError
from training.card import model_card
from training.config import RunConfig
from training.encode import read_llm_vectors
from training.prepare import read_prepared
from training.rat import projection_spec, read_trained
from training.recipe import Run, Step
from training.run_llm import RunLLM


def software_version() -> str:
    """The installed version of this project, `0+unknown` in a checkout that is not installed."""
    try:
        return version("llmemb")
    except PackageNotFoundError:
        return "0+unknown"


def require_exportable(config: RunConfig) -> None:
    """Make sure that a service can do for new items what a run does.

    Raises:
        JobError: it cannot; says by which setting.
    """
    if config.encode.vectors != "llm":
        raise JobError(
            f'encode.vectors is "{config.encode.vectors}", a control that no service can make for '
            'new items; set it to "llm"'
        )
    if config.data.cold:
        raise JobError("data.cold holds items out, for evaluation; set it to 0 to export")
    if not config.rat.text.frozen:
        raise JobError("rat.text.frozen is false: a new item has no such vector; set it to true")


def export(run: Run) -> Step:
    """Write RUN/bundle, whole or not at all."""
    config = run.config
    require_exportable(config)
    step = run.step("export", format=FORMAT)
    folder = run.folder / "bundle"
    if step.done and folder.exists():
        return step
    prepared, encoded = run.finished("prepare"), run.finished("encode")
    measured = run.finished("evaluate")
    llm = RunLLM.of(run)
    catalogue, split = read_prepared(run)
    trained = read_trained(run)
    weights = trained.weights
    manifest = write_bundle(
        folder,
        name=config.name,
        version=software_version(),
        llm=llm.folder,
        llm_name=config.llm.path,
        llm_revision=config.llm.revision,
        include_llm=config.export.include_llm,
        adapter=llm.adapter,
        template=config.template,
        max_tokens=config.llm.max_tokens,
        attention=config.llm.attention,
        lower_layer=config.llm.lower_layer,
        dtype=encoded.facts["dtype"],
        catalogue=catalogue,
        llm_vectors=read_llm_vectors(encoded),
        interactions=split.counts[1:],
        head=split.head()[1:],
        projection=trained.projection,
        projection_spec=projection_spec(config.rat, encoded.facts["dim"]),
        views=[
            dataclasses.replace(view, weight=weights[view.name])
            for view in trained.summed
            if view.name in weights
        ],
        partial_factors=trained.partial_factors,
        neighbours=trained.neighbours if "neighbours" in weights else None,
        neighbours_weight=weights.get("neighbours", 0.0),
        data=prepared.facts["data"],
        metrics=measured.facts,
        card=lambda manifest: model_card(run, manifest),
    )
    step.finish(bundle=str(folder), bundle_hash=manifest.bundle_hash)
    return step
