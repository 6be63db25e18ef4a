"""The page's specs as templates of `dvc plots`: `python -m evergreen.monitoring.report.dvc_templates` writes .dvc/plots."""

from collections.abc import Mapping
from pathlib import Path

import orjson

from evergreen.monitoring.report.marks import dashes
from evergreen.monitoring.report.plots import OF_EVALUATE, Plot
from evergreen.monitoring.report.vega import CONFIG, WIDTH, Spec, in_light, numbers

SCHEMA = "https://vega.github.io/schema/vega-lite/v5.json"


def templates(plots: Mapping[str, Plot] = OF_EVALUATE) -> dict[str, str]:
    """File name -> JSON, for each plot."""
    return {f"{name}.json": template(plot) for name, plot in plots.items()}


def template(plot: Plot) -> str:
    """A plot's spec for rows of one or more revisions: a colour for each, or a drawing for each."""
    assert not callable(plot.spec)
    spec: Spec = {"width": WIDTH, "height": plot.height} | plot.spec
    encoding = spec["encoding"]
    if plot.overlaid:
        series = encoding["color"].get("field")
        by_series = {"strokeDash": dashes(series)} if series else {}
        spec["encoding"] = encoding | {"color": "<DVC_METRIC_COLOR>"} | by_series
    else:
        own = "independent" if encoding["x"]["type"] == "nominal" else "shared"
        revisions = {"column": {"field": "rev", "type": "nominal", "title": None}}
        spec = {"facet": revisions, "spec": spec, "resolve": {"scale": {"x": own}}}
    rows = {"values": "<DVC_METRIC_DATA>", "format": {"parse": dict.fromkeys(sorted(numbers(plot.spec)), "number")}}
    whole = {"$schema": SCHEMA, "title": f"<DVC_METRIC_TITLE>: {plot.title}", "config": CONFIG, "data": rows, **spec}
    return in_light(orjson.dumps(whole).decode()) + "\n"


def write(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in templates().items():
        (folder / name).write_text(text)


if __name__ == "__main__":
    write(Path(".dvc/plots"))
