"""The content of the page: escaped, comparable or left blank, best marked, light."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from hpc_recolor.reporting import curves, tables
from hpc_recolor.reporting.compare import config_rows, group
from hpc_recolor.reporting.page import ReportOptions, build, read_notes, script_json, write_report
from hpc_recolor.reporting.runs import read_runs
from hpc_recolor.reporting.thumbnails import Thumbnails
from hpc_recolor.run_folder.folder import RunFolder
from hpc_recolor.run_folder.time_account import Mark, Start, write_starts
from hpc_recolor.runtime.output import escaped
from tests.conftest import paint_photo
from tests.reporting.conftest import HOSTILE, LAB, LAB_L1, RGB, MadeRun


class Texts(HTMLParser):
    """Words on the page, and its elements."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.words: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        if self.lasttag not in ("script", "style"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def data_of(html: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    assert found is not None
    read: dict[str, Any] = json.loads(found[1])
    return read


def test_names_notes_and_titles_are_shown_and_never_run(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script><img src=x onerror=alert(2)>"
    run = MadeRun(tmp_path / evil.replace("/", "\u2215"), LAB, images=3, kept=3, names=lambda _: HOSTILE).write()
    notes = tmp_path / "notes.txt"
    notes.write_text(f"# {evil}\none {evil}\nline\n\nanother")
    out = tmp_path / "report.html"
    write_report([run], out, ReportOptions(title=evil, notes=notes))
    html = out.read_text()
    page = Texts(html)
    assert page.tags.count("script") == 4  # theme, data, the plots' library, ours
    assert "img" not in page.tags
    assert f"one {evil} line" in page.text
    assert data_of(html)["grids"]["together-0"]["rows"][0]["name"] == escaped(HOSTILE)


def test_json_in_a_script_element_cannot_end_it() -> None:
    data = {"a": "</script><!--&\u2028\u2029"}
    text = script_json(data)
    assert not re.search("[<>&\u2028\u2029]", text)
    assert json.loads(text) == data
    with pytest.raises(ValueError, match="not JSON compliant"):
        script_json(float("nan"))


def test_notes_are_headings_and_paragraphs(tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("# Head\nfirst\nline\n\n\nsecond\n# Tail\n#no heading")
    assert [(one.heading, one.text) for one in read_notes(notes)] == [
        (True, "Head"),
        (False, "first line"),
        (False, "second"),
        (True, "Tail"),
        (False, "#no heading"),
    ]


def test_no_address_on_the_page_leads_to_the_network(report: Path) -> None:
    html = report.read_text()
    assert "default-src 'none'" in html
    addresses = set(re.findall(r"""(?:src|href)=["']?([^"'\s>]+)""", html))
    assert {one for one in addresses if not one.startswith("#")} == {"data:,"}
    assert not re.search(r"url\(|@import", html)


def test_numbers_that_cannot_be_compared_are_blank_with_a_reason_and_stand_apart(tmp_path: Path) -> None:
    runs = read_runs(
        [
            MadeRun(tmp_path / "one", LAB, kept=0).write(),
            MadeRun(tmp_path / "two", RGB, kept=0).write(),
            MadeRun(tmp_path / "large", LAB, kept=0, size=64, fingerprint="e").write(),
        ]
    )
    first, second = group(runs, "test")
    table = tables.metrics_table(first, [runs[2]])
    (blank,) = [row for row in table.rows if row.name == "large"]
    assert {cell.text for cell in blank.cells} == {"\N{EN DASH}"}
    assert [row.name for row in tables.metrics_table(second).rows if row.run] == ["large"]
    assert "left blank: 64 px, not 32 px" in Texts(build(runs, ReportOptions())).text


def test_the_best_model_is_marked_and_a_baseline_only_where_it_wins(tmp_path: Path) -> None:
    runs = read_runs(
        [
            MadeRun(tmp_path / "good", LAB, kept=0, error=6).write(),
            MadeRun(tmp_path / "bad", LAB_L1, kept=0, error=9).write(),
        ]
    )

    def marks(chosen: list[Any]) -> dict[str, str]:
        table = tables.metrics_table(group(chosen, "test")[0])
        place = [metric.key for metric in table.metrics].index("ciede2000")
        return {row.name: row.cells[place].mark for row in table.rows}

    assert marks(runs) == {"good": "best", "bad": "", "Gray copy": "", "Mean color": ""}
    assert marks(runs[1:]) == {"bad": "best", "Gray copy": "baseline", "Mean color": ""}


def test_runs_without_metrics_or_evaluations_are_shown_with_what_gives_them(tmp_path: Path) -> None:
    run = MadeRun(tmp_path / "young", LAB, images=2, kept=0).write()
    (run / "metrics.jsonl").unlink()
    (run / "evaluations" / "test" / "epoch-0002.json").unlink()
    text = Texts(build(read_runs([run]), ReportOptions())).text
    assert f"python -m hpc_recolor.evaluate {run}" in text
    assert "No metrics.jsonl in its folder" in text
    assert "none measured yet" in text


def test_an_evaluation_of_one_image_or_none_is_no_error(tmp_path: Path) -> None:
    for images in (0, 1):
        run = MadeRun(tmp_path / f"few{images}", RGB, images=images, kept=images).write()
        text = Texts(build(read_runs([run]), ReportOptions())).text
        assert "Nothing to rank" in text


def test_l1_of_rgb_and_lab_runs_is_drawn_apart_and_long_curves_are_thinned(tmp_path: Path) -> None:
    runs = read_runs(
        [
            MadeRun(tmp_path / "lab", LAB, images=2, kept=0, readings=4500).write(),
            MadeRun(tmp_path / "rgb", RGB, images=2, kept=0).write(),
            MadeRun(tmp_path / "l1", LAB_L1, images=2, kept=0).write(),
        ]
    )
    plots = {plot.title: plot for plot in curves.plots(runs)}
    assert {one["run"] for one in plots["Generator, L1 loss, Lab runs"].series} == {0, 2}
    assert {one["run"] for one in plots["Generator, L1 loss, RGB runs"].series} == {1}
    assert {one["run"] for one in plots["Discriminator loss"].series} == {0, 1}, "L1 alone has no discriminator"
    assert all(len(one["y"]) == len(one["epochs"]) <= 1000 for plot in plots.values() for one in plot.series)
    assert curves.thinned(runs) == ["lab: 4,500 readings, each point is the mean of 5"]


FRONT = {1.0: (6.0, 10.0), 2.0: (6.4, 20.0), 3.0: (7.2, 30.0)}


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        ({1.0: (6.5, 12.0), 2.0: (7.5, 24.0)}, "one lies below two from 0.30 to 0.60 of the originals"),
        ({1.0: (5.5, 12.0), 2.0: (6.0, 24.0)}, "two lies below one from 0.30 to 0.60 of the originals"),
        ({1.0: (5.5, 12.0), 2.0: (7.5, 24.0)}, "one and two cross from 0.30 to 0.60 of the originals"),
        ({1.0: (7.5, 31.0), 2.0: (8.0, 40.0)}, None),
        ({}, None),
    ],
    ids=["below", "above", "crossing", "apart", "not measured"],
)
def test_fronts_are_drawn_and_compared_where_they_overlap(
    tmp_path: Path, other: dict[float, tuple[float, float]], sentence: str | None
) -> None:
    """The gray copies of these runs have a CIEDE2000 of 8 and a bit, their originals a colorfulness of 40."""
    made = MadeRun(tmp_path / "one", LAB, front=FRONT), MadeRun(tmp_path / "two", LAB, front=other)
    html = build(read_runs([run.write() for run in made]), ReportOptions())
    plot = data_of(html)["plots"][-1]
    assert "Faithful to vivid" in html
    assert plot["series"][0]["epochs"] == [0.25, 0.5, 0.75]
    assert plot["series"][0]["y"] == pytest.approx([6.0 / 8.08, 6.4 / 8.08, 7.2 / 8.08], abs=1e-4)
    assert plot["series"][-1]["y"] == [1, 0]
    sentences = re.findall("lies below|cross from", html)
    assert (sentence in html and len(sentences) == 1) if sentence else not sentences


def test_time_in_steps_is_images_over_their_rate() -> None:
    steps = [{"images_seen": 100, "images_per_s": 10}, {"images_seen": 150, "images_per_s": 50}, {"epoch": 1}]
    assert tables.time_in_steps_s(steps) == pytest.approx(11)
    assert tables.time_in_steps_s([]) is None


@pytest.mark.parametrize(
    ("hardware", "precision", "text"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", "9.89, 1.0% of the peak"),
        ("NVIDIA H100 80GB HBM3", "fp32", "9.89, 14.8% of the peak"),
        ("NVIDIA H100 PCIe", "bf16", "9.89, 1.3% of the peak"),
        ("2 threads of a CPU", "bf16", "9.89"),
        ("NVIDIA RTX A1000", "bf16", "9.89"),  # whose name holds that of another GPU
        ("NVIDIA GB200", "bf16", "9.89"),
        ("NVIDIA A100-SXM4-80GB", "bf16", "9.89, 3.2% of the peak"),
        ("NVIDIA A100-SXM4-80GB MIG 1g.10gb", "bf16", "9.89"),  # a part of one
    ],
)
def test_compute_is_shown_beside_the_peak_of_its_gpu(tmp_path: Path, hardware: str, precision: str, text: str) -> None:
    folder = MadeRun(tmp_path / "run", {"train": {"precision": precision}}, images=2, kept=0).write()
    rows = [{"kind": "start", "hardware": hardware}, *({"kind": "train", "rank_tflop_per_s": n} for n in (1, 9.89, 10))]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert tables.training(read_runs([folder]))[0].facts["TFLOP/s of a process"] == text


def test_names_from_right_to_left_do_not_reorder_what_is_around_them(tmp_path: Path) -> None:
    name = "\u0635\u0648\u0631 2"
    run = MadeRun(tmp_path / name, LAB, images=3, kept=3, names=lambda number: f"{name} {number}.jpg").write()
    html = build(read_runs([run, MadeRun(tmp_path / "plain", LAB, images=3, kept=3).write()]), ReportOptions())
    isolated = f"\N{FIRST STRONG ISOLATE}{name}\N{POP DIRECTIONAL ISOLATE}"
    words = Texts(html).text
    assert isolated in words and name not in words.replace(isolated, "").replace(str(run), "")
    shown = data_of(html)
    assert [one["name"] for one in shown["runs"]] == [isolated, "plain"]
    row = shown["grids"]["together-0"]["rows"][0]
    assert row["name"] == f"\N{FIRST STRONG ISOLATE}{name} 0.jpg\N{POP DIRECTIONAL ISOLATE}"


def test_the_wall_clock_of_all_starts_is_accounted_for(tmp_path: Path) -> None:
    folder = MadeRun(tmp_path / "run", {}, images=2, kept=0).write()
    spent = {"starting": 60.0, "training": 400.0, "saving": 0.0, "measuring": 0.0}
    mark = Mark(images=80, seconds=spent | {"training": 300.0})
    starts = [
        Start(began=1000.0, images=0, activity="training", seconds=spent, marks=(mark,)),
        Start(began=1500.0, images=80, activity="saving", seconds=spent, marks=(Mark(images=160, seconds=spent),)),
    ]
    write_starts(RunFolder(folder), starts)
    facts = tables.training(read_runs([folder]))[0].facts
    assert facts["Wall clock"] == "73 % training, 13 % starting, 10 % lost, 4 % waiting of 16 min"


def test_words_on_the_page_are_filled_in(report: Path) -> None:
    words = Texts(report.read_text()).text
    assert "photograph\N{RIGHT SINGLE QUOTATION MARK}s L* on both sides" in words
    assert not re.search(r"[{}]", words.replace(HOSTILE, ""))


def test_facts_that_no_run_knows_are_left_out(tmp_path: Path) -> None:
    runs = read_runs([MadeRun(tmp_path / f"{n}", images=2, kept=0, readings=n).write() for n in (0, 1)])
    old, new = (one.facts for one in tables.training(runs))
    assert list(old) == list(new)
    assert "TFLOP/s of a process" not in new
    assert (old["Images/s, median"], new["Images/s, median"]) == ("\N{EN DASH}", "25.0")


def test_config_values_of_few_runs_stand_out(tmp_path: Path) -> None:
    runs = read_runs([MadeRun(tmp_path / f"{n}", RGB if n == 1 else LAB, images=2, kept=0).write() for n in range(3)])
    rows = {row.key: row for row in config_rows(runs)}
    assert rows["model.color"].odd == (False, True, False)
    assert rows["model.color"].differs
    assert not rows["model.width"].differs


def test_numbers_and_images_may_be_of_different_data(tmp_path: Path) -> None:
    made = MadeRun(tmp_path / "cars", LAB, images=30, kept=0)
    folder = made.write()
    made.data, made.images, made.kept = "public", 5, 5
    made.evaluate(2)
    text = Texts(build(read_runs([folder]), ReportOptions(data="test", image_data="public"))).text
    assert "numbers of 30 images of test" in text
    assert "images of public, 5 photographs" in text


def test_thumbnails_shrink_with_their_number_and_equal_images_are_one(tmp_path: Path) -> None:
    for number in range(20):
        paint_photo(number, 128, 128).save(tmp_path / f"{number}.png")
    shutil.copy(tmp_path / "0.png", tmp_path / "again.png")
    for photos, side_px, most_bytes in ((24, 128, 6000), (500, 64, 1500), (5000, 48, 900)):
        thumbnails = Thumbnails(photos)
        numbers = [thumbnails.add(tmp_path / f"{number}.png") for number in range(20)]
        assert (numbers[-1], thumbnails.side_px) == (19, side_px)
        assert thumbnails.add(tmp_path / "again.png") == 0
        assert sum(map(len, thumbnails.base64)) / 20 < most_bytes
