"""The page in a real browser: drop, classify, label, save, reload. Needs chromium and playwright."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from play_server import a_session, drawings, served

from selftaught.app.classifier import Classifier
from selftaught.app.play.session import PlaySession

for needed in ("starlette", "uvicorn"):
    pytest.importorskip(needed, reason="extra play")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None:
    pytest.skip("chromium is not installed", allow_module_level=True)

EVIL = "<img src=x onerror=alert(1)>"


@pytest.fixture
def session(tmp_path: Path) -> PlaySession:
    torch.set_num_threads(1)
    return a_session(tmp_path)


@pytest.fixture
def page(session: PlaySession) -> Iterator["playwright.Page"]:
    """The open page; at the end nothing was said on the console and no other address was asked."""
    with served(session) as at, playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            page = browser.new_page(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")
            said: list[str] = []
            asked: list[str] = []
            page.on("console", lambda message: said.append(message.text))
            page.on("pageerror", lambda error: said.append(str(error)))
            page.on("request", lambda request: asked.append(request.url))
            page.goto(at.base)
            playwright.expect(page.locator("#model")).to_contain_text("simclr")
            yield page
        finally:
            browser.close()
    assert [s for s in said if "400 (Bad Request)" not in s] == []
    assert asked and all(a.startswith((at.base, "data:", "blob:")) for a in asked)


def file(name: str, content: bytes) -> dict[str, object]:
    return {"name": name, "mimeType": "image/png", "buffer": content}


def make_class(page: "playwright.Page", name: str, content: bytes) -> None:
    """By keyboard alone, but for the system's dialog that chooses files."""
    page.locator("#new-name").focus()
    page.keyboard.type(name)
    page.keyboard.press("Enter")
    chooser = page.get_by_label(f"Add pictures to {name}")
    playwright.expect(chooser).to_be_focused()
    chooser.set_input_files([file(f"{name}.png", content)])
    playwright.expect(page.get_by_role("button", name=f"Take {name}.png out of {name}")).to_be_visible()


def drop(page: "playwright.Page", where: str, name: str, content: bytes) -> None:
    """A file from outside dropped on an element."""
    page.evaluate(
        """([where, name, bytes]) => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(bytes)], name, { type: "image/png" }));
            for (const kind of ["dragenter", "dragover", "drop"]) {
                document.querySelector(where).dispatchEvent(
                    new DragEvent(kind, { dataTransfer: data, bubbles: true, cancelable: true }));
            }
        }""",
        [where, name, list(content)],
    )


def test_drop_classify_label_save_reload(page: "playwright.Page", session: PlaySession) -> None:
    expect = playwright.expect
    (a0, a1, a2), (b0, b1, _) = drawings()
    make_class(page, "ring", a0)
    expect(page.locator("#save")).to_be_disabled()
    make_class(page, "hook", b0)
    drop(page, "#asked-drop", "dropped.png", a1)
    expect(page.locator(".asked .label")).to_have_count(1)
    page.set_input_files(
        "#asked-files", [file("one.png", b1), file("notes.png", b"hello"), file(f"{EVIL}.png", a2)]
    )
    expect(page.locator(".asked .label")).to_have_count(3)
    expect(page.locator("#notices")).to_contain_text("1 of 3 skipped")
    expect(page.locator("#notices")).to_contain_text("notes.png: not in a picture format")
    expect(page.locator("#asked")).to_contain_text(f"{EVIL}.png")
    assert page.locator("#asked .near img").count() == 6 and page.locator('img[src="x"]').count() == 0
    labels = [g.label for g in session.predict()]
    assert page.locator(".asked .label").all_inner_texts() == labels
    expect(page.locator("#plane svg image")).to_have_count(5)

    page.get_by_label(f"Label {EVIL}.png as").select_option(label="ring")
    expect(page.locator("#notices")).to_contain_text("is now in ring")
    page.get_by_role("button", name=f"Take {EVIL}.png out of ring").click()
    expect(page.locator(".asked .label")).to_have_count(3)
    suggested = session.suggest("margin")
    assert suggested is not None
    expect(page.locator("#next")).to_contain_text(session.picture(suggested.id).name)
    expect(page.locator("#next .ifs")).to_contain_text("of 2 other guesses")
    page.locator("#next").get_by_role("button", name="It is ring").click()
    expect(page.locator(".asked")).to_have_count(2)
    assert session.class_of(suggested.id) == "ring"
    expect(page.locator("#state")).to_have_text("not saved")
    page.locator("#save").click()
    expect(page.locator("#state")).to_have_text("saved in clf")
    assert Classifier.load(session.out).classes == ("ring", "hook")

    page.reload()  # the page anew: nothing is lost
    expect(page.locator(".asked .label")).to_have_count(2)
    page.get_by_role("button", name="Remove class hook").click()
    expect(page.locator(".asked")).to_have_count(3)
    page.locator("#load").click()
    page.locator("#ask-yes").click()
    expect(page.locator("#class-list > li")).to_have_count(2)
    expect(page.locator("#notices")).to_contain_text("Loaded 2 classes from clf")


def test_a_class_by_dropping_and_labels_by_keyboard(page: "playwright.Page", session: PlaySession) -> None:
    expect = playwright.expect
    (a0, a1, _), (b0, _, _) = drawings()
    drop(page, "#new-class", "a.png", a0)
    expect(page.get_by_label("Name of class class 1")).to_be_visible()
    drop(page, "#new-class", "b.png", b0)
    name = page.get_by_label("Name of class class 2")
    name.fill(EVIL)
    name.press("Enter")
    expect(page.get_by_label(f"Name of class {EVIL}")).to_be_visible()
    drop(page, "#class-list > li", "a1.png", a1)
    expect(page.get_by_role("button", name="Take a1.png out of class 1")).to_be_visible()
    page.get_by_role("button", name="Take a1.png out of class 1").press("Enter")
    choice = page.get_by_label("Label a1.png as")
    expect(choice).to_be_visible()
    choice.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")  # arrows choose, and only Enter decides
    expect(choice).to_have_value("1")
    assert len(session.unlabelled) == 1
    page.keyboard.press("Enter")
    expect(page.locator(".asked")).to_have_count(0)
    assert [len(p) for p in session.classes.values()] == [1, 2] and EVIL in session.classes


@pytest.mark.parametrize(("width", "scheme"), [(360, "light"), (360, "dark"), (1280, "dark")])
def test_it_fits_and_can_be_read(page: "playwright.Page", width: int, scheme: str) -> None:
    """Nothing is cut off at the side, and dark is dark."""
    page.set_viewport_size({"width": width, "height": 700})
    page.emulate_media(color_scheme=scheme)
    make_class(page, "x" * 60, drawings()[0][0])
    assert page.evaluate("() => document.documentElement.scrollWidth") <= width
    ground = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    assert (sum(int(v) for v in ground[4:-1].split(",")) < 200) == (scheme == "dark")
