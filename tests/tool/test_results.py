"""Results lie side by side, say where they come from, and are shown on a page."""

import csv
import html
import json
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest

from tests.conftest import failure, make_experiment, newest_metrics
from tests.paths import ROOT
from tool import compare, launch, test, train
from util.report.per_image import read_per_image

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def run(tmp_path_factory, data):
    """An experiment and the folder of its run, trained and scored; a class has a name that is code."""
    folder = tmp_path_factory.mktemp("run")
    classes = ["sky", "<img src=x onerror=alert(1)>", "=1+1"]
    experiment = make_experiment(folder, data, data={"classes": classes})
    arguments = ["--config", str(experiment), "--exp", str(folder / "run")]
    assert train.main(arguments) == 0 and test.main(arguments) == 0
    return experiment, folder / "run"


def score(run, *overrides):
    experiment, folder = run
    assert test.main(["--config", str(experiment), "--exp", str(folder), *overrides]) == 0
    return newest_metrics(folder)


def test_no_result_takes_the_place_of_another(run, data):
    experiment, folder = run
    whole = folder / "result" / "val-whole"
    before = (whole / "metrics.json").read_bytes()
    part = score(run, "test.index_start=1", "test.index_step=3")
    assert part == whole / "part-1-3" / "metrics.json" and json.loads(part.read_text())["num_images"] == 3
    places = {score(run, override).parent.name for override in ("test.scales=[0.5,1]", "test.flip=true")}
    assert places == {"val-whole-scales0.5_1", "val-whole-flip"}
    assert score(run, "test.split=train").parent.name == "train-whole"
    assert score(run, "test.protocol=semseg", "test.base_size=96").parent.name == "val-semseg"
    assert score(run, "test.protocol=semseg", "test.base_size=80").parent.name.startswith("val-semseg-scales1-flip")
    edited = make_experiment(folder, folder, **{"data": {}, "test": {"flip": True}})
    edited.write_text(experiment.read_text().replace("test:\n", "test:\n  flip: true\n"))
    place = score((edited, folder)).parent.name
    assert place.startswith("val-whole-scales1-flip-windownone")
    few = folder / "few.txt"
    few.write_text("\n".join((data / "val.txt").read_text().splitlines()[:2]) + "\n")
    assert score(run, f"data.val_list={few}").parent.name.endswith("-few")
    assert (whole / "metrics.json").read_bytes() == before


def test_a_named_checkpoint_has_its_results_beside_it(run, tmp_path, capsys, monkeypatch):
    experiment, folder = run
    file = tmp_path / "weights" / "mine.v2.pth"
    file.parent.mkdir()
    shutil.copy(folder / "model" / "last.pth", file)
    before = newest_metrics(folder).stat().st_mtime_ns
    assert test.main(["--config", str(experiment), "--checkpoint", str(file)]) == 0
    place = tmp_path / "weights" / "mine.v2.result"
    assert newest_metrics(tmp_path) == place / "metrics.json"
    assert test.main(["--config", str(experiment), "--checkpoint", str(file), "test.flip=true"]) == 0
    assert newest_metrics(tmp_path) == place / "val-whole-flip" / "metrics.json"
    elsewhere = ["--exp", str(tmp_path / "elsewhere")]
    assert test.main(["--config", str(experiment), "--checkpoint", str(file), *elsewhere]) == 0
    assert newest_metrics(tmp_path) == tmp_path / "elsewhere" / "result" / "val-whole" / "metrics.json"
    assert newest_metrics(folder).stat().st_mtime_ns == before
    started = []
    monkeypatch.setattr(launch, "start", lambda module, words, *_: started.append((module, words[2:])) or 0)
    assert launch.main(["test", "street", "fcn18", "--checkpoint", str(file), *elsewhere]) == 0
    assert started == [("tool.test", ["--checkpoint", str(file), *elsewhere])]
    assert "model.init=FILE" in failure(capsys, launch.main, ["train", "street", "fcn18", "--checkpoint", str(file)])


def test_a_number_says_where_it_comes_from(run, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # in another project, or none
    subprocess.run(["git", "init", "-q", "."], check=True)
    metrics = json.loads(score(run, "test.scales=[2]").read_text())
    assert metrics["seed"] == 0 and metrics["network"] == "fcn" and metrics["experiment"] == "small"
    head = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    if head.returncode == 0:
        assert metrics["commit"] == head.stdout.strip() and isinstance(metrics["dirty"], bool)
    assert metrics["command"]


def test_names_with_a_slash_do_not_collide(tmp_path, data, run):
    """a/b and a_b were one file."""
    folder = tmp_path / "data"
    (folder / "a").mkdir(parents=True)
    first = (data / "val.txt").read_text().split()[:2]
    for name in ("a/b", "a_b"):
        for kind, path in zip(("image", "label"), first, strict=True):
            (folder / kind / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(data / path, folder / kind / f"{name}.png")
    (folder / "val.txt").write_text("".join(f"image/{n}.png label/{n}.png\n" for n in ("a/b", "a_b")))
    experiment, trained = run
    changed = tmp_path / "changed.yaml"
    changed.write_text(experiment.read_text().replace(str(data), str(folder)))
    words = ["--config", str(changed), "--exp", str(tmp_path / "run"), "--checkpoint", str(trained / "model/last.pth")]
    assert test.main(words) == 0
    names = sorted(
        path.relative_to(tmp_path / "run").as_posix() for path in (tmp_path / "run").rglob("pictures/**/*.png")
    )
    assert len(names) == 2 and len({name.lower() for name in names}) == 2


def test_the_scores_of_images_add_up_to_those_of_the_result(run):
    folder = run[1] / "result" / "val-whole"
    metrics = json.loads((folder / "metrics.json").read_text())
    hits, labelled, predicted = (part.sum(0) for part in read_per_image(folder / "per_image.npz").sums())
    assert [entry["pixels"] for entry in metrics["classes"]] == labelled.tolist()
    union = labelled + predicted - hits
    assert np.mean(hits[union > 0] / union[union > 0]) == pytest.approx(metrics["mIoU"])
    with open(folder / "per_image.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == metrics["num_images"] == 5
    pixels = [int(row["pixels"]) for row in rows]
    right = sum(float(row["allAcc"]) * number for row, number in zip(rows, pixels, strict=True))
    assert right / sum(pixels) == pytest.approx(metrics["allAcc"], abs=1e-6) and sum(pixels) == labelled.sum()
    assert b"\n'=1+1," in (folder / "metrics.csv").read_bytes()


def test_the_report_is_one_page_without_foreign_code(run):
    page = (run[1] / "result" / "val-whole" / "report.html").read_text()

    class Links(HTMLParser):
        found: list[str] = []
        tags: list[str] = []

        def handle_starttag(self, tag, attrs):
            self.tags.append(tag)
            self.found += [value or "" for name, value in attrs if name in ("src", "href", "onerror")]

    links = Links()
    links.feed(page)
    assert all(link.startswith(("#", "data:")) for link in links.found if link not in ("", "per_image.csv"))
    assert "&lt;img src=x onerror" in page and "alert(1)" not in "".join(links.found)
    assert "link" not in links.tags and "@import" not in page and "url(" not in page
    assert links.tags.count("article") == 5 and links.tags.count("polyline") == 1 + 3 + 3
    without = score(run, "test.report=false", "test.scales=[0.75]").parent
    assert not (without / "report.html").exists() and not (without / "per_image.npz").exists()


def test_a_run_is_compared_with_itself(run, capsys):
    place = str(run[1] / "result" / "val-whole")
    assert compare.main([place, str(run[1] / "result" / "val-whole" / "metrics.json")]) == 0
    shown = capsys.readouterr().out
    assert "+0.00" in shown and "*" not in shown.splitlines()[2]


def test_a_reader_that_is_gone_is_no_error_and_costs_no_file(run, tmp_path):
    """As behind `| head -1`: no message, and the page is there."""
    place, page = str(run[1] / "result" / "val-whole"), tmp_path / "page.html"
    words = [sys.executable, "-u", "-m", "tool.compare", place, f"{place}/metrics.json", "--html", str(page)]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        told = process.stderr.read()
    assert (process.returncode, told) == (141, "") and page.is_file()


# Numbers, one of them not known, and names with numbers: neither is sorted letter by letter.
TABLE = """
<table class="sortable" id="numbers"><thead><tr><th>name</th><th>value</th></tr></thead><tbody>
<tr><td>pic_10</td><td data-v="9">9.00</td></tr><tr><td>pic_9</td><td data-v="10">10.00</td></tr>
<tr><td>pic_1</td><td data-v="">–</td></tr><tr><td>Pic_2</td><td data-v="1e-05">0.00</td></tr></tbody></table>
"""
USE = """
<script>
addEventListener("load", () => {
  const table = document.getElementById("class-table"), heads = table.tHead.rows[0].cells;
  const order = column => [...table.tBodies[0].rows].map(row => row.cells[column].dataset.v);
  const out = {};
  heads[1].click(); out.down = order(1);
  heads[1].click(); out.up = order(1);
  heads[0].click(); out.names = order(0);
  const numbers = document.getElementById("numbers"), [names, values] = numbers.tHead.rows[0].cells;
  const cells = column => [...numbers.tBodies[0].rows].map(row => row.cells[column].textContent);
  out.numbers = [];
  values.click(); out.numbers.push(cells(1)); values.click(); out.numbers.push(cells(1));
  for (const key of ["Enter", " "]) {
    names.dispatchEvent(new KeyboardEvent("keydown", {key})); out.numbers.push(cells(0));
  }
  const slider = document.querySelector(".slider"), range = slider.querySelector("input");
  range.value = 80; range.dispatchEvent(new Event("input"));
  slider.scrollIntoView();
  const box = slider.getBoundingClientRect();
  out.grabbed = document.elementFromPoint(box.left + 0.8 * box.width, box.top + 9).type;  // where the line is seen
  out.cut = slider.style.getPropertyValue("--cut");
  const card = slider.closest(".card"), right = card.querySelectorAll("select")[1];
  right.value = "truth"; right.dispatchEvent(new Event("change"));
  out.shows = slider.querySelector(".over").src === card.querySelector('.strip img[alt="truth"]').src;
  out.decoded = [...document.querySelectorAll("img")].every(image => image.naturalWidth > 0);
  const paper = () => getComputedStyle(document.body).backgroundColor, first = paper();
  document.getElementById("theme").click(); out.themes = first !== paper();
  out.wide = document.documentElement.scrollWidth > document.documentElement.clientWidth;
  const note = document.createElement("script");
  note.type = "application/json"; note.id = "found"; note.textContent = JSON.stringify(out);
  document.body.append(note);
});
</script>
"""


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium")
@pytest.mark.parametrize("width", [500, 1280], ids=["narrow", "wide"])  # headless windows are 500 wide at least
def test_the_page_works_in_a_browser(run, tmp_path, width):
    place = run[1] / "result" / "val-whole"
    page = tmp_path / "page.html"
    page.write_text(
        (place / "report.html").read_text().replace("<nav>", TABLE + "<nav>").replace("</body>", USE + "</body>")
    )
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", f"--window-size={width},900"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=4000", "--dump-dom", page.as_uri()]
    command += ["--enable-logging=stderr"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert ":CONSOLE" not in done.stderr
    found = json.loads(done.stdout.split('id="found">')[1].split("</script>")[0])
    metrics = json.loads((place / "metrics.json").read_text())
    iou = sorted((entry["iou"] for entry in metrics["classes"]), reverse=True)
    assert [float(value) for value in found["down"]] == iou and [float(value) for value in found["up"]] == iou[::-1]
    assert sorted(found["names"]) == sorted(entry["name"] for entry in metrics["classes"])
    assert found["numbers"] == [
        ["10.00", "9.00", "0.00", "–"],
        ["0.00", "9.00", "10.00", "–"],
        ["pic_1", "Pic_2", "pic_9", "pic_10"],
        ["pic_10", "pic_9", "Pic_2", "pic_1"],
    ]
    assert found["grabbed"] == "range"
    assert found["cut"] == "80%" and found["shows"] and found["decoded"] and found["themes"] and not found["wide"]


WIDTH = """
<!doctype html><iframe style="width: 390px; height: 800px; border: 0" srcdoc="PAGE"></iframe>
<script>
addEventListener("load", () => {
  const root = document.querySelector("iframe").contentDocument.documentElement;
  document.body.dataset.found = [root.clientWidth <= 390, root.scrollWidth <= root.clientWidth];
});
</script>
"""


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium")
@pytest.mark.parametrize("kind", ["report", "comparison"])
def test_the_page_fits_a_phone(run, tmp_path, kind):
    """390 pixels, in a frame, since a headless window is wider; a class has a name of one long word."""
    place, file = run[1] / "result" / "val-whole", tmp_path / "comparison.html"
    if kind == "report":
        file = place / "report.html"
    else:
        assert compare.main([str(place), str(place / "metrics.json"), "--html", str(file)]) == 0
    content, page = file.read_text().replace("sky", "s" * 90), tmp_path / "page.html"
    assert content.count("s" * 90) >= 2
    page.write_text(WIDTH.replace("PAGE", html.escape(content)))
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--virtual-time-budget=4000", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert 'data-found="true,true"' in done.stdout
