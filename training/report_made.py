"""Sections of the report on what was made, of what, and at which cost, each as HTML."""

import json
from collections.abc import Sequence
from html import escape

from training.charts import Bar, bars, lines, scatter
from training.report_parts import Facts, details, figure, missing, side_by_side, table


def scft(facts: Facts) -> str:
    """How the LLM was tuned."""
    if "missing" in facts:
        return missing(facts, "Curves of SCFT")
    if not facts["tuned"]:
        return "<p>SCFT: the LLM was left as it comes (scft.steps = 0), so there is no curve.</p>\n"
    told = {
        "copies": "Two differently thinned copies of an item should land together.",
        "places": "An item's vector should tell its place among what is bought together.",
    }[facts["objective"]]
    text = (
        f"<h3>SCFT: tuning the LLM on the items' attributes</h3>\n<p>{told} "
        f"{facts['steps']:,} steps were kept. The loss is of one batch, so it jumps; what counts "
        "is that it falls.</p>\n"
    )
    charts = []
    for key, label in (("loss", "contrastive loss"), ("validation", "validation NDCG@10")):
        points = facts[key]
        if points:
            title = f"SCFT: {label}"
            alt = f"{label} from {points[0][1]:.4f} at step {points[0][0]} to {points[-1][1]:.4f}"
            alt += f" at step {points[-1][0]}"
            chart = lines(title, "step", label, {"SCFT": points}, alt)
            charts.append(figure(title, chart))
    return text + side_by_side(charts)


def rat(facts: Facts) -> str:
    """How each view was trained."""
    if "missing" in facts:
        return missing(facts, "Curves of RAT")
    views = facts["views"]
    text = (
        "<h3>RAT: training the views</h3>\n<p>Each view is a table of item vectors with a sequence "
        "model of its own. After every epoch the validation split is asked; training stops when it "
        "no longer gets better, and the best epoch (the ring) is kept. Losses of different views "
        "cannot be compared: they are of different scales.</p>\n"
    )
    best = {
        name: max(view["validation"], key=lambda p: p[1])
        for name, view in views.items()
        if view["validation"]
    }
    charts = []
    for key, label in (("validation", "validation NDCG@10"), ("loss", "training loss")):
        series = {name: view[key] for name, view in views.items() if view[key]}
        if not series:
            continue
        title = f"RAT: {label} of each view"
        if key == "validation":
            alt = "; ".join(f"{n}: best {p[1]:.4f} in epoch {p[0]:.0f}" for n, p in best.items())
        else:
            alt = "; ".join(
                f"{n}: {p[0][1]:.3f} falls to {p[-1][1]:.3f} in {len(p)} epochs"
                for n, p in series.items()
            )
        marks = best if key == "validation" else None
        charts.append(figure(title, lines(title, "epoch", label, series, alt, marks)))
    return text + side_by_side(charts)


def space(facts: Facts) -> str:
    """Where the items lie in every stage: maps, geometry and neighbours to be judged."""
    if "missing" in facts:
        return missing(facts, "Maps and neighbours")
    stages = facts["stages"]
    shown = f"{facts['items']:,} items"
    if facts["items"] < facts["of"]:
        shown = f"{facts['items']:,} of {facts['of']:,} items, drawn at random"
    numbered = [each["place"] for each in facts["judged"]]
    groups = facts["colours"]
    text = (
        f"<h3>Maps</h3>\n<p>{shown}, the same in each map, coloured by <b>"
        f"{escape(facts['coloured_by'])}</b>. Each map is the plane in which the vectors differ "
        "most (two principal components of the vectors at length 1), turned to lie like the "
        "first one. Numbers are the items of the table below. Near in a map can still be far "
        "apart: it shows "
        "two directions of many.</p>\n"
    )
    charts = []
    for name, stage in stages.items():
        points = stage["points"]
        title = f"Map of the items {name}"
        alt = (
            f"{facts['items']} items {name} in a plane that shows "
            f"{100 * stage['plane_share']:.0f} % of the variance, coloured by "
            f"{facts['coloured_by']}: "
            + ", ".join(f"{len(places)} {group}" for group, places in groups.items())
        )
        coloured = {group: [points[p] for p in places] for group, places in groups.items()}
        chart = scatter(title, coloured, alt, [points[place] for place in numbered])
        told = f"{100 * stage['plane_share']:.0f} % of the variance lies in this plane."
        charts.append(figure(name[0].upper() + name[1:], chart, told))
    text += side_by_side(charts)
    text += (
        "<h3>Cones and hubs</h3>\n<p><b>Mean cosine</b> (anisotropy) is that of two different "
        "items: near 1, all vectors point the same way and tell little apart; near 0, they use the "
        "space. <b>Hubness</b> is the skewness of the k-occurrence for k = 10, among how many "
        "others' ten nearest an item stands: 0 is even; a few items that are near to everything "
        "make it large, and take the places of better neighbours.</p>\n"
    )
    rows = [
        [
            name,
            f"{stage['width']:,}",
            f"{stage['mean_cosine']:.4f}",
            f"{stage['hubness']:.2f}",
            f"{stage['most']:,}",
            f"{100 * stage['never']:.1f} %",
        ]
        for name, stage in stages.items()
    ]
    head = ["vectors", "width", "mean cosine", "hubness", "largest k-occurrence"]
    text += table([*head, "in nobody's ten nearest"], rows, 1)
    text += (
        f"<h3>Nearest neighbours of {len(facts['judged'])} items</h3>\n<p>By cosine, among the "
        "items of the maps. The first half are the most used ones, the others were drawn from "
        "the tail. Do you know them? Then judge whether the neighbours get better from "
        "left to right.</p>\n"
    )
    return text + _judged(facts["judged"], list(stages))


def _judged(judged: Sequence[Facts], stages: Sequence[str]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in ("item", *stages))
    rows = []
    for number, each in enumerate(judged, 1):
        cells = [
            f"<td><b>{number}. {escape(each['title'])}</b><small>{escape('; '.join(each['rest']))}"
            f"<br>{each['interactions']:,} training interactions</small></td>"
        ]
        for name in stages:
            near = "".join(
                f"<li>{escape(other['title'])}"
                f"<small>{escape('; '.join(other['rest']))}</small></li>"
                for other in each["near"][name]
            )
            cells.append(f'<td data-stage="{escape(name)}"><ol class="near">{near}</ol></td>')
        rows.append(f"<tr>{''.join(cells)}</tr>\n")
    return (
        f'<div class="wide" tabindex="0"><table class="judged"><thead><tr>{head}</tr></thead>\n'
        f"<tbody>{''.join(rows)}</tbody></table></div>\n"
    )


def data(facts: Facts) -> str:
    """What was read, and what was left out of it."""
    if "missing" in facts:
        return missing(facts, "Facts about the data")
    kept = [
        ["items in the catalogue", f"{facts['items']:,}"],
        ["users", f"{facts['users']:,}"],
        ["interactions", f"{facts['interactions']:,}"],
        ["interactions that train", f"{facts['training_interactions']:,}"],
        ["users that validate", f"{facts['validation_users']:,}"],
        ["users that test", f"{facts['test_users']:,}"],
        ["training history, median", f"{facts['median_history']:,.0f} items"],
        ["training history, longest", f"{facts['longest_history']:,} items"],
        [
            f"training interactions with the {facts['head_items']:,} head items",
            f"{100 * facts['head_share']:.1f} %",
        ],
        [
            "items without a training interaction",
            f"{facts['items_without_training_interactions']:,}",
        ],
    ]
    if "tokens" in facts:
        each = facts["tokens"] / facts["items"]
        kept.append(["tokens of an item's own text, mean", f"{each:.1f}"])
    out = [
        ["interactions with items that have no attributes", "interactions_with_unknown_items"],
        ["repeated interactions of a user with an item", "interactions_repeated"],
        [f"interactions outside of the {facts['core']}-core", "interactions_outside_core"],
        [f"items outside of the {facts['core']}-core", "items_outside_core"],
        ["users with too few interactions to be split", "users_left_out"],
        ["items whose text was cut to fit", "items_cut"],
    ]
    dropped = [[told, f"{facts[name]:,}"] for told, name in out if name in facts]
    return (
        f"<p>Source: <code>{escape(facts['source'])}</code>, split: {escape(facts['split'])}. "
        f"Fingerprint of what was read: <code>{escape(facts['fingerprint'][:16])}</code>.</p>\n"
        '<div class="charts"><div><h3>Kept</h3>'
        + table(["", "number"], kept, 1)
        + "</div><div><h3>Left out</h3>"
        + table(["", "number"], dropped, 1)
        + "</div></div>\n"
    )


def _seconds(value: float) -> str:
    if value < 120:
        return f"{value:.1f} s" if value < 10 else f"{value:.0f} s"
    return f"{value / 60:.0f} min" if value < 7200 else f"{value / 3600:.1f} h"


def cost(facts: Facts) -> str:
    """Seconds, commands, machine and configuration; of the whole report's facts."""
    timings = facts["timings"]
    known = {name: took for name, took in timings.items() if took}
    text = ""
    if known:
        title = "Time of each step"
        told = "; ".join(f"{name} {_seconds(took['seconds'])}" for name, took in known.items())
        chart = bars(
            title,
            "seconds",
            [(name, _seconds(took["seconds"])) for name, took in known.items()],
            {"seconds": [Bar(took["seconds"]) for took in known.values()]},
            told,
            ",.1f",
        )
        text += side_by_side([figure(title, chart)])
        many = [name for name, took in known.items() if took["commands"] > 1]
        if many:
            text += f'<p class="soft">In more than one go: {", ".join(many)}.</p>\n'
    other = [name for name, took in timings.items() if not took]
    if other:
        text += (
            f'<p class="missing">Not timed: {", ".join(other)}: not run yet, or by a version that '
            "wrote no times down.</p>\n"
        )
    text += (
        '<p class="soft">What was found in the cache, made by an earlier run, costs nothing here; '
        "work of a process that was killed outright is not counted.</p>\n"
    )
    text += "<h3>Commands</h3>\n"
    if facts["commands"]:
        ran = dict.fromkeys(line["command"] for line in facts["commands"])
        text += f"<pre>{escape(chr(10).join(ran))}</pre>\n"
    else:
        text += '<p class="missing">No command was written down for this run.</p>\n'
    last = facts["commands"][-1] if facts["commands"] else facts
    rows = [
        *(
            [f"machine: {name.replace('_gib', ', GiB')}", str(value)]
            for name, value in last["machine"].items()
            if value
        ),
        *([f"version: {name}", str(value)] for name, value in last["versions"].items()),
    ]
    text += "<h3>Machine and versions</h3>\n" + table(["", ""], rows)
    config = escape(json.dumps(facts["config"], indent=1, ensure_ascii=False))
    return text + details("The whole configuration", f"<pre>{config}</pre>")
