"""The report on a run as one page: opens offline, light, dark, on a phone and on paper."""

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from training.charts import STYLE, Bar, bars, lines, scatter

Facts = Mapping[str, Any]
MODELS = ("ours", "id-only")
GROUPS = {
    "overall": "all",
    "head": "head",
    "tail": "tail",
    "cold": "cold",
}
PARTS = {
    "id": "a learnt vector per item",
    "id2": "the same from another seed",
    "text": "the LLM vectors through a trained projection",
    "hybrid": "a learnt vector on top of such a projection",
    "content": "the whitened LLM vectors themselves",
    "neighbours": "what followed what in the histories",
}
STEP_TITLES = {
    "prepare": "prepare: read the data",
    "scft": "scft: tune the LLM",
    "encode": "encode: LLM vectors",
    "rat": "rat: train the views",
    "evaluate": "evaluate: measure",
    "export": "export: write the bundle",
}

PAGE = """
:root { --page: #fff; --ink: #1d2125; --soft: #5a6269; --line: #dfe3e6; --box: #f4f6f7;
  --link: #0059a3; color-scheme: light; }
%s
@media (prefers-color-scheme: dark) {
  :root { --page: #16191c; --ink: #e8eaec; --soft: #a8b0b7; --line: #33393f; --box: #1f2429;
    --link: #7cc0f5; color-scheme: dark; }
  %s
}
@media print { :root { --page: #fff; --ink: #000; --soft: #444; --line: #ccc; --box: #fff;
  color-scheme: light; } nav { display: none; } section { break-inside: auto; }
  figure, tr { break-inside: avoid; } details > * { display: block; } body { font-size: 11pt; }
  %s }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.2rem 1rem 4rem; max-width: 1100px; background: var(--page);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.7rem; margin: .2rem 0; } h2 { font-size: 1.3rem; margin: 2.6rem 0 .4rem;
  border-bottom: 1px solid var(--line); padding-bottom: .2rem; } h3 { font-size: 1.05rem;
  margin: 1.4rem 0 .3rem; }
p { max-width: 46rem; margin: .5rem 0; } a { color: var(--link); }
.soft, figcaption { color: var(--soft); font-size: .9rem; } nav a { margin-right: .9rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(330px, 100%%), 1fr));
  gap: 1rem 1.6rem; align-items: start; }
figure { margin: .8rem 0; min-width: 0; max-width: 560px; } figure svg { width: 100%%;
  height: auto; display: block; } figure h3 { margin: 0 0 .3rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(220px, 100%%), 1fr));
  gap: .8rem; margin: 1rem 0; } .card { background: var(--box); border: 1px solid var(--line);
  border-radius: 8px; padding: .8rem 1rem; } .card b { display: block; font-size: 1.6rem;
  line-height: 1.25; } .card span { color: var(--soft); font-size: .88rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .92rem; margin: .6rem 0;
  font-variant-numeric: tabular-nums; } th, td { text-align: left; vertical-align: top;
  padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--line); } th { font-weight: 600; }
td.number, th.number { text-align: right; } ol.near { margin: 0; padding-left: 1.3rem; }
.near li { margin-bottom: .25rem; } small { color: var(--soft); display: block; line-height: 1.3; }
.missing { border-left: 3px solid var(--soft); padding: .3rem .9rem; background: var(--box); }
code, pre { font: .86rem/1.45 ui-monospace, monospace; }
pre { background: var(--box); padding: .7rem;
  border-radius: 6px; white-space: pre-wrap; overflow-wrap: anywhere; } summary { cursor: pointer; }
.judged td:first-child { min-width: 10rem; } .judged td { padding-right: 1.2rem; }
@media (max-width: 640px) { .judged thead { display: none; } .judged tr, .judged td {
  display: block; } .judged td { border: 0; padding: .15rem 0; } .judged tr { border-bottom: 1px
  solid var(--line); padding: .6rem 0; display: block; } .judged td[data-stage]::before {
  content: attr(data-stage); font-weight: 600; font-size: .85rem; } }
"""


def as_html(facts: Facts) -> str:
    """The page: needs no other file and no network, and runs no script."""
    sections = [
        ("result", "Does it recommend better?", _quality(facts["quality"], facts["config"])),
        ("cold", "Items nobody has used yet", _cold(facts["cold"]) + _time(facts["time"])),
        (
            "ablation",
            "What each part is worth",
            _parts(facts["rat"]) + _ablation(facts["ablation"]),
        ),
        ("training", "How training went", _scft(facts["scft"]) + _rat(facts["rat"])),
        ("space", "Where the items lie", _space(facts["space"])),
        ("data", "The data, and what was left out", _data(facts["data"])),
        ("cost", "What it took, and how to do it again", _cost(facts)),
    ]
    name = escape(facts["name"])
    links = "".join(f'<a href="#{mark}">{escape(title)}</a> ' for mark, title, _ in sections)
    body = "\n".join(
        f'<section id="{mark}"><h2>{escape(title)}</h2>\n{text}</section>'
        for mark, title, text in sections
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Training report: {name}</title>\n<style>{_style()}</style></head>\n<body>\n"
        f"<header><h1>Training report: {name}</h1>\n{_first(facts)}<nav>{links}</nav></header>\n"
        f"<main>\n{body}\n</main>\n</body></html>\n"
    )


def _style() -> str:
    rules = STYLE.strip()
    start, end = rules.index(".dark"), rules.index("svg text")
    light, dark, rest = rules[:start], rules[start:end].replace(".dark", ":root"), rules[end:]
    return PAGE % (light, dark, light) + rest


def _first(facts: Facts) -> str:
    data, config = facts["data"], facts["config"]
    told = ""
    if "missing" not in data:
        words = config["encode"]["vectors"] == "tf-idf"
        reader = "counted words (TF-IDF), no LLM" if words else config["llm"]["path"]
        told = (
            f"{data['items']:,} items and {data['interactions']:,} interactions of "
            f"{data['users']:,} users, read by <b>{escape(reader)}</b>. "
        )
    return f'<p class="soft">{told}Written {escape(facts["written"])}.</p>\n'


# --- small parts of a page -------------------------------------------------------------------


def _missing(facts: Facts, what: str) -> str:
    """What is not there, why, and what to type."""
    if not facts["command"]:
        return f'<p class="missing">{escape(what)}: {escape(facts["missing"])}.</p>\n'
    why = facts["missing"].partition("; ")[0]  # what follows says what to run, without the file
    return (
        f'<p class="missing">{escape(what)} are not here yet: {escape(why)}.<br>'
        f"To get them: <code>{escape(facts['command'])}</code></p>\n"
    )


def _figure(title: str, svg: str, told: str = "") -> str:
    caption = f"<figcaption>{told}</figcaption>" if told else ""
    return f"<figure><h3>{escape(title)}</h3>{svg}{caption}</figure>\n"


def _charts(figures: Iterable[str]) -> str:
    return f'<div class="charts">\n{"".join(figures)}</div>\n'


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: int = 0) -> str:
    """A table; cells are text; from column `numbers` on, if that is not 0, right-aligned."""

    def cells(row: Sequence[str], tag: str) -> str:
        right = ' class="number"'
        return "".join(
            f"<{tag}{right if numbers and place >= numbers else ''}>{escape(cell)}</{tag}>"
            for place, cell in enumerate(row)
        )

    body = "".join(f"<tr>{cells(row, 'td')}</tr>\n" for row in rows)
    return (
        f'<div class="wide" tabindex="0"><table><thead><tr>{cells(head, "th")}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div>\n"
    )


def _details(summary: str, inside: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>\n{inside}</details>\n"


def _bar(cell: Facts | None) -> Bar | None:
    return Bar(cell["mean"], cell["low"], cell["high"]) if cell else None


def _interval(cell: Facts, sign: str = "") -> str:
    return f"{cell['mean']:{sign}.4f} [{cell['low']:{sign}.4f}, {cell['high']:{sign}.4f}]"


def _targets(count: int) -> str:
    return f"{count:,} user" + "s" * (count != 1)


# --- sections --------------------------------------------------------------------------------


def _quality(facts: Facts, config: Facts) -> str:
    if "missing" in facts:
        return _missing(facts, "Measurements")
    k, full = facts["k"], facts["full"]
    metrics = {"hr": f"HR@{k}", "ndcg": f"NDCG@{k}"}
    asked = facts["targets"]["overall"]
    difference = full["difference"]
    hidden = f"Each of {asked:,} users' last item was hidden."
    if config["data"]["split"] == "time":
        hidden = (
            f"All that came after one moment was hidden, and for {asked:,} users who are known "
            "from before it, the first item of theirs after it is asked for."
        )
    text = (
        f"<p>{hidden} The model ranks the whole catalogue "
        f"for that user, without what the user has used before. <b>HR@{k}</b> is the share of "
        f"users whose hidden item is among the first {k}; <b>NDCG@{k}</b> also counts how far up "
        f"it stands (1 is best). <b>Ours</b> is what the bundle serves; <b>id-only</b> is the same "
        f"kind of sequence model without any words, trained beside it on the same data.</p>\n"
    )
    ours, other = (full[model]["overall"]["hr"]["mean"] for model in MODELS)
    text += (
        f"<p>Ours has the hidden item among its first {k} for <b>{100 * ours:.1f} %</b> of the "
        f"users, id-only for <b>{100 * other:.1f} %</b>.</p>\n"
    )
    cards = []
    for group, told in (("overall", "of all users"), ("tail", "whose hidden item is in the tail")):
        if group not in difference:
            continue
        for metric, title in metrics.items():
            ours, other = (full[model][group][metric]["mean"] for model in MODELS)
            cards.append(
                f'<div class="card"><span>{title} {told}</span><b>{ours:.4f}</b>'
                f"<span>id-only {other:.4f}; {_verdict(difference[group][metric])}</span></div>"
            )
    text += f'<div class="cards">{"".join(cards)}</div>\n'
    groups = [group for group in facts["targets"] if group in full["ours"]]
    named = [(GROUPS[group], _targets(facts["targets"][group])) for group in groups]
    charts = [
        _figure(
            f"{title} by kind of item",
            bars(
                f"{title} by kind of item",
                f"{title}, whole catalogue ranked",
                named,
                {m: [_bar(full[m][group].get(metric)) for group in groups] for m in MODELS},
                _said(title, groups, full, metric),
            ),
        )
        for metric, title in metrics.items()
    ]
    text += _charts(charts)
    text += (
        '<p class="soft">Whiskers are 95 % intervals over users (bootstrap), of this one seed. '
        "Head: the fifth of the items that are used most in training; tail: the others; cold: "
        "those of the tail that training never saw.</p>\n"
    )
    named = [(_bucket(each), _targets(each["targets"])) for each in facts["buckets"]]
    charts = [
        _figure(
            f"{title} by popularity of the hidden item",
            bars(
                f"{title} by popularity of the hidden item",
                f"{title}, by training interactions of the hidden item",
                named,
                {m: [_bar(each[m][metric]) for each in facts["buckets"]] for m in MODELS},
                "; ".join(
                    f"{_bucket(each)} interactions: id-only {each['id-only'][metric]['mean']:.4f}, "
                    f"ours {each['ours'][metric]['mean']:.4f}"
                    for each in facts["buckets"]
                ),
            ),
        )
        for metric, title in metrics.items()
    ]
    text += _charts(charts)
    rows = []
    for protocol, told in (
        ("full", "whole catalogue"),
        ("unfiltered", "with the history's items"),
        ("sampled", "among sampled negatives"),
    ):
        for group in groups:
            for model in ("id-only", "ours", "difference"):
                cell = facts[protocol][model].get(group) if protocol in facts else None
                if cell:
                    sign = "+" if model == "difference" else ""
                    name = "ours - id-only" if sign else model
                    found = [_interval(cell[metric], sign) for metric in metrics]
                    rows.append([told, GROUPS[group], name, *found])
    table = _table(["ranked", "items", "model", *metrics.values()], rows)
    told = f'<p class="soft">Protocol: {escape(facts["protocol"])}. Brackets: 95 % intervals.</p>'
    return text + _details("All figures as a table, with the other protocols", told + table)


def _verdict(cell: Facts) -> str:
    told = f"difference {cell['mean']:+.4f}"
    if cell["low"] > 0:
        return f"{told}, more than chance makes"
    if cell["high"] < 0:
        return f"{told}, worse by more than chance makes"
    return f"{told}, which chance alone could make"


def _said(title: str, groups: Sequence[str], full: Facts, metric: str) -> str:
    return f"{title}: " + "; ".join(
        f"{GROUPS[group]}: "
        + ", ".join(f"{model} {full[model][group][metric]['mean']:.4f}" for model in MODELS)
        for group in groups
    )


def _bucket(bucket: Facts) -> str:
    low, high = bucket["low"], bucket["high"]
    return f"{low:,} or more" if high is None else f"{low}" if low == high else f"{low}-{high}"


def _cold(facts: Facts) -> str:
    if "missing" in facts:
        return _missing(facts, "Cold items")
    k = facts["k"]
    names = {
        "cold_test": "cold items",
        "warm": "other items",
        "warm_alone": "others, alone",
    }
    text = (
        f"<p>{facts['cold_items']:,} items were held out of everything that is fitted, then added "
        "to the catalogue as a new item is: by their attributes alone. An id-only model cannot "
        "rank them at all. <b>Others, alone</b> is what all other items reach before the new ones "
        f"come; beside them they keep {100 * facts['warm_kept']:.1f} % of their HR@{k}.</p>\n"
    )
    charts = []
    for metric, title in (("hr", f"HR@{k}"), ("ndcg", f"NDCG@{k}")):
        told = "; ".join(f"{name} {facts[key][metric]['mean']:.4f}" for key, name in names.items())
        charts.append(
            _figure(
                f"{title} of cold items and of others",
                bars(
                    f"{title} of cold items and of others",
                    f"{title}, whole catalogue ranked",
                    [(name, _targets(facts["targets"][key])) for key, name in names.items()],
                    {"ours": [_bar(facts[key][metric]) for key in names]},
                    told,
                ),
            )
        )
    return text + _charts(charts)


def _time(facts: Facts) -> str:
    if "missing" in facts:
        return _missing(facts, "A split by time: results")
    k, full = facts["k"], facts["full"]
    rows = [
        [GROUPS[group], f"{facts['targets'][group]:,}", model]
        + [_interval(full[model][group][metric]) for metric in ("hr", "ndcg")]
        for group in full["ours"]
        for model in MODELS
    ]
    return (
        "<h3>Trained on the past, asked for what came next</h3>\n"
        "<p>One moment for everybody: what came before it trains, what came after it tests. It is "
        "harder than hiding each user's last item, and nearer to use.</p>\n"
        + _table(["items", "users", "model", f"HR@{k}", f"NDCG@{k}"], rows)
    )


def _parts(facts: Facts) -> str:
    if "missing" in facts:
        return _missing(facts, "Weights of the parts")
    validation = facts["validation"]
    rows = []
    for name, weight in facts["weights"].items():
        alone, tail = (validation.get(f"{name}_{end}ndcg10") for end in ("", "tail_"))
        cells = ["-" if value is None else f"{value:.4f}" for value in (alone, tail)]
        rows.append([name, PARTS.get(name, ""), *cells, f"{weight:g}"])
    together = [validation.get(f"held_out_{end}ndcg10") for end in ("", "tail_")]
    cells = ["-" if value is None else f"{value:.4f}" for value in together]
    rows.append(["the sum", "what the bundle serves", *cells, ""])
    return (
        "<p>What is served is a weighted sum of these parts. The validation split chose the "
        "weights, and each part was asked by itself, too. Scores of the parts are not on one "
        "scale, so a large weight is no large share.</p>\n"
        + _table(
            ["part", "what it is", "NDCG@10, validation", "of the tail", "weight in the sum"],
            rows,
            2,
        )
    )


def _ablation(facts: Facts) -> str:
    if "missing" in facts:
        return _missing(facts, "Variants of this run, side by side,")
    text = ""
    for each in facts["comparisons"]:
        split = "test" if each["final"] else "validation"
        groups = [group for group in ("overall", "tail") if group in each["targets"]]
        named, series = [], {GROUPS[group]: list[Bar | None]() for group in groups}
        rows, said = [], []
        for row in each["rows"]:
            found = row["protocols"]["full"]
            name = row["variant"] if row["model"] == "ours" else f"{row['variant']}: {row['model']}"
            named.append((name, "reference" if name == each["reference"] else ""))
            cells = []
            for group in groups:
                cell = found[group]["ndcg10"]
                mean, spread = cell["mean"], cell["deviation"]
                series[GROUPS[group]].append(Bar(mean, mean - spread, mean + spread))
                told = f"{mean:.4f} ± {spread:.4f}"
                if "p" in cell:
                    told += f" ({cell['difference']:+.4f}, p {cell['p']:.2g})"
                cells.append(told)
            rows.append([name, *cells])
            said.append(f"{name} {found['overall']['ndcg10']['mean']:.4f}")
        title = f"NDCG@10 of the variants in {each['name']}"
        seeds = len(each["seeds"])
        chart = bars(title, f"NDCG@10, {split} split", named, series, "; ".join(said))
        text += _figure(
            title,
            chart,
            f"Mean of {seeds} seed{'s' * (seeds != 1)} on the {split} split; whiskers: one "
            "standard deviation over seeds.",
        )
        head = ["variant", *(f"NDCG@10, {GROUPS[group]}" for group in groups)]
        text += _table(head, rows)
        text += (
            '<p class="soft">In brackets the difference to '
            f"<code>{escape(each['reference'])}</code> (of an id-only model: to its own variant's "
            "sum) and its p, by paired bootstrap over users.</p>\n"
        )
    return text


def _scft(facts: Facts) -> str:
    if "missing" in facts:
        return _missing(facts, "Curves of SCFT")
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
            charts.append(_figure(title, chart))
    return text + _charts(charts)


def _rat(facts: Facts) -> str:
    if "missing" in facts:
        return _missing(facts, "Curves of RAT")
    views = facts["views"]
    text = (
        "<h3>RAT: training the views</h3>\n<p>Each view is a table of item vectors with a sequence "
        "model of its own. After every epoch the validation split is asked; training stops when it "
        "no longer gets better, and the best epoch (the ring) is kept. Losses of different views "
        "cannot be compared: they are of different scales.</p>\n"
    )
    best = {n: max(view["validation"], key=lambda p: p[1]) for n, view in views.items()}
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
        charts.append(_figure(title, lines(title, "epoch", label, series, alt, marks)))
    return text + _charts(charts)


def _space(facts: Facts) -> str:
    if "missing" in facts:
        return _missing(facts, "Maps and neighbours")
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
        charts.append(_figure(name[0].upper() + name[1:], chart, told))
    text += _charts(charts)
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
    text += _table([*head, "in nobody's ten nearest"], rows, 1)
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


def _data(facts: Facts) -> str:
    if "missing" in facts:
        return _missing(facts, "Facts about the data")
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
        ["items without attributes", "items_without_attributes"],
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
        + _table(["", "number"], kept, 1)
        + "</div><div><h3>Left out</h3>"
        + _table(["", "number"], dropped, 1)
        + "</div></div>\n"
    )


def _seconds(value: float) -> str:
    if value < 120:
        return f"{value:.1f} s" if value < 10 else f"{value:.0f} s"
    return f"{value / 60:.0f} min" if value < 7200 else f"{value / 3600:.1f} h"


def _cost(facts: Facts) -> str:
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
        text += _charts([_figure(title, chart)])
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
    text += "<h3>Machine and versions</h3>\n" + _table(["", ""], rows)
    config = escape(json.dumps(facts["config"], indent=1, ensure_ascii=False))
    return text + _details("The whole configuration", f"<pre>{config}</pre>")
