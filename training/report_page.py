"""The report on a run as one page: opens offline, light, dark, on a phone and on paper."""

from html import escape

from training import report_made as made
from training import report_measured as measured
from training.charts import STYLE
from training.report_parts import Facts

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
        (
            "result",
            "Does it recommend better?",
            measured.quality(facts["quality"], facts["config"]),
        ),
        (
            "cold",
            "Items nobody has used yet",
            measured.cold(facts["cold"]) + measured.by_time(facts["time"]),
        ),
        (
            "ablation",
            "What each part is worth",
            measured.weights(facts["rat"]) + measured.ablation(facts["ablation"]),
        ),
        ("training", "How training went", made.scft(facts["scft"]) + made.rat(facts["rat"])),
        ("space", "Where the items lie", made.space(facts["space"])),
        ("data", "The data, and what was left out", made.data(facts["data"])),
        ("cost", "What it took, and how to do it again", made.cost(facts)),
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
