"""The model card: model, training data, performance, feature importance, limitations and cost.

Pure: from the files of the steps to titled lines, and from these to Markdown; the page shows the same lines.
Source: Mitchell and others, Model cards for model reporting, 2019.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from evergreen.tasks import problems
from evergreen.tasks.config.params import Params, Problem

Card = list[dict[str, Any]]
"""Sections in order, each with `title` and `lines`."""
METRICS = 4
"""Most metrics besides the primary one."""


def card(
    params: Params,
    problem: str,
    model: Mapping[str, Any],
    evaluation: Mapping[str, Any],
    best: Mapping[str, Any],
    diagnosis: Mapping[str, Any],
    explanation: Mapping[str, Any],
    costs: Mapping[str, Mapping[str, float]],
    received: Mapping[str, int] | None = None,
) -> Card:
    """`model`: model.json. `explanation`: explanation.json, with `serving`. `costs`: step -> cpu_seconds, peak_mb.
    `received`: table -> how many of its rows servers received.

    The other arguments are the files of these names.
    """
    section = params.section(problem)
    parts = [
        ("Model", _model(section, model)),
        ("Training data", _data(params, section, model, received or {})),
        ("Performance", _performance(evaluation, best)),
        ("Feature importance", _importance(explanation)),
        ("Limitations", _limitations(model, evaluation, explanation)),
        ("Next step", [diagnosis["recommendation"], *diagnosis.get("evidence", [])] if diagnosis.get("step") else []),
        ("Cost", _cost(best, explanation["serving"], costs)),
    ]
    return [{"title": title, "lines": lines} for title, each in parts if (lines := list(each))]


def markdown(described: Card) -> str:
    """The card as a Markdown document; its first line names the model."""
    blocks = ["# Model card"]
    blocks += [f"## {part['title']}\n\n" + "\n".join(f"- {line}" for line in part["lines"]) for part in described]
    return "\n\n".join(blocks) + "\n"


def _model(section: Problem, model: Mapping[str, Any]) -> Iterator[str]:
    config = {name: value for name, value in model["config"].items() if name not in ("model", "members", "weights")}
    yield f"Question: {section.question}"
    yield f"Kind: {model['kind']}; model: {model['config']['model']}."
    if members := model["config"].get("members"):
        weights = model["config"].get("weights", ())
        yield f"The weighted mean of {', '.join(_member(*each) for each in zip(members, weights, strict=False))}."
    if config:
        yield f"Settings: {', '.join(f'{name} {_number(value)}' for name, value in config.items())}."


def _member(config: Mapping[str, Any], weight: float) -> str:
    return f"{config['model']} ({weight:.0%})"


def _data(params: Params, section: Problem, model: Mapping[str, Any], received: Mapping[str, int]) -> Iterator[str]:
    features = section.features
    table = features.source_name
    target = getattr(features, "target", None)
    what = f"; target {target}" if isinstance(target, str) else ""
    yield f"{model['rows']:,} rows from {table}, with {len(model['features'])} features{what}."
    yield f"Data up to {params.project.as_of or 'the newest day in the tables'}."
    if sample := model.get("sample"):
        yield (
            f"The table is too large for memory: search, preparation and explanation use {sample['in_memory']:,} of its "
            f"{sample['stored']:,} rows, a sample of entities; the model learned from {sample['learned_from']}."
        )
    if received:
        yield f"Rows that servers received, besides those of the exports: {_counted(received)}."
    if not features.by_cutoff and features.entity:
        yield f"The rows of one {features.entity} are all training rows or all test rows."


def _counted(rows: Mapping[str, int]) -> str:
    return ", ".join(f"{number:,} of {table}" for table, number in rows.items())


def _performance(evaluation: Mapping[str, Any], best: Mapping[str, Any]) -> Iterator[str]:
    metrics = sorted(evaluation["metrics"], key=lambda each: each["name"] != evaluation["primary"])
    rows = f"{evaluation['rows']:,} test rows, unseen in search and training"
    for place, each in enumerate(metrics[: 1 + METRICS]):
        why = f" ({each['no_interval']})" if each.get("no_interval") else ""
        within = why if each["low"] is None else f" [{_number(each['low'])}, {_number(each['high'])}]"
        baseline = f"; baseline {evaluation['baseline']}: {_number(each['baseline'])}"
        yield f"{each['name']} {_number(each['score'])}{within}{f' on {rows}' if not place else ''}{baseline}."
    for each in best.get("ladder") or []:
        within = f"[{_number(each['low'])}, {_number(each['high'])}]"
        chosen = ", chosen" if each["model"] == best["model"] else ""
        yield f"Ladder: {each['model']} {best['metric']} {_number(each['score'])} {within} on {each['units']:,} users{chosen}."
    if (optimism := (best.get("nested") or {}).get("optimism")) is not None:
        yield f"The score of the search is too good by {_number(optimism)} {best['metric']} (tuned score minus nested score)."


def _importance(explanation: Mapping[str, Any]) -> Iterator[str]:
    top = [each for each in explanation.get("importance", []) if each["low"] is not None and each["low"] > 0]
    if top:
        metric = explanation["metric"]
        named = ", ".join(f"{each['column']} ({_number(each['importance'])})" for each in top[:5])
        yield f"Permutation importance in {metric}: {named}."
    elif explanation.get("importance"):
        yield "No single column lowers the score significantly when it is shuffled."
    if note := explanation.get("note"):
        yield note[:1].upper() + note[1:]


def _limitations(model: Mapping[str, Any], evaluation: Mapping[str, Any], explanation: Mapping[str, Any]) -> Iterator[str]:
    first = next(each for each in evaluation["metrics"] if each["name"] == evaluation["primary"])
    if evaluation["model"] == evaluation["baseline"]:
        yield "It is the baseline: no configuration that was tried is better."
    elif first["gain_low"] is not None and first["gain_low"] <= 0:
        yield "On these rows it is not significantly better than its baseline."
    for each in explanation.get("error_slices", []):
        yield (
            f"Larger errors where {each['where']} ({each['share']:.0%} of the rows): {each['measure']} "
            f"{_number(each['loss'])} there, {_number(each['elsewhere'])} elsewhere."
        )
    worst = _worst_slice(evaluation)
    if worst:
        yield worst
    yield problems.predictions(model["kind"]).caveat
    yield "Rows unlike the training data get a prediction too; the drift reports show when such rows come."


def _worst_slice(evaluation: Mapping[str, Any]) -> str | None:
    first = next(each for each in evaluation["metrics"] if each["name"] == evaluation["primary"])
    known = [each for each in evaluation.get("slices", []) if each.get("score") is not None]
    if not known:
        return None
    worst = (min if first["greater_is_better"] else max)(known, key=lambda each: each["score"])
    return (
        f"The worst slice of evaluate.slices is {worst['feature']} {worst['value']} ({worst['rows']:,} rows): {first['name']} "
        f"{_number(worst['score'])}."
    )


def _cost(
    best: Mapping[str, Any], serving: Mapping[str, float | None], costs: Mapping[str, Mapping[str, float]]
) -> Iterator[str]:
    if costs:
        steps = ", ".join(f"{step} {each['cpu_seconds']:.1f} s" for step, each in costs.items())
        yield f"CPU: {steps}; peak memory {max(each['peak_mb'] for each in costs.values()):,.0f} MB."
    found = best.get("search_gain") or {}
    gain = (
        f"; it gained {_number(found['gain'])} {best['metric']} over the {found['over']} for "
        f"{found['cpu_seconds']:,.1f} s of CPU"
        if found.get("gain", 0) > 0
        else ""
    )
    yield f"The search tried {best.get('trials', 0)} configurations{gain}."
    yield f"The model takes {_number(serving['model_mb'])} MB on disk and {_number(serving['load_ms'])} ms to load."
    one = f"takes {_number(serving['row_ms'])} ms"
    if serving["batch_rows"]:
        batch = f"{serving['batch_rows']:,.0f} rows together {_number(serving['batch_ms'])} ms"
        yield f"One row {one}; {batch} (the pipeline in Python, not compiled)."
    else:
        yield f"One list {one}."


def _number(value: Any) -> str:
    """Three significant digits, in full."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "undefined" if value is None else str(value)
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= 1e-4 or not value else f"{value:.1e}"
