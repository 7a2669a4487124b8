"""The page in a real browser, opened from disk."""

import re
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from hpc_recolor.reporting.page import ReportOptions, write_report
from tests.reporting.conftest import LAB, MadeRun, Opener

CELL = ".grid:not(.cards-grid) .cell:has(button.image)"
NO_OVERFLOW = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"


def first_cell(page: Page) -> None:
    page.locator(".grid .row:not(.head)").first.scroll_into_view_if_needed()
    expect(page.locator(CELL, has=page.locator("img[alt$='photo 0.jpg']")).first).to_be_visible()


def opacity(page: Page, kind: str) -> float:
    return float(page.locator(f"{CELL} img.{kind}").first.evaluate("image => getComputedStyle(image).opacity"))


def images(page: Page) -> int:
    return page.locator("img").count()


def test_the_page_opens_from_disk_without_a_complaint_or_a_request(opened: Opener, report: Path) -> None:
    page = opened(report)
    expect(page).to_have_title("Training runs compared")
    for section in page.locator("section").all():
        section.scroll_into_view_if_needed()
    expect(page.locator(".plot canvas").first).to_be_visible()
    assert page.evaluate(NO_OVERFLOW)


def test_every_header_sorts_both_ways_with_blanks_last(opened: Opener, report: Path) -> None:
    page = opened(report)
    table = page.locator("table.sortable").first
    header = table.locator("th[aria-sort]", has_text="CIEDE2000")
    column = header.evaluate("cell => cell.cellIndex")

    def values() -> list[float]:
        texts = table.locator(f"tbody tr > :nth-child({column + 1})").evaluate_all(
            "all => all.map(c => c.dataset.order)"
        )
        assert "" not in texts[: len([text for text in texts if text])]
        return [float(text) for text in texts if text]

    header.locator("button").click()
    assert header.get_attribute("aria-sort") == "ascending"
    assert values() == sorted(values())
    header.locator("button").press("Enter")
    assert header.get_attribute("aria-sort") == "descending"
    assert values() == sorted(values(), reverse=True)
    assert table.locator("th[aria-sort=none]").count() == table.locator("thead th").count() - 1


def test_an_image_moves_by_mouse_from_gray_to_the_original_and_comes_back(opened: Opener, report: Path) -> None:
    page = opened(report)
    first_cell(page)
    button = page.locator(f"{CELL} button.image").first
    assert (opacity(page, "model"), opacity(page, "original")) == (1, 0)
    box = button.bounding_box()
    assert box is not None
    for share, expected in ((0.02, (0, 0)), (0.5, (1, 0)), (0.98, (1, 1))):
        page.mouse.move(box["x"] + share * box["width"], box["y"] + box["height"] / 2)
        assert (opacity(page, "model"), opacity(page, "original")) == expected
    page.mouse.move(0, 0)
    assert (opacity(page, "model"), opacity(page, "original")) == (1, 0)


def test_an_image_moves_by_arrow_keys_and_says_where_it_is(opened: Opener, report: Path) -> None:
    page = opened(report)
    first_cell(page)
    slider = page.locator(f"{CELL} input[type=range]").first
    slider.focus()
    for _ in range(5):
        page.keyboard.press("ArrowLeft")
    assert slider.input_value() == "0"
    assert slider.get_attribute("aria-valuetext") == "gray"
    assert opacity(page, "model") == 0
    page.keyboard.press("End")
    assert slider.get_attribute("aria-valuetext") == "original"
    assert opacity(page, "original") == 1


def test_a_finger_drags_an_image_and_does_not_enlarge_it(opened: Opener, report: Path) -> None:
    page = opened(report, width=390, height=844, has_touch=True, is_mobile=True)
    first_cell(page)
    button = page.locator(f"{CELL} button.image").first
    button.scroll_into_view_if_needed()
    box = button.bounding_box()
    assert box is not None
    touch = page.context.new_cdp_session(page)
    y = box["y"] + box["height"] / 2
    for kind, share in (("touchStart", 0.5), ("touchMove", 0.7), ("touchMove", 0.97)):
        point = {"x": box["x"] + share * box["width"], "y": y}
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [point]})
    touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    assert opacity(page, "original") == 1
    assert not page.locator("dialog").is_visible()


def test_one_slider_moves_all_images(opened: Opener, report: Path) -> None:
    page = opened(report)
    first_cell(page)
    page.locator("#all").fill("100")
    opacities = page.locator(f"{CELL} img.original").evaluate_all("all => all.map(one => one.style.opacity)")
    assert opacities
    assert set(opacities) == {"1"}


def test_an_enlarged_image_opens_walks_by_arrow_keys_and_closes(opened: Opener, report: Path) -> None:
    page = opened(report)
    first_cell(page)
    slider = page.locator(f"{CELL} input[type=range]").first
    slider.press("Enter")
    dialog, name, note = page.locator("dialog"), page.locator("#viewer-name"), page.locator("#viewer-note")
    expect(dialog).to_be_visible()
    expect(name).to_have_text("photo 0.jpg")
    expect(note).to_contain_text("cars-rgb")
    page.keyboard.press("ArrowRight")
    expect(name).to_contain_text("<script>alert('x')</script>&")
    page.keyboard.press("ArrowDown")
    expect(note).to_contain_text("cars-lab")
    dialog.locator("input").press("Home")
    assert dialog.locator("img.model").evaluate("image => image.style.opacity") == "0"
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(slider).to_be_focused()
    page.locator(f"{CELL} button.image").nth(1).click()
    expect(dialog).to_be_visible()
    dialog.get_by_role("button", name="Close").click()
    expect(dialog).to_be_hidden()


def test_the_theme_follows_the_system_and_can_be_switched(opened: Opener, report: Path) -> None:
    page = opened(report, color_scheme="dark")
    paper: Callable[[], str] = lambda: page.evaluate("getComputedStyle(document.body).backgroundColor")  # noqa: E731
    dark = paper()
    page.get_by_role("button", name="Switch to the light theme").click()
    light = paper()
    assert light != dark
    page.get_by_role("button", name="Switch to the dark theme").click()
    assert paper() == dark
    assert opened(report, color_scheme="light").evaluate("getComputedStyle(document.body).backgroundColor") == light


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_all_text_can_be_read(opened: Opener, report: Path, theme: str) -> None:
    """Contrast of 4.5 to 1 (WCAG 2 AA) of every text against its ground."""
    page = opened(report, color_scheme=theme)
    first_cell(page)
    assert page.evaluate(CONTRAST) == []


def test_a_phone_shows_all_without_the_page_overflowing(opened: Opener, report: Path) -> None:
    page = opened(report, width=390, height=844)
    first_cell(page)
    for section in page.locator("section").all():
        section.scroll_into_view_if_needed()
        assert page.evaluate(NO_OVERFLOW)
    first_cell(page)
    page.locator(f"{CELL} button.image").first.click()
    box = page.locator("dialog").bounding_box()
    assert box is not None and box["x"] >= 0 and box["x"] + box["width"] <= 390


def test_plots_zoom_by_drag_buttons_wheel_and_keys_and_reset(opened: Opener, report: Path) -> None:
    page = opened(report)
    plot = page.locator(".plot").first
    plot.scroll_into_view_if_needed()
    zoomed = re.compile(r"\bzoomed\b")
    over, reset = plot.locator(".u-over"), plot.get_by_role("button", name="Reset")
    box = over.bounding_box()
    assert box is not None
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + 50, middle)
    page.mouse.down()
    page.mouse.move(box["x"] + 200, middle, steps=4)
    page.mouse.up()
    expect(plot).to_have_class(zoomed)
    reset.click()
    expect(plot).not_to_have_class(zoomed)
    ways: tuple[Callable[[], None], ...] = (
        lambda: plot.get_by_role("button", name="Zoom in").click(),
        lambda: plot.locator(".canvas").press("+"),
        lambda: page.mouse.wheel(0, -100),
    )
    for zoom in ways:
        over.click()
        zoom()
        expect(plot).to_have_class(zoomed)
        over.dblclick()
        expect(plot).not_to_have_class(zoomed)


def test_runs_can_be_left_out_of_the_plots_and_images_seen_be_the_axis(opened: Opener, report: Path) -> None:
    page = opened(report)
    plot = page.locator(".plot", has_text="L1 loss, RGB runs")
    for box in page.locator("input[data-run]").all():
        box.uncheck()
    expect(plot).to_have_class(re.compile("nothing"))
    page.locator("input[data-run]").first.check()
    page.get_by_label("images seen").check()
    assert float(plot.get_attribute("data-to") or 0) == 2000


def test_config_keys_that_agree_are_shown_on_demand(opened: Opener, report: Path) -> None:
    page = opened(report)
    same = page.locator("#config-table tr.same").first
    expect(same).to_be_hidden()
    page.get_by_role("button", name="Show all").click()
    expect(same).to_be_visible()


def test_another_run_can_be_chosen_for_best_and_worst(opened: Opener, report: Path) -> None:
    page = opened(report)
    page.locator("#extreme").select_option(label="cars-lab")
    panel = page.locator("[data-panel=extreme-1]")
    expect(panel).to_be_visible()
    expect(page.locator("[data-panel=extreme-0]")).to_be_hidden()
    panel.scroll_into_view_if_needed()
    expect(panel.locator("img").first).to_be_visible()


def test_paper_shows_everything(opened: Opener, report: Path) -> None:
    page = opened(report, color_scheme="dark")
    before = images(page)
    page.emulate_media(media="print")
    expect(page.locator("details .hash").first).to_be_visible()
    expect(page.locator("[data-panel=extreme-2]")).to_be_visible()
    expect(page.locator("#config-table tr.same").first).to_be_visible()
    assert images(page) > max(before, 12 * 5)
    assert page.locator(".grid .row:not(.head):empty").count() == 0
    assert page.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--paper')") == "#fbfbfa"
    cut_off = (
        "all => all.filter(one => one.scrollWidth > one.clientWidth + 1).map(one => one.getAttribute('aria-label'))"
    )
    page.set_viewport_size({"width": 1040, "height": 720})
    assert page.locator(".scroll").evaluate_all(cut_off) == []


def test_every_picture_is_printed_though_the_page_was_never_scrolled(opened: Opener, report: Path) -> None:
    page = opened(report)
    different = page.evaluate("page.data.images.length")
    printed = page.pdf(prefer_css_page_size=True)
    assert printed.startswith(b"%PDF")
    assert printed.count(b"/Subtype /Image") >= different


def test_pictures_come_first_and_the_verdict_is_beside_them(opened: Opener, report: Path) -> None:
    page = opened(report)
    first_cell(page)
    pictures, verdict = (page.locator(name).bounding_box() for name in ("#images .grid >> nth=0", "#verdict"))
    assert pictures is not None and verdict is not None
    assert pictures["x"] + pictures["width"] <= verdict["x"]
    assert verdict["y"] < pictures["y"] < verdict["y"] + verdict["height"]
    page.set_viewport_size({"width": 390, "height": 844})
    below = page.locator("#verdict").bounding_box()
    images_box = page.locator("#images").bounding_box()
    assert below is not None and images_box is not None
    assert below["y"] >= images_box["y"] + images_box["height"]


def test_a_table_that_scrolls_has_a_shadow_where_it_goes_on(opened: Opener, report: Path) -> None:
    page = opened(report, width=390, height=844, color_scheme="light")
    table = page.locator(".scroll:has(table.metrics)").first
    table.scroll_into_view_if_needed()

    def darkness_at_the_right() -> int:
        image = Image.open(BytesIO(table.screenshot())).convert("L")
        edge = image.crop((image.width - 3, 5, image.width, image.height - 5))
        return 255 - int(np.median(np.asarray(edge)))

    assert darkness_at_the_right() > 30
    table.evaluate("box => box.scrollTo({ left: box.scrollWidth })")
    assert darkness_at_the_right() < 10


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of 5,000 photographs, of 500 different images."""
    folder = tmp_path_factory.mktemp("large")
    run = MadeRun(folder / "large", LAB, images=5000, kept=5000, different=500).write()
    write_report([run], folder / "report.html", ReportOptions(grid_size=5000))
    return folder / "report.html"


def test_5000_photographs_stay_light(opened: Opener, large: Path) -> None:
    assert large.stat().st_size < 3e6
    page = opened(large)
    assert images(page) < 300
    page.get_by_text("4,997 more photographs").click()
    grid = page.locator(".grid").nth(1)
    grid.scroll_into_view_if_needed()
    expect(grid.locator("img").first).to_be_visible()
    few = images(page)
    assert few < 300
    grid.locator(".row").nth(3997).scroll_into_view_if_needed()
    expect(grid.locator(".row", has_text="photo 3999.jpg").locator("img").first).to_be_visible()
    assert images(page) < 600, "rows that are far again are emptied"
    assert page.evaluate("document.querySelectorAll('*').length") < 12_000


# The ground of a text is the first ancestor that has one; what is disabled, drawn or hidden is left out.
CONTRAST = """() => {
  const parse = (color) => (color.match(/[\\d.]+/g) ?? []).map(Number);
  const linear = (level) => (level /= 255) <= 0.04045 ? level / 12.92 : ((level + 0.055) / 1.055) ** 2.4;
  const light = ([red, green, blue]) => 0.2126 * linear(red) + 0.7152 * linear(green) + 0.0722 * linear(blue);
  const ground = (element) => {
    for (let one = element; one; one = one.parentElement) {
      const color = parse(getComputedStyle(one).backgroundColor);
      if (color.length === 3 || color[3] === 1) return color;
    }
    return [255, 255, 255];
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), found = new Set();
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !element.checkVisibility()) continue;
    if (element.closest("script, style, .hidden")) continue;
    const [one, other] = [light(parse(getComputedStyle(element).color)), light(ground(element))];
    const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    if (ratio < 4.5) found.add(`${element.className || element.tagName}: ${ratio.toFixed(2)}`);
  }
  return [...found];
}"""
