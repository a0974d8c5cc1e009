"""The HTML report in a real browser: Chromium, if one is installed, at the widths of a desk and of a phone."""

from __future__ import annotations

import shutil

import pytest

from pytest_induction.report.page import html_page
from tests.report import samples
from tests.report.test_page import of_a_run

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome is installed")

LOOKS = {
    "desk": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 390, "height": 844}, "color_scheme": "light", "is_mobile": True, "has_touch": True},
}
SECONDS = 20_000  # in which anything of a page must happen, in milliseconds; it takes about one, on a machine that is not busy
MOST = 3_000  # for a page to be there, three times what it may take
HEIGHT = "document.documentElement.scrollHeight"
DRAWN = "document.querySelectorAll('.chart.drawn').length"
WATCH = """
new MutationObserver((_, watch) => {
  if (document.querySelector('.chart svg')) { window.pictured = performance.now(); watch.disconnect(); }
}).observe(document, {subtree: true, childList: true});
"""


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Where the page of each sample is: one with everything in it, one of a large model, one of many tests."""
    folder = tmp_path_factory.mktemp("pages")
    all_of_it = [samples.small(), of_a_run(), samples.nasty(("ablations",))]
    tests = [test for each in all_of_it for test in each.tests]
    charts = [chart for each in all_of_it for chart in each.charts]
    many = [samples.TestRecord(f"a.py::test[{place}]", "failed" if place == 7 else "passed") for place in range(40)]
    made = {"all": samples.session(*tests, charts=charts), "large": samples.large(), "many": samples.session(*many)}
    for name, records in made.items():
        (folder / f"{name}.html").write_text(html_page(records), encoding="utf-8", newline="\n")
    return folder


class Opened:
    """A page in a browser, and what went wrong in it and what it asked for."""

    def __init__(self, browser, path, before="", **look):
        self.wrong, self.asked = [], []
        self.context = browser.new_context(**look)
        self.page = self.context.new_page()
        self.page.set_default_timeout(SECONDS)
        self.page.on("console", lambda message: self.wrong.append(message.text))
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.wrong.append(dialog.message), dialog.dismiss()))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.add_init_script(WATCH + before)
        self.page.goto(path.as_uri())

    def check(self):
        """Nothing went wrong, and nothing was asked for but the page itself."""
        assert not self.wrong
        assert len(self.asked) == 1 and self.asked[0].startswith("file:")


@pytest.fixture
def opened(browser, pages):
    """Open a page; when the test is over, see that nothing went wrong in it and that it asked for nothing."""
    there = []

    def open_page(name, **look):
        there.append(Opened(browser, pages / f"{name}.html", **look))
        return there[-1].page

    yield open_page
    for each in there:
        each.context.close()
        each.check()


def kept_open(look):
    """A fixture: the page with everything, opened once, since it is slow to draw, and checked after each test."""

    @pytest.fixture(scope="module")
    def opened_once(browser, pages):
        there = Opened(browser, pages / "all.html", **LOOKS[look])
        yield there
        there.context.close()

    return opened_once


desk_page, phone_page = kept_open("desk"), kept_open("phone")


@pytest.fixture
def desk(desk_page):
    yield desk_page.page
    desk_page.check()


@pytest.fixture
def phone(phone_page):
    yield phone_page.page
    phone_page.check()


def test_on_a_phone_every_chart_is_drawn_and_nothing_scrolls_sideways(phone):
    """But tables in their boxes; nothing moves while charts are drawn, and no name is run as a script."""
    tall = phone.evaluate(HEIGHT)
    phone.set_viewport_size({**LOOKS["phone"]["viewport"], "height": 12_000})  # all of it is near
    phone.wait_for_function(f"{DRAWN} === document.querySelectorAll('.chart').length")
    assert phone.locator(".live .main-svg").count() > 15
    assert phone.evaluate("document.documentElement.scrollWidth <= innerWidth")
    phone.set_viewport_size(LOOKS["phone"]["viewport"])
    assert abs(phone.evaluate(HEIGHT) - tall) <= 2
    assert "<script>alert(1)</script>" in phone.locator("h2 .title, .how").all_inner_texts()[-1]
    assert phone.locator(".live script").count() == 0


def test_at_a_desk_charts_are_drawn_when_they_come_near(desk):
    """Those that are far wait, and cost nothing until then."""
    desk.locator("#model-1-heads-1").scroll_into_view_if_needed()
    desk.wait_for_selector("#model-1-heads-1.drawn")
    desk.wait_for_timeout(200)  # enough to draw some more, if they did not wait
    assert not desk.locator("#model-2-run-1.drawn").count()
    desk.locator("#model-2-run-1").scroll_into_view_if_needed()
    desk.wait_for_selector("#model-2-run-1.drawn .heatmaplayer image")
    assert desk.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_the_hover_over_a_map_tells_the_head_and_its_numbers(desk):
    """Name, value, interval and kind."""
    desk.locator("#model-1-heads-1").scroll_into_view_if_needed()
    desk.wait_for_selector("#model-1-heads-1.drawn .heatmaplayer image")
    desk.mouse.move(0, 0)
    box = desk.locator("#model-1-heads-1 .nsewdrag").bounding_box()
    desk.mouse.move(box["x"] + box["width"] * 0.13, box["y"] + box["height"] * 0.75, steps=3)
    said = desk.locator("#model-1-heads-1 .hoverlayer text").first
    said.wait_for()
    assert said.evaluate("each => each.textContent") == "L1H0prefix matching 0.930 (0.910 to 0.950)matches"


def test_no_chart_offers_to_send_itself_away(desk):
    """Its buttons save, zoom and reset."""
    desk.locator("#model-1-text-1").scroll_into_view_if_needed()
    desk.wait_for_selector("#model-1-text-1 .modebar-btn", state="attached")
    titles = desk.evaluate("[...document.querySelectorAll('#model-1-text-1 .modebar-btn')].map((each) => each.dataset.title)")
    assert titles == ["Download plot as a PNG", "Zoom", "Pan", "Reset axes"]


def test_dark_is_as_the_reader_has_it_and_one_click_away(desk):
    """The page, the texts of charts and the middle of signed colours turn with a click, and back with another."""
    seen = """() => {
      const live = document.querySelector('#model-1-heads-6 .live');
      return [getComputedStyle(document.body).backgroundColor, live.layout.font.color, live.data[0].colorscale[5][1]].join();
    }"""
    desk.locator("#model-1-heads-6").scroll_into_view_if_needed()
    desk.wait_for_selector("#model-1-heads-6.drawn")
    dark, light = "rgb(14, 18, 23),#e4e8ee,#262c35", "rgb(250, 250, 248),#1b2430,#f1f1ee"
    assert desk.evaluate(seen) == dark
    for colours in (light, dark):
        desk.evaluate("document.querySelector('.theme').click()")  # where it is, the charts are near
        desk.wait_for_function(f"({seen})() === '{colours}'")


def test_paper_is_light_and_shows_everything(desk):
    """Whoever looked at it in the dark prints it on white: pictures in place of charts, evidence open, no navigation."""
    desk.emulate_media(media="print")
    desk.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert desk.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert desk.locator(".chart .static svg").first.is_visible() and not desk.locator(".live").first.is_visible()
    assert not desk.locator("nav").is_visible() and not desk.locator(".theme").is_visible()
    assert desk.locator(".evidence").first.is_visible()
    desk.evaluate("dispatchEvent(new Event('afterprint'))")
    desk.emulate_media(media="screen")
    assert desk.locator("details[open]").count() == 1


@pytest.mark.parametrize("look", LOOKS)
def test_all_is_there_without_scripts(opened, look):
    """Every chart as a picture, in the dark too; no button that does nothing; evidence that opens."""
    page = opened("all", **LOOKS[look], java_script_enabled=False)
    pictures = page.locator(".chart .static > *")
    assert pictures.count() == 12 + 2 + 2  # the run and the nasty model have a map from their verdicts
    assert all(each.is_visible() for each in pictures.all())
    assert not page.locator(".live-only").is_visible()
    assert not page.locator(".theme").is_visible() and not page.locator(".copy").first.is_visible()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.locator("summary", has_text="Evidence").first.click()
    assert page.locator(".evidence").first.is_visible()
    colour = {"desk": "rgb(14, 18, 23)", "phone": "rgb(250, 250, 248)"}[look]
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == colour


def test_a_browser_that_cannot_unpack_the_script_shows_pictures(opened):
    """Silently: everything is there but the hover."""
    page = opened("all", **LOOKS["desk"], before="delete window.DecompressionStream")
    page.locator("#model-1-heads-1").scroll_into_view_if_needed()
    page.wait_for_timeout(500)
    assert page.evaluate("typeof DecompressionStream") == "undefined"
    assert page.evaluate(DRAWN) == 0 and page.locator("#model-1-heads-1 .static svg").is_visible()
    assert page.locator(".live-only").count() == 1 and not page.locator(".live-only").is_visible()  # the run's picture has it


def test_tests_are_found_by_name_and_by_outcome(opened):
    """The field and the box leave what is asked for, and say how many."""
    page = opened("many", **LOOKS["desk"])
    shown = "[...document.querySelectorAll('tbody.test')].filter((test) => !test.hidden).length"
    page.fill("input[type=search]", "test[1")
    assert page.evaluate(shown) == 11 and page.inner_text("output") == "11 of 40"
    page.fill("input[type=search]", "")
    page.check("input[type=checkbox]")
    assert page.evaluate(shown) == 1


def test_a_large_model_opens_at_once(opened):
    """Pictures of 32 x 32 heads, and all of the page."""
    page = opened("large", **LOOKS["desk"])
    there = page.evaluate("performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd")
    assert 0 < page.evaluate("window.pictured") < MOST and 0 < there < MOST
