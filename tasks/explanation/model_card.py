"""The model card: what the model is, what it learned from, how good it is, where its limits are and what it costs.

Mitchell and others, Model cards for model reporting, 2019. Pure: from what the steps before left behind
to titled lines, and from these to Markdown; the page draws the same lines.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from evergreen.tasks.config.params import Interactions, Params, Problem, Table

Card = list[dict[str, Any]]
"""Sections in order, each with `title` and `lines`."""
METRICS = 4
"""Most metrics beside the primary one."""
CAVEATS = {
    "classification": "A probability is an estimate for rows like those it learned from; look at its calibration first.",
    "regression": "An answer is a mean for rows like this one; single rows lie on both sides of it.",
    "clustering": "Groups are a way to look at the rows, not a truth about them; other numbers of groups are possible.",
    "recommendation": "Lists follow what was bought; that somebody was never shown an item does not mean it was not wanted.",
}


def card(
    params: Params,
    problem: str,
    model: Mapping[str, Any],
    evaluation: Mapping[str, Any],
    best: Mapping[str, Any],
    diagnosis: Mapping[str, Any],
    explanation: Mapping[str, Any],
    serving: Mapping[str, float | None],
    spent: Mapping[str, Mapping[str, float]],
) -> Card:
    """`model`: model.json. `spent`: step -> cpu_seconds, peak_mb. The others: the files that are called so."""
    section = params.section(problem)
    parts = [
        ("What it is", _what(section, model)),
        ("What it learned from", _data(params, section, model)),
        ("How good it is", _quality(evaluation, best)),
        ("What it goes by", _goes_by(explanation)),
        ("Where its limits are", _limits(section, model, evaluation, explanation)),
        ("What to do next", [diagnosis["said"], *diagnosis.get("evidence", [])] if diagnosis.get("step") else []),
        ("What it costs", _cost(best, serving, spent)),
    ]
    return [{"title": title, "lines": lines} for title, each in parts if (lines := list(each))]


def markdown(described: Card) -> str:
    """The card as a Markdown document; its first line names the model."""
    blocks = ["# Model card"]
    blocks += [f"## {part['title']}\n\n" + "\n".join(f"- {line}" for line in part["lines"]) for part in described]
    return "\n\n".join(blocks) + "\n"


def _what(section: Problem, model: Mapping[str, Any]) -> Iterator[str]:
    config = {name: value for name, value in model["config"].items() if name not in ("model", "members", "weights")}
    yield f"The question: {section.question}"
    yield f"A model of {model['kind']} ({model['config']['model']})."
    if members := model["config"].get("members"):
        weights = model["config"].get("weights", ())
        yield f"It is the weighted mean of {', '.join(_member(*each) for each in zip(members, weights, strict=False))}."
    if config:
        yield f"Settings: {', '.join(f'{name} {_number(value)}' for name, value in config.items())}."


def _member(config: Mapping[str, Any], weight: float) -> str:
    return f"{config['model']} ({weight:.0%})"


def _data(params: Params, section: Problem, model: Mapping[str, Any]) -> Iterator[str]:
    features = section.features
    table = features.table if isinstance(features, Table | Interactions) else "events"
    target = getattr(features, "target", None)
    what = f"; it predicts {target}" if isinstance(target, str) else ""
    yield f"{model['rows']:,} rows made from {table}, with {len(model['features'])} features{what}."
    yield f"The last day that counts as known is {params.project.as_of or 'the newest day in the data'}."
    if isinstance(features, Table) and features.entity:
        yield f"The rows of one {features.entity} are either learned from or judged on, never both."


def _quality(evaluation: Mapping[str, Any], best: Mapping[str, Any]) -> Iterator[str]:
    metrics = sorted(evaluation["metrics"], key=lambda each: each["name"] != evaluation["primary"])
    rows = f"{evaluation['rows']:,} rows that neither search nor training saw"
    for place, each in enumerate(metrics[: 1 + METRICS]):
        within = "" if each["low"] is None else f" [{_number(each['low'])}, {_number(each['high'])}]"
        beside = f"; the baseline {evaluation['baseline']}: {_number(each['baseline'])}"
        yield f"{each['name']} {_number(each['score'])}{within}{f' on {rows}' if not place else ''}{beside}."
    if (optimism := (best.get("nested") or {}).get("optimism")) is not None:
        yield f"The search flatters itself by {_number(optimism)} {best['metric']} (tuned score minus nested score)."


def _goes_by(explanation: Mapping[str, Any]) -> Iterator[str]:
    top = [each for each in explanation.get("importance", []) if each["low"] is not None and each["low"] > 0]
    if top:
        metric = explanation["metric"]
        named = ", ".join(f"{each['column']} ({_number(each['importance'])})" for each in top[:5])
        yield f"Shuffled among the rows, these columns cost it the most {metric}: {named}."
    elif explanation.get("importance"):
        yield "No single column, shuffled among the rows, costs it score beyond doubt."
    if note := explanation.get("note"):
        yield note[:1].upper() + note[1:]


def _limits(
    section: Problem, model: Mapping[str, Any], evaluation: Mapping[str, Any], explanation: Mapping[str, Any]
) -> Iterator[str]:
    first = next(each for each in evaluation["metrics"] if each["name"] == evaluation["primary"])
    if evaluation["model"] == evaluation["baseline"]:
        yield "It is the baseline: nothing that was tried does better."
    elif first["gain_low"] is not None and first["gain_low"] <= 0:
        yield "It cannot be told from its baseline on these rows."
    for spot in explanation.get("weak_spots", []):
        yield (
            f"It is weak where {spot['where']} ({spot['share']:.0%} of the rows): {spot['measure']} "
            f"{_number(spot['loss'])} there, {_number(spot['elsewhere'])} elsewhere."
        )
    worst = _worst_slice(evaluation)
    if worst:
        yield worst
    yield CAVEATS[model["kind"]]
    yield "Rows unlike those it learned from get an answer all the same; the drift reports tell when they come."


def _worst_slice(evaluation: Mapping[str, Any]) -> str | None:
    first = next(each for each in evaluation["metrics"] if each["name"] == evaluation["primary"])
    known = [each for each in evaluation.get("slices", []) if each.get("score") is not None]
    if not known:
        return None
    worst = (min if first["greater_is_better"] else max)(known, key=lambda each: each["score"])
    return (
        f"Of the slices asked for it is worst on {worst['feature']} {worst['value']} ({worst['rows']:,} rows): {first['name']} "
        f"{_number(worst['score'])}."
    )


def _cost(
    best: Mapping[str, Any], serving: Mapping[str, float | None], spent: Mapping[str, Mapping[str, float]]
) -> Iterator[str]:
    if spent:
        steps = ", ".join(f"{step} {each['cpu_seconds']:.1f} s" for step, each in spent.items())
        yield f"CPU: {steps}; at most {max(each['peak_mb'] for each in spent.values()):,.0f} MB of memory."
    found = best.get("search_gain") or {}
    gain = (
        f"; it gained {_number(found['gain'])} {best['metric']} over the {found['over']} for "
        f"{found['cpu_seconds'] / 60:.1f} minutes of CPU"
        if found.get("gain", 0) > 0
        else ""
    )
    yield f"The search tried {best.get('trials', 0)} configurations{gain}."
    yield f"The model takes {_number(serving['model_mb'])} MB on disk and {_number(serving['load_ms'])} ms to load."
    batch = f"; {serving['batch_rows']:,.0f} rows at once {_number(serving['batch_ms'])} ms" if serving["batch_rows"] else ""
    yield f"One row takes {_number(serving['row_ms'])} ms{batch} (the pipeline in Python, before it is compiled)."


def _number(value: Any) -> str:
    """Three significant digits, in full."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "undefined" if value is None else str(value)
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= 1e-4 or not value else f"{value:.1e}"
