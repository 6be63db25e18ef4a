"""The OpenAPI description as an HTML page, without scripts or external resources."""

import html
import json
from collections.abc import Mapping
from typing import Any

STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1a1a1a;background:#fff}"
    "h2{font:600 1rem ui-monospace,monospace;margin:1.5rem 0 0}h2 b{color:#0a6b3d}p{margin:.2rem 0}"
    "pre{background:#f4f4f2;padding:.7rem;overflow-x:auto;max-height:24rem;font-size:.8rem}summary{cursor:pointer;color:#444}"
)


def render(description: Mapping[str, Any]) -> str:
    """Each path with its examples."""
    parts = []
    for path, methods in description["paths"].items():
        for method, operation in methods.items():
            summary = html.escape(operation["summary"])
            parts.append(f"<section><h2><b>{method.upper()}</b> {html.escape(path)}</h2><p>{summary}</p>")
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
            for name, example in body.get("examples", {}).items():
                parts.append(_example(str(example.get("summary", name)), example["value"]))
            response = operation["responses"]["200"].get("content", {}).get("application/json", {}).get("example")
            if response:
                parts.append(_example("response", response))
            parts.append("</section>")
    title = html.escape(description["info"]["title"])
    about = html.escape(description["info"]["description"])
    head = f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>{STYLE}</style>"
    return f"{head}<h1>{title}</h1><p>{about}</p>{''.join(parts)}"


def _example(title: str, value: Any) -> str:
    shown = html.escape(json.dumps(value, indent=1, default=str))
    return f"<details><summary>{html.escape(title)}</summary><pre>{shown}</pre></details>"
