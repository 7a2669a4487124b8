"""The page in a real browser: dropped, slid, downloaded; on a telephone, in the dark, by keyboard; and alone."""

import base64
import re
import zipfile
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Download, FilePayload, Page, expect

from hpc_recolor.evaluation.colorizer import Colorizer, color_file
from hpc_recolor.serving.limits import Limits
from tests.conftest import paint_photo
from tests.serving.conftest import Served, encode, levels_apart, running
from tests.support import tolerances

WAIT_MS = 120_000  # a busy machine may take minutes
NO_OVERFLOW = "() => document.documentElement.scrollWidth <= document.documentElement.clientWidth"
# Files that the page gets as by a drag or a paste, with any name.
TRANSFER = """files => {
    const transfer = new DataTransfer();
    for (const [name, content] of files) {
        transfer.items.add(new File([Uint8Array.from(atob(content), letter => letter.charCodeAt(0))], name));
    }
    return transfer;
}"""

Opener = Callable[..., Page]


@pytest.fixture
def opened(browser: Browser, served: Served) -> Iterator[Opener]:
    """`opened(width=390)`: the page in its own window. A request to elsewhere, and an error of it, fail the test."""
    asked: list[str] = []
    wrong: list[str] = []
    contexts = []

    def open_page(server: Served = served, width: int = 1280, height: int = 800, **options: object) -> Page:
        still = {"viewport": {"width": width, "height": height}, "reduced_motion": "reduce"}
        context = browser.new_context(**still | options)  # type: ignore[arg-type]
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(WAIT_MS)
        page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
        page.on("console", lambda message: wrong.append(message.text) if is_complaint(message.text) else None)
        context.on("request", lambda request: asked.append(request.url))
        page.goto(server.address)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert [url for url in asked if not re.match(r"(blob:)?http://127\.0\.0\.1:\d+/", url)] == []
    assert not wrong


def is_complaint(text: str) -> bool:
    """Whether a line of the console is more than the status of a refused photograph, which a test expects."""
    return not re.match(r"Failed to load resource: (the server responded with a status of (4|503)|net::ERR_CONN)", text)


def gray_photo(number: int, width: int = 120, height: int = 80) -> bytes:
    return encode(paint_photo(number, width, height).convert("L"), quality=95)


def drop(page: Page, *files: tuple[str, bytes]) -> None:
    page.dispatch_event("main", "drop", {"dataTransfer": transferred(page, files)})


def transferred(page: Page, files: tuple[tuple[str, bytes], ...]) -> object:
    return page.evaluate_handle(TRANSFER, [[name, base64.b64encode(content).decode()] for name, content in files])


def chosen(name: str, content: bytes) -> FilePayload:
    """A file as from the browser's dialog."""
    return {"name": name, "mimeType": "image/jpeg", "buffer": content}


def colored(page: Page, count: int) -> None:
    """Wait until so many photographs are shown in color, and no others."""
    expect(page.locator(".photo:not([aria-busy]) .split:enabled")).to_have_count(count, timeout=WAIT_MS)
    expect(page.locator(".photo")).to_have_count(count)


def content_of(download: Download) -> bytes:
    return Path(download.path()).read_bytes()


def press(page: Page, button: str) -> Download:
    """What a button downloads."""
    with page.expect_download() as waiting:
        page.get_by_role("button", name=button).click()
    return waiting.value


def test_a_photograph_is_dropped_slid_and_downloaded(opened: Opener, served: Served) -> None:
    page, photo = opened(), gray_photo(1)
    drop(page, ("grandmother.jpg", photo))
    colored(page, 1)
    view = page.locator(".view").bounding_box()
    assert view is not None
    for share in (0.25, 0.8):
        page.mouse.click(view["x"] + share * view["width"], view["y"] + view["height"] / 2)
        assert abs(split(page) - share) < 0.03
    download = press(page, "Download grandmother.jpg")
    assert download.suggested_filename == "grandmother.png"
    whole = Image.open(BytesIO(color_file(served.colorizer, photo).png))
    got = Image.open(BytesIO(content_of(download)))
    assert levels_apart(got, whole).max() <= tolerances.ONE_NETWORK_TWICE


def split(page: Page) -> float:
    """The share of the picture that is gray, as it is drawn."""
    clip = str(page.locator(".colored").evaluate("image => getComputedStyle(image).clipPath"))
    found = re.fullmatch(r"inset\(0px 0px 0px ([\d.]+)%\)", clip)
    assert found, clip
    return float(found[1]) / 100


def test_gray_is_what_the_photograph_was(opened: Opener) -> None:
    page = opened()
    photo = gray_photo(1, 480, 320)
    drop(page, ("a.jpg", photo))
    colored(page, 1)
    page.locator(".split").focus()
    page.keyboard.press("End")
    page.locator(".line").evaluate("line => line.hidden = true")
    shown = Image.open(BytesIO(page.locator(".view").screenshot())).convert("RGB")
    given = Image.open(BytesIO(photo)).convert("RGB").resize(shown.size, Image.Resampling.BILINEAR)
    inside = (10, 10, shown.width - 10, shown.height - 10)
    assert levels_apart(shown.crop(inside), given.crop(inside)).mean() < tolerances.PREVIEW


def test_the_vividness_slider_shows_and_downloads_other_colors(opened: Opener, served: Served) -> None:
    page, photo = opened(), gray_photo(2)
    drop(page, ("a.jpg", photo))
    colored(page, 1)
    before = page.locator(".colored").get_attribute("src")
    slider = page.get_by_label("Colors of a.jpg, from faithful to vivid")
    assert float(slider.input_value()) == pytest.approx(served.colorizer.vividness, abs=1e-9)
    slider.fill("2")
    expect(page.locator(".colored")).not_to_have_attribute("src", str(before))
    got = Image.open(BytesIO(content_of(press(page, "Download a.jpg"))))
    vivid = Image.open(BytesIO(color_file(served.colorizer, photo, 2.0).png))
    assert levels_apart(got, vivid).max() <= tolerances.ONE_NETWORK_TWICE


def test_all_are_downloaded_as_one_zip_under_names_that_are_safe(opened: Opener, served: Served) -> None:
    page = opened()
    names = {
        "../../etc/pass\x01wd.jpg": "_.._etc_pass_wd.png",
        "C:\\autoexec.bat": "C__autoexec.png",
        "gpj.\u202eevil.jpg": "gpj._evil.png",
        "same.jpg": "same.png",
        "Same.png": "Same (2).png",
        "con.jpg": "_con.png",
        "gr\u00fc\u00dfe \u5199\u771f.jpg": "gr\u00fc\u00dfe \u5199\u771f.png",
        "...": "photo.png",
        "x" * 300 + ".jpg": "x" * 96 + ".png",
    }
    photos = [gray_photo(number) for number in range(len(names))]
    drop(page, *zip(names, photos, strict=True))
    colored(page, len(names))
    page.get_by_label("Colors of all photos, from faithful to vivid").fill("2")
    download = press(page, "Download all")
    assert download.suggested_filename == "colored.zip"
    with zipfile.ZipFile(BytesIO(content_of(download))) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == list(names.values())
        for name, photo in zip(archive.namelist(), photos, strict=True):
            whole = Image.open(BytesIO(color_file(served.colorizer, photo, 2.0).png))
            assert levels_apart(Image.open(BytesIO(archive.read(name))), whole).max() <= tolerances.ONE_NETWORK_TWICE
    expect(page.get_by_role("button", name="Download all")).to_be_enabled()


def test_what_cannot_be_colored_gets_a_line_and_the_others_are_colored(opened: Opener) -> None:
    page = opened()
    whole = gray_photo(3, 400, 300)
    drop(page, ("<b>notes</b>.txt", b"no photograph"), ("half.jpg", whole[: len(whole) // 2]), ("whole.jpg", whole))
    colored(page, 1)
    lines = page.locator(".problems li")
    expect(lines).to_have_count(2)
    expect(lines.filter(has_text="_b_notes__b_.txt: holds no photograph")).to_have_count(1)
    expect(lines.filter(has_text="half.jpg: unreadable")).to_have_count(1)
    lines.first.get_by_role("button", name="Close this message").click()
    expect(lines).to_have_count(1)


def test_photographs_are_pasted_and_chosen_too(opened: Opener) -> None:
    page = opened()
    pasted = transferred(page, (("pasted.png", gray_photo(1)),))
    page.evaluate("transfer => dispatchEvent(new ClipboardEvent('paste', { clipboardData: transfer }))", pasted)
    colored(page, 1)
    with page.expect_file_chooser() as waiting:
        page.get_by_role("button", name="Add photos").click()
    waiting.value.set_files([chosen("chosen.jpg", gray_photo(2))])
    colored(page, 2)
    page.get_by_role("button", name="Remove pasted.png").click()
    colored(page, 1)
    drop(page, ("dropped.jpg", gray_photo(3)))
    page.get_by_role("button", name="Remove all").click()
    expect(page.get_by_role("heading", name="Color for gray photographs")).to_be_visible()


def test_a_format_that_the_browser_cannot_show_is_colored(opened: Opener) -> None:
    page = opened()
    drop(page, ("scan.tif", encode(paint_photo(4, 90, 60), "TIFF")))
    colored(page, 1)
    ratio = page.locator(".view").evaluate("view => view.clientWidth / view.clientHeight")
    assert float(ratio) == pytest.approx(1.5, abs=0.02)


def test_everything_is_done_by_keyboard_and_said_aloud(opened: Opener) -> None:
    page = opened()
    page.on("filechooser", lambda chooser: None)  # else Chromium would open its own before Playwright listens
    page.keyboard.press("Tab")
    expect(page.locator(".start .choose")).to_be_focused()
    with page.expect_file_chooser() as waiting:
        page.keyboard.press("Enter")
    waiting.value.set_files([chosen("1.jpg", gray_photo(1)), chosen("2.jpg", gray_photo(2))])
    colored(page, 2)
    expect(page.get_by_role("status")).to_have_text("2 photos colored")
    slider = page.get_by_label("Gray or colored: 1.jpg")
    for _ in range(20):
        page.keyboard.press("Tab")
        if slider.evaluate("slider => slider === document.activeElement"):
            break
    assert slider.get_attribute("aria-valuetext") == "50 % gray, 50 % colored"
    page.keyboard.press("Home")
    assert slider.get_attribute("aria-valuetext") == "0 % gray, 100 % colored"
    outline = page.locator(".photo").first.evaluate("photo => getComputedStyle(photo).outlineStyle")
    assert outline == "solid"
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator(".photo.large")).to_have_count(1)
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    colored(page, 1)
    assert page.get_by_role("button", name="Remove 2.jpg").evaluate("button => button === document.activeElement")


def test_it_fits_a_telephone_and_a_finger_slides(opened: Opener) -> None:
    page = opened(width=390, height=844, has_touch=True, is_mobile=True)
    assert page.evaluate(NO_OVERFLOW)
    drop(page, ("x" * 80 + ".jpg", gray_photo(1)), ("b.jpg", gray_photo(2, 60, 200)), ("c.txt", b"y" * 300))
    colored(page, 2)
    assert page.evaluate(NO_OVERFLOW)
    view = page.locator(".view").first
    view.scroll_into_view_if_needed()
    box = view.bounding_box()
    assert box is not None and box["width"] > 300
    page.touchscreen.tap(box["x"] + 0.75 * box["width"], box["y"] + box["height"] / 2)
    assert 0.7 < float(page.locator(".split").first.input_value()) / 100 < 0.8


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_in_light_and_dark(opened: Opener, scheme: str) -> None:
    page = opened(color_scheme=scheme)
    drop(page, ("a.jpg", gray_photo(1)), ("b.txt", b"no photograph"))
    colored(page, 1)
    page.locator(".main.download:enabled").hover()
    backgrounds = {
        "body": "body",
        "footer p": "body",
        ".photo h2": ".photo",
        ".size": ".photo",
        ".vivid span": ".photo",
    }
    backgrounds |= {".problems li": ".problems li", ".download": ".download", ".plain": ".plain"}
    for text, ground in backgrounds.items():
        assert contrast(page, text, ground) >= 4.5, (text, scheme)
    assert (luminance(page, "body", "backgroundColor") < 0.1) == (scheme == "dark")


def contrast(page: Page, text: str, ground: str) -> float:
    """Of WCAG 2.2."""
    levels = sorted((luminance(page, text, "color"), luminance(page, ground, "backgroundColor")))
    return (levels[1] + 0.05) / (levels[0] + 0.05)


def luminance(page: Page, selector: str, key: str) -> float:
    """Relative luminance of a color that is drawn."""
    color = str(page.locator(selector).first.evaluate(f"element => getComputedStyle(element).{key}"))
    rgb = np.array([int(value) for value in re.findall(r"\d+", color)[:3]]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


def test_more_photographs_and_bytes_than_the_page_takes_are_named(
    opened: Opener, browser: Browser, colorizer: Colorizer
) -> None:
    with running(colorizer, Limits(max_bytes=20_000, page_photos=2)) as small:
        page = opened(small)
        expect(page.locator("footer .info")).to_contain_text("0.02 MB")
        noise = encode(Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 200), np.uint8)))
        drop(page, ("large.jpg", noise), ("a.jpg", gray_photo(1)), ("b.jpg", gray_photo(2)), ("c.jpg", gray_photo(3)))
        expect(page.locator(".problems")).to_contain_text("2 photos fit on this page; 2 were left out")
        expect(page.locator(".problems")).to_contain_text("large.jpg: 1 MB, more than 0.02 MB")
        colored(page, 1)
        page.context.close()


def test_a_busy_server_is_asked_again(opened: Opener, colorizer: Colorizer) -> None:
    with running(colorizer, Limits(max_waiting=1)) as small:
        page = opened(small)
        statuses: list[int] = []
        page.on("response", lambda response: statuses.append(response.status))
        drop(page, *((f"{number}.jpg", gray_photo(number)) for number in range(4)))
        colored(page, 4)
        assert set(statuses) <= {200, 503}
        page.context.close()


def test_a_server_that_was_stopped_is_named(opened: Opener, colorizer: Colorizer) -> None:
    with running(colorizer, Limits()) as short:
        page = opened(short)
        drop(page, ("a.jpg", gray_photo(1)))
        colored(page, 1)
    page.get_by_role("button", name="Download a.jpg").click()
    expect(page.locator(".photo .problem")).to_have_text("the server does not answer; it may have been stopped")
    expect(page.get_by_role("button", name="Download a.jpg")).to_be_enabled()
