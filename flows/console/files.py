"""The files under reports/: the report page, Evidently's and Great Expectations' own pages, with scripts of their own.

They are shown in a frame that may run their scripts and nothing else: no form, no request, no cookie of the console.
"""

import mimetypes
from pathlib import Path

from starlette.responses import FileResponse, Response

from evergreen.flows.console.visits import NotFoundError, Visit

CONTENT = (
    "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; "
    "img-src data: blob:; font-src data:; frame-ancestors 'self'"
)
"""Content security policy of these pages: scripts and styles inside the page, and no request to anywhere."""


def show(visit: Visit) -> Response:
    if visit.query.get("view") == "frame":
        return visit.render("frame.html", path=visit.path["path"])
    folder = (visit.layout.root / "reports").resolve()
    path = (folder / visit.path["path"].replace("\0", "")).resolve()
    first = path.relative_to(folder).parts[:1] if path.is_relative_to(folder) else ()
    shared = not first or first[0] not in visit.params.problems
    if (
        not first
        or (shared and visit.visitor.problems)
        or (not shared and not visit.visitor.sees(first[0]))
        or not path.is_file()
    ):
        raise NotFoundError(f"reports/{visit.path['path'][:200]}: no such file; the overview links to those that are there")
    return FileResponse(
        path, media_type=_type(path), headers={"content-security-policy": CONTENT, "x-frame-options": "SAMEORIGIN"}
    )


def _type(path: Path) -> str:
    return mimetypes.guess_type(path.name)[0] or "text/plain"
