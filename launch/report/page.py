"""The report as one HTML file with everything inside: data, styles, and the drawing library (Vega and Vega-Lite)."""

import html
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

from launch.report import comparison, differences
from launch.report.figures import AXES, Figure, figures
from launch.report.recorded import Run, load_runs
from launch.report.series import STAGES
from launch.run_folder import package_version, write_text
from model.errors import InputError

MAX_PAGE_BYTES = 2_000_000
VEGA_LITE_VERSION = "6.4"
FOLDER = Path(__file__).parent
WIDE_FIGURES = ("staircase", "treemap")
TILES = {
    "BPB": "bits per byte",
    "artifact bytes": "artifact bytes",
    "steps": "steps",
    "tokens": "training tokens",
    "training seconds": "training seconds",
    "tokens per second": "tokens per second",
}


def write(run_dirs: list[Path], out: Path) -> int:
    """Writes the report of one or several run folders; returns its size in bytes.

    Raises:
        InputError: no run folder, an unreadable file in it, or more runs than fit into `MAX_PAGE_BYTES`.
    """
    page = render(load_runs(run_dirs))
    size = len(page.encode())
    if size > MAX_PAGE_BYTES:
        raise InputError(
            f"{out}: would have {size:,} bytes, the limit is {MAX_PAGE_BYTES:,}; report fewer runs at once"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, page)
    return size


def render(runs: Sequence[Run]) -> str:
    """The page's HTML."""
    drawn = figures(runs)
    names = comparison.names(runs)
    return Template((FOLDER / "page.html").read_text(encoding="utf-8")).substitute(
        version=html.escape(package_version("albatross") or "(checkout)"),
        title=html.escape(f"{names}: Albatross report"),
        heading=html.escape(names),
        origin=_origin(runs),
        links=_links(drawn, runs),
        summary=_warnings(runs) + (_tiles(runs[0]) if len(runs) == 1 else _comparison(runs)),
        figures="\n".join(_figure(figure) for figure in drawn),
        tables=_settings(runs),
        css=(FOLDER / "page.css").read_text(encoding="utf-8"),
        script=(FOLDER / "page.js").read_text(encoding="utf-8"),
        library=library(),
        axes=_json(AXES),
        data=_json([{"id": f.id, "has_axes": f.has_axes, "spec": f.drawn()} for f in drawn if f.rows]),
    )


def library() -> str:
    """Vega, Vega-Lite and vega-embed as one script that defines `vegaEmbed`."""
    import vl_convert

    script: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=VEGA_LITE_VERSION)
    return script.replace("</script", "<\\/script")


def _json(value: Any) -> str:
    """JSON that cannot end the script element that it stands in."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def _origin(runs: Sequence[Run]) -> str:
    facts = []
    for run in runs[:1] if len(runs) == 1 else ():
        facts = [run.preset and f"preset {run.preset}", comparison.hardware(run), run.environment.get("started")]
        data = run.environment.get("data", {})
        if data.get("lossless") is not None:
            facts.append("lossless tokenizer" if data["lossless"] else "tokenizer that changes text")
    return html.escape(" · ".join(fact for fact in facts if fact))


def _links(drawn: Sequence[Figure], runs: Sequence[Run]) -> str:
    items = [(f"figure_{figure.id}", figure.title) for figure in drawn]
    items += [(f"settings_{index}", f"Settings of {run.name}") for index, run in enumerate(runs)]
    return "\n".join(f'<li><a href="#{anchor}">{html.escape(title)}</a></li>' for anchor, title in items)


def _warnings(runs: Sequence[Run]) -> str:
    """What a reader must know before believing a figure."""
    lines = []
    for run in runs:
        scored = {name for name in STAGES if run.packed and run.report.get(name, {}).get("artifact_sha256")}
        others = [name for name in scored if run.packed and run.report[name]["artifact_sha256"] != run.packed.sha256]
        if others:
            lines.append(f"{run.name}: the scores are of another file than the artifact in the run folder.")
        lines += [f"{run.name}: {name} is partial." for name in STAGES if run.report.get(name, {}).get("partial")]
        illegal = [name for name in STAGES if run.report.get(name, {}).get("legal") is False]
        lines += [f"{run.name}: {name} adapted on text before scoring it; it is not legal." for name in illegal]
    return "".join(f'<p class="warning" role="note">{html.escape(line)}</p>' for line in lines)


def _tiles(run: Run) -> str:
    values = comparison.headline(run)
    notes = {"BPB": values.get("BPB of", "")}
    if run.packed is not None:
        notes["artifact bytes"] = f"sha256 {run.packed.sha256[:12]}…"
    tiles = [
        f"<div class='tile'><dt>{title}</dt><dd>{format_value(values[name])}"
        f"<small>{html.escape(notes.get(name, ''))}</small></dd></div>"
        for name, title in TILES.items()
        if name in values
    ]
    return f'<dl class="tiles">{"".join(tiles)}</dl>'


def _comparison(runs: Sequence[Run]) -> str:
    body = html_table(comparison.table(runs))
    for title, text in comparison.verdicts(runs):
        body += f'<h3>{html.escape(title)}</h3><pre class="scroll" tabindex="0">{html.escape(text)}</pre>'
    return f'<section class="panel" id="comparison"><h2>The runs side by side</h2>{body}</section>'


def _figure(figure: Figure) -> str:
    wide = ' class="wide"' if figure.id.startswith(WIDE_FIGURES) else ""
    title, caption = html.escape(figure.title), html.escape(figure.caption)
    head = f'<figure id="figure_{figure.id}"{wide}><h2 id="title_{figure.id}">{title}</h2>'
    if not figure.rows:
        return f'{head}<p class="missing">{html.escape(figure.missing)}</p></figure>'
    return (
        f'{head}<div class="chart" id="chart_{figure.id}" role="group" aria-labelledby="title_{figure.id}"></div>'
        f"<figcaption>{caption}</figcaption>"
        f'<details data-figure="{figure.id}"><summary>Values of “{title}”</summary>'
        f'<div class="scroll" tabindex="0" role="region" aria-labelledby="title_{figure.id}"></div></details></figure>'
    )


def _settings(runs: Sequence[Run]) -> str:
    return "\n".join(
        f'<section class="panel" id="settings_{index}"><h2>Settings of {html.escape(run.name)}</h2>'
        f"{''.join(_difference(each) for each in differences.of_run(run))}{_environment(run)}</section>"
        for index, run in enumerate(runs)
    )


def _difference(difference: differences.Differences) -> str:
    against = html.escape(difference.against)
    if not difference.rows:
        return f"<p>Nothing differs from {against}.</p>"
    rows = [
        {"setting": name, "here": _setting(here), "there": _setting(there)} for name, here, there in difference.rows
    ]
    return f"<h3>Different from {against}</h3>{html_table(rows)}"


def _setting(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _environment(run: Run) -> str:
    record = {
        name: json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value
        for name, value in run.environment.items()
    }
    if not record:
        return ""
    rows = [{"name": name, "value": value} for name, value in record.items()]
    return f"<details><summary>Environment of the run</summary>{html_table(rows)}</details>"


def html_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table of rows with the same keys; one that is too wide scrolls by itself."""
    head = "".join(f'<th scope="col">{html.escape(str(name))}</th>' for name in rows[0])
    body = "".join(f"<tr>{''.join(_cells(row.values()))}</tr>" for row in rows)
    return f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cells(values: Iterable[Any]) -> Iterable[str]:
    for value in values:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        kind = ' class="number"' if number else ""
        yield f"<td{kind}>{format_value(value)}</td>"


def format_value(value: Any) -> str:
    """A value for people, as HTML: thousands separated, numbers without needless digits."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.7g}" if abs(value) < 1e5 else f"{value:,.0f}"
    return html.escape(str(value))
