"""The tree keeps its shape: who may import whom, and how long a function may be."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("model", "dataset", "util", "tool", "bench")
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
MAY_IMPORT = {"model": {"model"}, "dataset": {"dataset"}, "util": {"util"}, "tool": set(FOLDERS), "bench": set()}
LONGEST_FUNCTION = 60


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module)
    return names


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_one_way(path):
    folder = path.relative_to(ROOT).parts[0]
    ours = {name.partition(".")[0] for name in imported(path)} & set(FOLDERS)
    assert ours <= MAY_IMPORT[folder]
    if path not in (ROOT / "util" / "dist.py", ROOT / "util" / "agent.py"):
        assert not any(name.startswith("torch.distributed") for name in imported(path))


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_functions_fit_on_a_screen(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno - node.lineno < LONGEST_FUNCTION, node.name


def test_every_public_module_says_what_it_is_for():
    for path in SOURCES:
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path


def test_no_error_is_swallowed():
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"except:|except Exception|filterwarnings|simplefilter", text), path


def test_the_readme_lists_every_folder_and_command():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for path in [*(ROOT / "tool").glob("*.sh"), *(ROOT / "docs").glob("*.md")]:
        assert path.name in readme, path
    for folder in ("config", "model", "dataset", "util", "tool", "bench", "initmodel", "exp", "tests", "docs"):
        assert re.search(rf"^{folder}/", readme, re.M), folder


def test_paths_in_the_readme_exist():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!http)([^)#]+)", readme):
        assert (ROOT / target).exists(), target
