"""Recipe `export`: everything the service needs, as one bundle."""

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from models.bundle import write_bundle
from training.encode import read_llm_vectors
from training.prepare import read_prepared
from training.rat import projection_spec, read_views
from training.recipe import Run, Step
from training.report import as_card


def software_version() -> str:
    """The installed version of this project, `0+unknown` in a checkout that is not installed."""
    try:
        return version("llmemb")
    except PackageNotFoundError:
        return "0+unknown"


def export(run: Run) -> Step:
    """Write RUN/bundle, whole or not at all."""
    config = run.config
    step = run.step("export")
    folder = run.folder / "bundle"
    if step.done and folder.exists():
        return step
    prepared, tuned = run.finished("prepare"), run.finished("scft")
    encoded, measured = run.finished("encode"), run.finished("evaluate")
    catalogue, _ = read_prepared(run)
    views, projection, weights, factor = read_views(run)
    figures = measured.facts
    facts = {
        "base LLM": config.llm.path,
        "SCFT steps": tuned.facts["steps"],
        "items": len(catalogue),
        "users": prepared.facts["users"],
        "interactions": prepared.facts["interactions"],
        "views and weights": ", ".join(f"{view} {weight:g}" for view, weight in weights.items()),
        "seed": config.rat.seed,
    }
    manifest = write_bundle(
        folder,
        name=config.name,
        version=software_version(),
        llm=Path(tuned.facts["llm"]),
        llm_name=config.llm.path,
        llm_revision=config.llm.revision,
        include_llm=config.export.include_llm,
        adapter=tuned.folder / tuned.facts["adapter"] if tuned.facts["adapter"] else None,
        template=config.template,
        max_tokens=config.llm.max_tokens,
        dtype=encoded.facts["dtype"],
        catalogue=catalogue,
        llm_vectors=read_llm_vectors(encoded),
        projection=projection,
        projection_spec=projection_spec(
            config.rat.text, config.rat.sequence.dim, encoded.facts["dim"]
        ),
        views=[view for view in views if view.name in weights],
        partial_factor=factor,
        data=prepared.facts["data"],
        metrics=figures,
        card=as_card(config.name, facts, figures),
    )
    step.finish(bundle=str(folder), bundle_hash=manifest.bundle_hash)
    return step
