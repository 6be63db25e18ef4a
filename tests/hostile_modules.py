"""Modules beside params.yaml that nobody may import: named like Evergreen's folders, or like libraries that it uses."""

from pathlib import Path

PACKAGES = ("tasks", "flows", "serving", "monitoring")
MODULES = ("queue", "random", "secrets", "json", "numpy", "orjson", "pydantic", "settings", "app")


def plant(folder: Path) -> Path:
    """Write the modules to `folder`. Each appends its name to the returned file when it is imported."""
    marker = folder.parent / f"{folder.name} imported"
    code = f"open({str(marker)!r}, 'a').write(__name__ + '\\n')\n"
    for name in PACKAGES:
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "__init__.py").write_text(code)
    for name in MODULES:
        (folder / f"{name}.py").write_text(f"{code}raise ImportError('{name}.py of the project was imported')\n")
    return marker


def imported(marker: Path) -> list[str]:
    """Names of the modules that were imported."""
    return sorted(set(marker.read_text().split())) if marker.exists() else []
