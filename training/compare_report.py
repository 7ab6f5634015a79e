"""Results of a comparison as tables and as a picture."""

from typing import Any

PROTOCOLS = {
    "full": "full catalogue, history excluded",
    "unfiltered": "full catalogue, history among the candidates",
    "sampled": "1 positive among 100 stored uniform negatives",
}


def as_markdown(results: dict[str, Any]) -> str:
    """A table per protocol: variants by groups."""
    blocks = []
    groups = list(results["targets"])
    for protocol in results["rows"][0]["protocols"]:
        head = "| variant | model |" + "".join(f" {group} HR@10 | NDCG@10 |" for group in groups)
        lines = [f"### {PROTOCOLS[protocol]}", "", head, "|---|---|" + "---|---|" * len(groups)]
        for row in results["rows"]:
            found = row["protocols"][protocol]
            cells = [
                _shown(found.get(group, {}).get(metric))
                for group in groups
                for metric in ("hr10", "ndcg10")
            ]
            lines.append(f"| {row['variant']} | {row['model']} | " + " | ".join(cells) + " |")
        blocks.append("\n".join(lines))
    if results.get("cold"):
        names = {
            "hr10": "HR@10", "ndcg10": "NDCG@10", "warm_kept": "HR@10 that the others keep",
            "targets": "targets",
        }  # fmt: skip
        metrics = [metric for metric in names if metric in next(iter(results["cold"].values()))]
        head = "| variant | " + " | ".join(names[metric] for metric in metrics) + " |"
        lines = ["### cold items, full catalogue", "", head, "|---|" + "---|" * len(metrics)]
        for variant, found in results["cold"].items():
            cells = [_shown(found[metric]) for metric in metrics if metric != "targets"]
            if "hr10_low" in found:
                cells[0] += f" [{found['hr10_low']['mean']:.4f}, {found['hr10_high']['mean']:.4f}]"
            cells += [f"{found['targets']['mean']:.0f}"] if "targets" in found else []
            lines.append(f"| {variant} | " + " | ".join(cells) + " |")
        blocks.append("\n".join(lines))
    told = (
        f"Mean ± deviation over seeds {', '.join(map(str, results['seeds']))}; in brackets the "
        f"difference to `{results['reference']}` (of an id-only model: to the sum of its own "
        "variant) and its p, by paired bootstrap over users; in square brackets a 95 % interval "
        "over users, mean of the seeds."
    )
    return "\n\n".join([told, *blocks]) + "\n"


def _shown(cell: dict[str, float] | None) -> str:
    if cell is None:
        return "-"
    text = f"{cell['mean']:.4f} ± {cell['deviation']:.4f}"
    if "p" in cell:
        text += f" ({cell['difference']:+.4f}, p {cell['p']:.2g})"
    return text


def as_svg(results: dict[str, Any]) -> str:
    """A picture: NDCG@10 of every row, overall and in the tail, full catalogue."""
    rows = results["rows"]
    shown = [group for group in ("overall", "tail") if group in results["targets"]]
    colours = {"overall": "#4c72b0", "tail": "#dd8452"}
    cells = [[row["protocols"]["full"][group]["ndcg10"] for group in shown] for row in rows]
    highest = max((cell["mean"] for each in cells for cell in each), default=0.0) or 1.0
    left, width, bar = 230, 420, 14
    step = bar * len(shown) + 12
    height = 50 + step * len(rows)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 90}" height="{height}" '
        'font-family="sans-serif" font-size="12" role="img" '
        'aria-label="NDCG@10 of every variant, overall and in the tail">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="10" y="20" font-size="14">NDCG@10, {PROTOCOLS["full"]}</text>',
    ]
    for place, group in enumerate(shown):
        x = left + 90 * place
        lines.append(f'<rect x="{x}" y="30" width="10" height="10" fill="{colours[group]}"/>')
        lines.append(f'<text x="{x + 14}" y="39">{group}</text>')
    for number, (row, each) in enumerate(zip(rows, cells, strict=True)):
        top = 50 + step * number
        name = row["variant"] if row["model"] == "ours" else f"{row['variant']}: {row['model']}"
        lines.append(
            f'<text x="{left - 8}" y="{top + step / 2}" text-anchor="end">{_escaped(name)}</text>'
        )
        for place, (group, cell) in enumerate(zip(shown, each, strict=True)):
            y = top + bar * place
            length = width * cell["mean"] / highest
            lines.append(
                f'<rect x="{left}" y="{y}" width="{length:.1f}" height="{bar - 3}" '
                f'fill="{colours[group]}"/>'
            )
            lines.append(
                f'<text x="{left + length + 5:.1f}" y="{y + 10}">{cell["mean"]:.4f}</text>'
            )
    return "\n".join([*lines, "</svg>"]) + "\n"


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")
