"""What an increment learnt, as one HTML page that needs nothing but itself: pictures are inside, and no scripts.

The figures are those of outcome.py; here they are only drawn.
"""

import base64
import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from html import escape
from pathlib import Path

from lifelist.deploy import thumbnails
from lifelist.deploy.outcome import (
    SHOWN,
    AnswerOutcome,
    ClassOutcome,
    Exemplar,
    Memory,
    Outcome,
    Rate,
    outcome,
)
from lifelist.deploy.records import StepRecord
from lifelist.deploy.report import ANSWERS
from lifelist.deploy.workshop import Workshop
from lifelist.training.methods import METHODS

BEFORE, AFTER, BAD, GOOD, INK, QUIET, LINE = "#a3acb4", ANSWERS["corrected"][1], "#c0504d", "#3a8f5c", *(
    "#22303c", "#66727d", "#e3e8ec",
)  # fmt: skip
OF_ANSWER = {"linear_uncorrected": "uncorrected", "linear": "corrected", "nearest_mean": "nearest_mean"}
OF_TERM = {  # the terms of the loss, as training/loss.py names them: new ones full, old ones pale
    "classify_new": "#1b6ca8",
    "distil_new": "#3a8f5c",
    "classify_old": "#8fb8d8",
    "distil_old": "#9ccbb0",
}
NAMED = 3  # classes that another is taken for
WIDE, HIGH = 440, 200  # pixels of a plot of the loss


def page(workshop: Workshop, number: int) -> str:
    """The page of increment `number`, whatever its state, as HTML. Missing if there is none."""
    return html(outcome(workshop, number))


def write(workshop: Workshop, number: int, file: Path) -> Path:
    """`page` in a file, which is replaced if it is there; its whole path."""
    text = page(workshop, number)
    file.write_text(text, encoding="utf-8")
    return file.resolve()


def html(found: Outcome) -> str:
    """The page of what was found."""
    title = f"Increment {found.rollout.id}: {', '.join(found.names)}"
    parts = [_header(found, title), _classes(found), _bias(found), _exemplars(found), _losses(found), _facts(found)]
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style>'
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body><main>\n{"".join(parts)}</main></body></html>\n'
    )


# fmt: off
_STYLE = f"""
body {{ margin: 0; background: #f6f8f9; color: {INK}; font: 14px/1.5 system-ui, "Segoe UI", Roboto, sans-serif }}
main {{ max-width: 1040px; margin: 0 auto; padding: 28px 24px 60px }}
section {{ background: #fff; border: 1px solid {LINE}; border-radius: 8px; padding: 18px 22px 20px; margin-top: 18px }}
h1 {{ font-size: 24px; line-height: 1.25; margin: 0 0 2px; font-weight: 600; overflow-wrap: anywhere }}
h2 {{ font-size: 16px; margin: 0 0 4px; font-weight: 600 }} h3 {{ font-size: 14px; margin: 0; font-weight: 600 }}
p {{ margin: 0 0 10px }} .quiet {{ color: {QUIET} }} .bad {{ color: {BAD} }} .good {{ color: {GOOD} }}
.note {{ border-left: 3px solid #d9b44a; background: #fdf8ea; padding: 6px 12px; overflow-wrap: anywhere }}
.verdict {{ border-left: 3px solid {BAD}; background: #fbf0ef; padding: 6px 12px; margin: 12px 0 0 }}
.tiles {{ display: grid; grid-template-columns: repeat(3, 1fr); gap: 18px; margin-top: 18px }}
.tiles section {{ margin: 0; padding: 14px 22px }} .tiles b {{ font-size: 26px; font-weight: 600; line-height: 1.3 }}
table {{ border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }}
th {{ text-align: left; font-weight: 500; color: {QUIET}; font-size: 12px;
  vertical-align: bottom; white-space: nowrap }}
th, td {{ padding: 4px 14px 4px 0; border-bottom: 1px solid {LINE} }} tr:last-child td {{ border-bottom: 0 }}
td {{ vertical-align: middle; overflow-wrap: anywhere }} td:last-child, th:last-child {{ padding-right: 0 }}
.n {{ text-align: right; white-space: nowrap }} td.bars {{ padding-top: 0; padding-bottom: 0 }}
td.name {{ font-weight: 500; min-width: 90px }} section > p:last-child {{ margin-bottom: 0 }}
.one {{ white-space: nowrap }} .small {{ font-size: 11px; color: {QUIET} }}
.tag {{ font-size: 11px; font-weight: 500; color: {AFTER}; background: #e8f1f8; border-radius: 3px; padding: 1px 6px }}
.key {{ display: inline-block; width: 18px; height: 5px; border-radius: 3px; margin: 0 6px 2px 0 }}
svg {{ display: block }} svg text {{ font-size: 11px; fill: {QUIET}; font-family: inherit }}
.keys span {{ margin-right: 16px; white-space: nowrap }}
.memory {{ display: grid; grid-template-columns: 150px 1fr; gap: 14px; padding: 9px 0; border-top: 1px solid {LINE} }}
.thumbs {{ display: flex; flex-wrap: wrap; gap: 4px }} .thumbs > * {{ width: 64px; height: 64px; border-radius: 3px }}
.gone {{ box-sizing: border-box; border: 1px dashed #c5ccd2; color: {QUIET}; font-size: 10px; line-height: 1.2;
  display: flex; align-items: center; justify-content: center; text-align: center; overflow: hidden }}
.plots {{ display: flex; flex-wrap: wrap; gap: 10px 40px }} .facts td:first-child {{ color: {QUIET}; width: 150px }}
@media print {{ body {{ background: #fff }} section {{ break-inside: avoid-page }} }}
"""
# fmt: on


def _header(found: Outcome, title: str) -> str:
    rollout = found.rollout
    version = f"version {found.version.version}" if found.version else "no version"
    line = f"{rollout.row} · {version} · {_source(found)} · {rollout.state} · asked for {_time(rollout.created_at)}"
    reason = f'<p class="verdict">{escape(f"{rollout.state.capitalize()}: {rollout.reason}")}</p>'
    own = {a.key: a for a in found.answers}.get(found.answers_by)
    old, new, both = (own.groups.get(group) if own else None for group in ("old", "new", "all"))
    if found.is_base:
        tiles = [_tile("all classes", None, both)]
    else:
        tiles = [_tile("old classes", found.old_before, old), _tile("new classes", None, new)]
        tiles.append(_tile("all classes", None, both))
    return (
        f'<h1>{escape(title)}</h1><p class="quiet">{escape(line)}</p>{reason if rollout.reason else ""}'
        f'<div class="tiles">{"".join(tiles)}</div>\n'
    )


def _source(found: Outcome) -> str:
    teacher = found.rollout.facts.get("teacher")
    if teacher is not None:
        return f"learned from version {teacher}"
    return "a base, learned from nothing" if found.is_base else "not begun"


def _tile(title: str, before: Rate | None, after: Rate | None) -> str:
    """A large figure: accuracy of a group, with what it was."""
    was = f'<span class="quiet">{_percent(before)} → </span>' if before else ""
    return (
        f'<section><div class="quiet">{title}</div><b>{was}{_percent(after)}</b>'
        f'<div class="quiet">{_range(after)}{_of_images(after)}</div></section>'
    )


def _classes(found: Outcome) -> str:
    after = f"version {found.version.version}" if found.version else "what was trained"
    text = f"On the images that are set apart for the gate. After: {after}, {_said(found.answers_by)}."
    if found.before and found.answers_before:
        before = f"version {found.before.version}, {_said(found.answers_before)}"
        if found.teacher and found.teacher.version != found.before.version:
            before += f" (version {found.teacher.version} has its model, and classes enrolled upon it)"
        text += f" Before: {before}. The classes that lost most come first."
    text += " Bars are 95 % intervals (Wilson)."
    old = any(not one.new for one in found.classes)
    lost = [one for one in found.classes if one.change is not None and one.change < 0]
    known = [one for one in found.classes if one.change is not None]
    summary = f"<p>{escape(_summary(lost, len(known)))}</p>" if known else ""
    keys = _keys({"before": BEFORE, "after": AFTER} if old else {"after": AFTER})
    was, change = ('<th class="n">before</th>', '<th class="n">change</th>') if old else ("", "")
    head = (
        f'<tr><th>class</th><th class="n">images</th>{was}<th class="n">after</th>{change}'
        f"<th>{_scale()}</th><th>now taken for</th></tr>"
    )
    rows = "".join(_class_row(one, with_old=old) for one in found.classes)
    return (
        f'<section id="classes"><h2>Accuracy by class</h2><p class="quiet">{escape(text)}</p>'
        f"{_notes(found, 'classes')}{summary}{keys}<table>{head}{rows}</table></section>\n"
    )


def _summary(lost: Sequence[ClassOutcome], known: int) -> str:
    """Who lost most, in a sentence. lost: the classes that did, the worst first; known: how many could have."""
    if not lost:
        return f"None of the {known} old classes lost accuracy."
    worst = lost[0]
    assert worst.before is not None
    assert worst.after is not None
    text = f"{len(lost)} of {known} old classes lost accuracy, and {worst.name} most: from {_percent(worst.before)} to "
    return f"{text}{_percent(worst.after)}{f', taken for {_taken(worst)}' if worst.taken_for else ''}."


def _class_row(one: ClassOutcome, *, with_old: bool) -> str:
    """With old classes about, there are columns of what was, and new ones are told by a tag."""
    tag = ' <span class="tag">new</span>' if one.new and with_old else ""
    counts = [f"{rate.images:,}" for rate in (one.before, one.after) if rate and rate.images is not None]
    change = "–"
    if one.change is not None:
        kind = "bad" if one.change < 0 else "good" if one.change > 0 else "quiet"
        change = f'<span class="{kind}">{_signed(100 * one.change)}</span>'
    cells = [
        f'<td class="name">{escape(one.name)}{tag}</td>',
        f'<td class="n quiet">{" / ".join(dict.fromkeys(counts)) or "–"}</td>',
        _rate_cell(one.before) if with_old else "",
        _rate_cell(one.after),
        f'<td class="n">{change}</td>' if with_old else "",
        f'<td class="bars">{_bars(one)}</td>',
        f"<td>{escape(_taken(one)) or '–'}</td>",
    ]
    return f"<tr>{''.join(cells)}</tr>\n"


def _rate_cell(rate: Rate | None) -> str:
    """A rate with its interval below it."""
    return f'<td class="n">{_percent(rate)}<br><span class="small">{_range(rate)}</span></td>'


def _taken(one: ClassOutcome) -> str:
    """`gull 4, wren 1 and 2 more classes`."""
    more = len(one.taken_for) - NAMED
    named = ", ".join(f"{name} {count}" for name, count in one.taken_for[:NAMED])
    return f"{named} and {more} more {'classes' if more > 1 else 'class'}" if more > 0 else named


def _scale() -> str:
    """The head of the column of bars: 0 … 100 %."""
    marks = "".join(f'<text x="{_x(s)}" y="10" text-anchor="middle">{100 * s:.0f} %</text>' for s in (0.0, 0.5, 1.0))
    return f'<svg width="240" height="13" role="presentation">{marks}</svg>'


def _x(share: float) -> float:
    return round(18 + 204 * share, 1)


def _bars(one: ClassOutcome) -> str:
    """Two intervals, one below the other, each with a dot where the accuracy is."""
    lines = "".join(
        f'<line x1="{_x(s)}" x2="{_x(s)}" y1="0" y2="48" stroke="{LINE}"/>' for s in (0.0, 0.25, 0.5, 0.75, 1.0)
    )
    shapes = []
    drawn = [(rate, colour) for rate, colour in ((one.before, BEFORE), (one.after, AFTER)) if rate]
    for (rate, colour), y in zip(drawn, (18, 30) if len(drawn) > 1 else (24,), strict=False):
        if rate.interval:
            low, high = map(_x, rate.interval)
            shapes.append(
                f'<rect x="{low}" y="{y - 2.5}" width="{high - low:.1f}" height="5" rx="2.5" fill="{colour}" '
                'opacity="0.35"/>'
            )
        shapes.append(f'<circle cx="{_x(rate.share)}" cy="{y}" r="4" fill="{colour}"/>')
    told = f"before {_percent(one.before)}, after {_percent(one.after)}"
    return f'<svg width="240" height="48" role="img" aria-label="{told}">{lines}{"".join(shapes)}</svg>'


def _bias(found: Outcome) -> str:
    notes = _notes(found, "bias")
    if found.is_base:
        body = '<p class="quiet">A base has no older classes that new ones could be preferred to.</p>'
    else:
        text = "A network that has just seen many images of new classes answers them too often."
        if found.truly_new:
            text += f" {_percent(found.truly_new)} of the {found.truly_new.images:,} gate images show one (the line)."
        head = (
            '<tr><th>answer</th><th class="n">taken for a new class</th><th></th><th class="n">accuracy: all</th>'
            '<th class="n">old</th><th class="n">new</th></tr>'
        )
        rows = "".join(_bias_row(one, found) for one in _told_apart(found))
        body = f'<p class="quiet">{escape(text)}</p>{notes}<table>{head}{rows}</table>'
        notes = ""
    return f'<section id="bias"><h2>Bias to new classes</h2>{body}{notes}</section>\n'


def _told_apart(found: Outcome) -> list[AnswerOutcome]:
    """The answers; where nothing is rebalanced, there is no before."""
    corrects = _rebalance(found) is not None
    return [one for one in found.answers if corrects or one.key != "linear_uncorrected"]


def _rebalance(found: Outcome) -> str | None:
    row = METHODS.get(found.rollout.row)
    return None if row is None or row.rebalance == "none" else row.rebalance.replace("-", " ")


def _bias_row(one: AnswerOutcome, found: Outcome) -> str:
    by = _rebalance(found)
    colour = ANSWERS[OF_ANSWER[one.key]][1]
    titles = {
        "linear_uncorrected": f"linear, before {by}",
        "linear": f"linear, after {by}" if by else "linear",
        "nearest_mean": "nearest mean",
    }
    own = ' <span class="tag">answers</span>' if one.key == found.answers_by else ""
    bar = ""
    if one.answered_new and found.truly_new:
        true = _x(found.truly_new.share)
        bar = (
            f'<svg width="240" height="22" role="presentation"><rect x="18" y="0" width="204" height="22" '
            f'fill="#f2f5f7"/><rect x="18" y="4" width="{_x(one.answered_new.share) - 18:.1f}" height="14" '
            f'fill="{colour}"/><line x1="{true}" x2="{true}" y1="0" y2="22" stroke="{INK}" stroke-width="1.5"/></svg>'
        )
    groups = "".join(_rate_cell(one.groups[group]) for group in ("all", "old", "new"))
    return (
        f'<tr><td class="name">{escape(titles[one.key])}{own}</td><td class="n">{_percent(one.answered_new)}</td>'
        f"<td>{bar}</td>{groups}</tr>\n"
    )


def _exemplars(found: Outcome) -> str:
    text = f"The images that the increment keeps, best first; the best {SHOWN} of each class are shown."
    crisp = ' style="image-rendering: pixelated"' if found.image_size <= thumbnails.LARGEST // 2 else ""
    with_old = any(not one.new for one in found.memories)
    lists = "".join(_memory(one, crisp, tagged=one.new and with_old) for one in found.memories)
    intro = f'<p class="quiet">{text}</p>' if found.memories else ""
    return f'<section id="exemplars"><h2>Exemplars</h2>{intro}{_notes(found, "exemplars")}{lists}</section>\n'


def _memory(one: Memory, crisp: str, *, tagged: bool) -> str:
    tag = ' <span class="tag">new</span>' if tagged else ""
    count = f"{one.count:,} exemplar{'' if one.count == 1 else 's'}" if one.count else "no exemplars"
    images = "".join(_thumbnail(k, exemplar, crisp) for k, exemplar in enumerate(one.shown, start=1))
    return (
        f'<div class="memory"><div><h3>{escape(one.name)}{tag}</h3><span class="quiet">{count}</span></div>'
        f'<div class="thumbs">{images}</div></div>\n'
    )


def _thumbnail(rank: int, one: Exemplar, crisp: str) -> str:
    title = f"{rank}: {one.sha256}"
    if one.webp is None:
        return f'<span class="gone" title="{title}">{escape(one.missing)}</span>'
    data = base64.b64encode(one.webp).decode()
    return f'<img alt="exemplar {rank}" title="{title}" src="data:image/webp;base64,{data}"{crisp}>'


def _losses(found: Outcome) -> str:
    text = "Mean over each epoch, by term: classifying and distilling, on images of new and of old classes."
    used = {phase: _used(epochs) for phase, epochs in found.losses.items()}
    plots = "".join(f"<div><h3>{escape(p)}</h3>{_plot(found.losses[p], terms)}</div>" for p, terms in used.items())
    keys = {t.replace("_", " "): colour for t, colour in OF_TERM.items() if any(t in terms for terms in used.values())}
    intro = f'<p class="quiet">{text}</p>{_keys(keys)}' if plots else ""
    body = f'{intro}{_notes(found, "losses")}<div class="plots">{plots}</div>'
    return f'<section id="losses"><h2>Loss</h2>{body}</section>\n'


def _used(epochs: Sequence[tuple[int, Mapping[str, float]]]) -> list[str]:
    """The terms that were not 0 throughout."""
    return [term for term in OF_TERM if any(loss.get(term) for _, loss in epochs)]


def _plot(epochs: Sequence[tuple[int, Mapping[str, float]]], terms: Sequence[str]) -> str:
    """A line for each term over the epochs of one phase."""
    last = max(2, epochs[-1][0])
    finite = [loss.get(t, 0.0) for _, loss in epochs for t in terms if math.isfinite(loss.get(t, 0.0))]
    step = _step(max(finite, default=0.0))
    top = step * max(1, math.ceil(max(finite, default=0.0) / step))
    left, bottom = 44, HIGH - 34

    def place(epoch: int, value: float) -> str:
        return f"{left + (WIDE - left - 10) * (epoch - 1) / (last - 1):.1f},{bottom - (bottom - 10) * value / top:.1f}"

    shapes = []
    for k in range(round(top / step) + 1):
        x, y = place(1, k * step).split(",")
        shapes.append(f'<line x1="{x}" x2="{WIDE - 10}" y1="{y}" y2="{y}" stroke="{LINE}"/>')
        shapes.append(f'<text x="{left - 8}" y="{float(y) + 4:.1f}" text-anchor="end">{k * step:g}</text>')
    for epoch in sorted({1, *(round(1 + (last - 1) * k / 4) for k in range(1, 5))}):
        x = place(epoch, 0).split(",")[0]
        shapes.append(f'<text x="{x}" y="{bottom + 16}" text-anchor="middle">{epoch}</text>')
    shapes.append(f'<text x="{(left + WIDE) / 2}" y="{HIGH - 3}" text-anchor="middle">epoch</text>')
    for term in terms:
        points = [place(e, loss.get(term, 0.0)) for e, loss in epochs if math.isfinite(loss.get(term, 0.0))]
        shapes.append(
            f'<polyline points="{" ".join(points)}" fill="none" stroke="{OF_TERM[term]}" stroke-width="2" '
            'stroke-linejoin="round" stroke-linecap="round"/>'
        )
        if len(points) == 1:
            x, y = points[0].split(",")
            shapes.append(f'<circle cx="{x}" cy="{y}" r="3.5" fill="{OF_TERM[term]}"/>')
    return f'<svg width="{WIDE}" height="{HIGH}" role="img" aria-label="loss by term">{"".join(shapes)}</svg>'


def _step(top: float) -> float:
    """The distance of about four lines up to `top`: 1, 2 or 5 times a power of ten."""
    if top <= 0:
        return 1.0
    rough = top / 4
    power = 10.0 ** math.floor(math.log10(rough))
    return next(k * power for k in (1, 2, 5, 10) if k * power >= rough * 0.999)


def _facts(found: Outcome) -> str:
    rollout, facts = found.rollout, found.rollout.facts
    rows: list[tuple[str, object]] = [
        ("state", f"{rollout.state}{f': {rollout.reason}' if rollout.reason else ''}"),
        ("method", f"{rollout.row}, answers by {found.answers_by.replace('_', ' ')}, rebalance: "
                   f"{_rebalance(found) or 'none'}"),
        ("origin", _source(found)),
        ("version", found.version.version if found.version else "none was published"),
    ]  # fmt: skip
    if because := facts.get("method_reason"):
        rows.append(("chosen because", because))
    if bias := facts.get("bias"):
        count = bias["last_row"] - bias["first_row"]
        rows_of = f"the newest {count} rows of the last layer" if count > 1 else "the newest row of the last layer"
        rows.append(("bias correction", f"α = {bias['alpha']:.4f}, β = {bias['beta']:.4f}, for {rows_of}"))
    if images := facts.get("images"):
        rows.append(("images", ", ".join(f"{role} {count:,}" for role, count in images.items())))
    if "seconds" in facts:
        rows.append(("training", f"{facts['seconds']:,.1f} s"))
    if found.steps:
        rows.append(("steps", ", ".join(_seconds(step) for step in found.steps)))
    if parity := facts.get("parity"):
        agree = f"{parity['top1_agreement']:.2%} of {parity['images']:,} images"
        rows.append(
            (
                "graph and network",
                f"agree on {agree}; logits differ by {parity['max_abs_logit_difference']:.2g} at most",
            )
        )
    if found.version:
        options = found.version.options
        names = [
            k for k in ("epochs", "schedule", "memory_total", "memory_per_class", "selection", "seed") if k in options
        ]
        told = [f"{name.replace('_', ' ')} {options[name]}" for name in names if options[name] or name == "seed"]
        network = f"{found.version.network}, {found.image_size}×{found.image_size} pixels"
        rows.append(("network", ", ".join([network, *told])))
        if software := found.version.software:
            rows.append(("computed by", ", ".join(f"{name} {what}" for name, what in software.items())))
    rows += [("warning", message) for message in facts.get("warnings", ())]
    table = "".join(f"<tr><td>{escape(name)}</td><td>{escape(str(what))}</td></tr>" for name, what in rows)
    return f'<section id="facts"><h2>Facts</h2><table class="facts">{table}</table>{_gate(found)}</section>\n'


def _gate(found: Outcome) -> str:
    checks = found.rollout.facts.get("gate")
    if not checks:
        return '<h2 style="margin-top: 18px">Gate</h2><p class="quiet">It has not been judged.</p>'
    rows = "".join(
        f'<tr><td class="name one">{escape(check["name"].replace("_", " "))}</td>'
        f'<td class="one {"good" if check["passed"] else "bad"}">{"passed" if check["passed"] else "refused"}</td>'
        f'<td class="n">{_number(check["found"])}</td><td class="n">{_number(check["limit"])}</td>'
        f"<td>{escape(check['message'])}</td></tr>"
        for check in checks
    )
    head = '<tr><th>check</th><th>verdict</th><th class="n">found</th><th class="n">limit</th><th></th></tr>'
    return f'<h2 style="margin-top: 18px">Gate</h2><table>{head}{rows}</table>'


def _notes(found: Outcome, part: str) -> str:
    return "".join(f'<p class="note">{escape(note)}</p>' for note in dict.fromkeys(found.notes[part]))


def _keys(colours: Mapping[str, str]) -> str:
    items: Iterable[str] = (
        f'<span><i class="key" style="background: {colour}"></i>{escape(name)}</span>'
        for name, colour in colours.items()
    )
    return f'<p class="keys quiet">{"".join(items)}</p>'


def _said(answer: str) -> str:
    return f"{answer.replace('_', '-')} answer"


def _percent(rate: Rate | None) -> str:
    return "–" if rate is None else f"{100 * rate.share:.1f} %"


def _range(rate: Rate | None) -> str:
    """`80 … 95 %`, the interval; empty where there is none."""
    return (
        "" if rate is None or rate.interval is None else "{:.0f} … {:.0f} %".format(*(100 * s for s in rate.interval))
    )


def _of_images(rate: Rate | None) -> str:
    return "" if rate is None or rate.images is None else f", {rate.images:,} images"


def _signed(points: float) -> str:
    return f"{'−' if points < 0 else '+' if points > 0 else '±'}{abs(points):.1f}"


def _number(found: float | None) -> str:
    return "–" if found is None else f"{found:.4g}".replace("-", "−")


def _time(at: str) -> str:
    return f"{at[:10]} {at[11:16]} UTC"


def _seconds(step: StepRecord) -> str:
    if step.ended_at is None:
        return f"{step.state} (not ended)"
    took = (datetime.fromisoformat(step.ended_at) - datetime.fromisoformat(step.began_at)).total_seconds()
    return f"{step.state} {took:,.1f} s"
