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
TIP = "[...document.querySelector('.tip').children].map((line) => line.textContent)"
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
    """A fixture: the page with everything, opened once and checked after each test."""

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


def test_on_a_phone_nothing_scrolls_sideways_but_charts_and_tables_in_their_boxes(phone):
    """And no name is run as a script."""
    assert phone.evaluate("document.documentElement.scrollWidth <= innerWidth")
    wide = "[...document.querySelectorAll('.chart')].filter((chart) => chart.scrollWidth > chart.clientWidth).map((chart) => chart.id)"
    assert "model-2-run-1" in phone.evaluate(wide) and "model-1-heads-1" not in phone.evaluate(wide)
    assert "<script>alert(1)</script>" in phone.locator("h2 .title, .how").all_inner_texts()[-1]
    assert phone.locator(".chart script").count() == 0


def over(page, name, across, up):
    """The pointer over a chart, at shares of its width and height; what is said then."""
    page.locator(f"#{name}").scroll_into_view_if_needed()
    page.mouse.move(0, 0)
    box = page.locator(f"#{name} svg").bounding_box()
    page.mouse.move(box["x"] + box["width"] * across, box["y"] + box["height"] * up, steps=3)
    return page.evaluate(TIP)


def at(page, name, part):
    """The same, in the middle of one part of it."""
    found = page.locator(f"#{name} {part}").first
    found.scroll_into_view_if_needed()
    page.mouse.move(0, 0)
    box = found.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=3)
    return page.evaluate(TIP)


def test_the_hover_over_a_map_tells_the_head_and_its_numbers(desk):
    """Name, value, interval and kind; nothing beside it."""
    assert over(desk, "model-1-heads-1", 0.25, 0.45) == ["L1H0", "prefix matching 0.930 (0.910 to 0.950); matches"]
    assert desk.locator(".tip").is_visible() and desk.locator("#model-1-heads-1 .at rect").count() == 2
    assert over(desk, "model-1-heads-1", 0.05, 0.95) == []
    assert not desk.locator(".tip").is_visible() and desk.locator(".at").count() == 0


def test_the_hover_over_every_kind_of_chart_tells_what_was_measured(desk):
    """A point of a curve, a cell of a pattern, a bar, an edge, a snapshot; with their units."""
    name, value, where = at(desk, "model-1-repeats-1", ".curve circle")
    assert (name, where) == ("copy 1", "place 2") and value == "4.96 (4.76 to 5.16) nats"
    assert over(desk, "model-1-attention-1", 0.17, 0.5)[1].endswith(" of its attention")
    assert at(desk, "model-1-ablations-1", ".mark text") == ["L1H0", "+0.400 (+0.300 to +0.500)"]
    assert at(desk, "model-1-composition-1", ".mark path")[0].startswith("L0H3 \u2192")
    name, value = at(desk, "model-2-run-2", ".mark circle")
    assert name == "0 tokens" and value.endswith(" nats")


def test_the_keys_walk_through_a_chart(desk):
    """Left and right along a curve, up and down to the next, Escape out of it; the words are read aloud."""
    chart = desk.locator("#model-2-run-1 svg")
    chart.focus()
    seen = []
    for key in ("ArrowRight", "ArrowRight", "End", "ArrowDown", "Home", "ArrowLeft"):
        desk.keyboard.press(key)
        seen.append(desk.evaluate(TIP))
    assert [each[0] for each in seen] == ["loss"] * 3 + ["in-context learning score"] * 3
    assert [each[2] for each in seen] == ["0 tokens", "2048 tokens", "819k tokens", "819k tokens", "0 tokens", "0 tokens"]
    assert desk.get_attribute(".tip", "role") == "status" and chart.get_attribute("role") == "application"
    desk.keyboard.press("Escape")
    assert desk.evaluate(TIP) == []


def test_a_click_on_a_legend_hides_a_curve_and_another_shows_it(desk):
    """Also by keys; what is hidden is not what the pointer finds."""
    key = desk.locator("#model-1-repeats-1 .key").first
    hidden = desk.locator("#model-1-repeats-1 .off")
    key.click()
    assert hidden.count() == 2 and key.get_attribute("aria-pressed") == "false"
    assert not any(each.is_visible() for each in hidden.all())
    assert over(desk, "model-1-repeats-1", 0.3, 0.2) == []
    key.focus()
    desk.keyboard.press("Enter")
    assert hidden.count() == 0 and key.get_attribute("aria-pressed") == "true"
    desk.locator("#model-1-composition-1 .key").first.click()
    assert desk.locator("#model-1-composition-1 .mark:not(.off)").count() == 4  # the other role, and no edge
    desk.locator("#model-1-composition-1 .key").first.click()


def test_dark_is_as_the_reader_has_it_and_one_click_away(desk):
    """The page, the texts of charts and the middle of signed colours turn with a click, and back with another."""
    seen = """() => {
      const colour = (selector) => getComputedStyle(document.querySelector(selector))[selector === 'body' ? 'backgroundColor' : 'fill'];
      return ['body', '#model-1-heads-6 text', '#model-1-heads-6 .cells path'].map(colour);
    }"""
    dark, light = desk.evaluate(seen), None
    assert dark[0] == "rgb(14, 18, 23)" and dark[1] == "rgb(152, 164, 179)"
    desk.evaluate("document.querySelector('.theme').click()")
    light = desk.evaluate(seen)
    assert light[0] == "rgb(250, 250, 248)" and light[1] == "rgb(91, 102, 117)" and light[2] != dark[2]
    desk.evaluate("document.querySelector('.theme').click()")
    assert desk.evaluate(seen) == dark


def test_paper_is_light_and_shows_everything(desk):
    """Whoever looked at it in the dark prints it on white: charts too, evidence open, no navigation."""
    desk.emulate_media(media="print")
    desk.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert desk.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert all(each.is_visible() for each in desk.locator(".chart svg").all())
    assert desk.evaluate("getComputedStyle(document.querySelector('.chart text')).fill") == "rgb(85, 85, 85)"
    assert not desk.locator("nav").is_visible() and not desk.locator(".theme").is_visible()
    assert desk.locator(".evidence").first.is_visible()
    desk.evaluate("dispatchEvent(new Event('afterprint'))")
    desk.emulate_media(media="screen")
    assert desk.locator("details[open]").count() == 1


@pytest.mark.parametrize("look", LOOKS)
def test_all_is_there_without_scripts(opened, look):
    """Every chart as a picture, in the dark too; no button that does nothing; evidence that opens."""
    page = opened("all", **LOOKS[look], java_script_enabled=False)
    pictures = page.locator(".chart svg")
    assert pictures.count() == 12 + 3 + 2  # the run and the nasty model have a map from their verdicts
    assert all(each.is_visible() for each in pictures.all())
    assert not page.locator(".theme").is_visible() and not page.locator(".copy").first.is_visible()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.locator("summary", has_text="Evidence").first.click()
    assert page.locator(".evidence").first.is_visible()
    colour = {"desk": "rgb(14, 18, 23)", "phone": "rgb(250, 250, 248)"}[look]
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == colour


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
