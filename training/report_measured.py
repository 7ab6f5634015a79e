"""Sections of the report on how well it recommends, each as HTML out of its facts."""

from collections.abc import Sequence
from html import escape

from training.charts import Bar, bars
from training.report import counts, interval
from training.report_parts import (
    Facts,
    bar,
    details,
    figure,
    missing,
    side_by_side,
    table,
    users,
)

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


def quality(facts: Facts, config: Facts) -> str:
    """What the bundle serves beside the id-only model, on the test split."""
    if "missing" in facts:
        return missing(facts, "Measurements")
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
    named = [(GROUPS[group], users(facts["targets"][group])) for group in groups]
    charts = [
        figure(
            f"{title} by kind of item",
            bars(
                f"{title} by kind of item",
                f"{title}, whole catalogue ranked",
                named,
                {m: [bar(full[m][group].get(metric)) for group in groups] for m in MODELS},
                _said(title, groups, full, metric),
            ),
        )
        for metric, title in metrics.items()
    ]
    text += side_by_side(charts)
    text += (
        '<p class="soft">Whiskers are 95 % intervals over users (bootstrap), of this one seed. '
        "Head: the fifth of the items that are used most in training; tail: the others; cold: "
        "those of the tail that training never saw.</p>\n"
    )
    named = [(counts(each), users(each["targets"])) for each in facts["buckets"]]
    charts = [
        figure(
            f"{title} by popularity of the hidden item",
            bars(
                f"{title} by popularity of the hidden item",
                f"{title}, by training interactions of the hidden item",
                named,
                {m: [bar(each[m][metric]) for each in facts["buckets"]] for m in MODELS},
                "; ".join(
                    f"{counts(each)} interactions: id-only {each['id-only'][metric]['mean']:.4f}, "
                    f"ours {each['ours'][metric]['mean']:.4f}"
                    for each in facts["buckets"]
                ),
            ),
        )
        for metric, title in metrics.items()
    ]
    text += side_by_side(charts)
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
                    found = [interval(cell[metric], sign) for metric in metrics]
                    rows.append([told, GROUPS[group], name, *found])
    told = f'<p class="soft">Protocol: {escape(facts["protocol"])}. Brackets: 95 % intervals.</p>'
    return text + details(
        "All figures as a table, with the other protocols",
        told + table(["ranked", "items", "model", *metrics.values()], rows),
    )


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


def cold(facts: Facts) -> str:
    """What items reach that were held out of everything that is fitted."""
    if "missing" in facts:
        return missing(facts, "Cold items")
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
            figure(
                f"{title} of cold items and of others",
                bars(
                    f"{title} of cold items and of others",
                    f"{title}, whole catalogue ranked",
                    [(name, users(facts["targets"][key])) for key, name in names.items()],
                    {"ours": [bar(facts[key][metric]) for key in names]},
                    told,
                ),
            )
        )
    return text + side_by_side(charts)


def by_time(facts: Facts) -> str:
    """The same as a table, of the run that is split by one moment for everybody."""
    if "missing" in facts:
        return missing(facts, "A split by time: results")
    k, full = facts["k"], facts["full"]
    rows = [
        [GROUPS[group], f"{facts['targets'][group]:,}", model]
        + [interval(full[model][group][metric]) for metric in ("hr", "ndcg")]
        for group in full["ours"]
        for model in MODELS
    ]
    return (
        "<h3>Trained on the past, asked for what came next</h3>\n"
        "<p>One moment for everybody: what came before it trains, what came after it tests. It is "
        "harder than hiding each user's last item, and nearer to use.</p>\n"
        + table(["items", "users", "model", f"HR@{k}", f"NDCG@{k}"], rows)
    )


def weights(facts: Facts) -> str:
    """What each part of the served sum reaches alone, and weighs in it."""
    if "missing" in facts:
        return missing(facts, "Weights of the parts")
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
        + table(
            ["part", "what it is", "NDCG@10, validation", "of the tail", "weight in the sum"],
            rows,
            2,
        )
    )


def ablation(facts: Facts) -> str:
    """Variants side by side, of every comparison there is."""
    if "missing" in facts:
        return missing(facts, "Variants of this run, side by side,")
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
        text += figure(
            title,
            chart,
            f"Mean of {seeds} seed{'s' * (seeds != 1)} on the {split} split; whiskers: one "
            "standard deviation over seeds.",
        )
        head = ["variant", *(f"NDCG@10, {GROUPS[group]}" for group in groups)]
        text += table(head, rows)
        text += (
            '<p class="soft">In brackets the difference to '
            f"<code>{escape(each['reference'])}</code> (of an id-only model: to its own variant's "
            "sum) and its p, by paired bootstrap over users.</p>\n"
        )
    return text
