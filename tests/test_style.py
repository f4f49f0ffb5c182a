"""The tree keeps its shape: who may import whom, and how long a function may be."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from tests.paths import ROOT

pytestmark = pytest.mark.fast

FOLDERS = ("model", "dataset", "util", "tool")
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
LONGEST_FUNCTION = 60

# The floors of each pillar, from the ground up. A room (a folder, or a file beside the folders) may import rooms on
# floors below its own, and itself; "*" is every room that is not named.
FLOORS = {
    "model": (("table",), ("layer",), ("backbone",), ("base",), ("*", "inference"), ("__init__",), ("published",)),
    # Data sets that others take their classes from stand below the rest; data are prepared with the loader's workers.
    "dataset": (
        ("read",),
        ("scene",),
        ("base", "augment"),
        ("load",),
        ("prepare",),
        ("cityscapes", "voc"),
        ("bdd100k", "idd", "mapillary"),
        ("*",),
        ("__init__",),
    ),
    "util": (("__init__",), ("dist", "loss"), ("record",), ("config", "checkpoint", "score"), ("train", "report")),
    "tool": (("__init__",), ("shared",), ("*", "bench"), ("doc",)),
}


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(path: Path) -> set[str]:
    """Dotted names of the modules that a file imports, but for annotations alone."""
    tree = tree_of(path)
    annotations = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    names = set()
    for node in set(ast.walk(tree)) - annotations:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def room(pillar: str, inner: str) -> str:
    """The room of a dotted name below a pillar: its first part, if that is a file or folder there."""
    first = inner.partition(".")[0]
    place = ROOT / pillar / first
    return first if first and (place.is_dir() or place.with_suffix(".py").is_file()) else "__init__"


def floor(pillar: str, name: str) -> int:
    named = [number for number, rooms in enumerate(FLOORS[pillar]) if name in rooms]
    return named[0] if named else next(number for number, rooms in enumerate(FLOORS[pillar]) if "*" in rooms)


def test_imports_go_one_way():
    """The three pillars do not know one another, and inside each a room knows only the floors below it."""
    wrong = []
    for path in SOURCES:
        pillar, *inner = path.relative_to(ROOT).with_suffix("").parts
        own = room(pillar, ".".join(inner))
        for name in imported(path):
            other, _, rest = name.partition(".")
            if other not in FOLDERS:
                continue
            if other != pillar:
                allowed = pillar == "tool"
            else:
                target = room(pillar, rest)
                allowed = target == own or floor(pillar, target) < floor(pillar, own)
            if not allowed:
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong


def test_processes_are_the_business_of_one_folder():
    outside = [path for path in SOURCES if ROOT / "util" / "dist" not in path.parents]
    assert not [path for path in outside if any(name.startswith("torch.distributed") for name in imported(path))]


def test_functions_fit_on_a_screen():
    long = [
        f"{path.relative_to(ROOT)}: {node.name}"
        for path in SOURCES
        for node in ast.walk(tree_of(path))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and node.end_lineno - node.lineno >= LONGEST_FUNCTION
    ]
    assert not long


def test_every_public_module_says_what_it_is_for():
    for path in SOURCES:
        assert ast.get_docstring(tree_of(path)), path


def test_no_error_is_swallowed():
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"except:|except Exception|filterwarnings|simplefilter", text), path


def test_the_readme_is_short_and_every_page_is_listed():
    readme, index = (path.read_text(encoding="utf-8") for path in (ROOT / "README.md", ROOT / "docs" / "README.md"))
    assert len(readme.splitlines()) <= 150 and "(docs/README.md)" in readme
    assert "![" in readme.partition("##")[0], "a picture comes before the first section"
    for path in (ROOT / "docs").glob("*.md"):
        assert path.name == "README.md" or f"({path.name})" in index, path
    pages = "".join(path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
    for path in (ROOT / "tool").glob("*.sh"):
        assert path.name == "env.sh" or f"tool/{path.name}" in pages, path


def test_linked_paths_exist():
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_tree_of_the_architecture_is_that_on_disk():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    tree = page.partition("```\n")[2].partition("```")[0]
    drawn, above = set(), []
    for indent, name in re.findall(r"^( *)([a-z_]+)/", tree, re.M):
        above[len(indent) // 2 :] = [name]
        drawn.add("/".join(above))
    packages = {path.parent.relative_to(ROOT).as_posix() for path in SOURCES}
    assert drawn == packages | {"config"}


NO_VERBS = re.compile(
    r"(A|An|The|What|Whether|That|How|Where|Which|One|This|It|Its|Each|Every|All|Both|As|If|For|In|Of|On)$|.*[^s]s$"
)


def test_docstrings_begin_with_a_short_line():
    """One sentence of at most twelve words; that of a function begins with a verb in the imperative."""
    wrong = []
    for path in SOURCES:
        name = path.relative_to(ROOT).as_posix()
        for node in ast.walk(tree_of(path)):
            if not isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                continue
            first = (ast.get_docstring(node) or "").partition("\n")[0]
            if not first or re.match(r"_[^_]", getattr(node, "name", "module")):
                continue
            imperative = not isinstance(node, ast.FunctionDef) or not NO_VERBS.match(first.split()[0])
            if len(first.split()) > 12 or first[-1] != "." or not imperative:
                wrong.append(f"{name}:{getattr(node, 'lineno', 1)}: {first}")
    assert not wrong, "\n".join(wrong)


def test_files_of_tests_have_names_of_their_own():
    """Folders of tests are no packages, so that two modules of one name cannot be collected together."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert not sorted(name for name in set(names) if names.count(name) > 1)
