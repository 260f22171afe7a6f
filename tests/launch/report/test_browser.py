"""The report as a reader sees it, in headless Chromium, from a run that really trained."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from launch.report.page import write
from tests.launch.conftest import SMALL

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[3]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [f"--{flag}" for flag in ("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run")]
FLAGS += [f"--disable-{what}" for what in ("background-networking", "component-update", "sync")]
ALWAYS_DRAWN = {"staircase", "loss", "validation", "learning_rates", "speed", "step_times", "treemap_0"}
ALWAYS_DRAWN |= {"bits_by_layer", "running_bpb", "gain_by_length"}
SIZES = {"wide": (1200, 900), "narrow": (360, 740)}
CONTRAST = """() => {
  const luminance = (color) => {
    const [r, g, b] = color.match(/[\\d.]+/g).map(Number).map((v) => v / 255)
      .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const background = luminance(getComputedStyle(document.body).backgroundColor);
  return ["body", "figcaption", "a:not(.skip)", "summary"].map((selector) => {
    const text = luminance(getComputedStyle(document.querySelector(selector)).color);
    return (Math.max(text, background) + 0.05) / (Math.min(text, background) + 0.05);
  });
}"""


def albatross(*arguments: object) -> None:
    command = [sys.executable, "-m", "launch.cli", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed (Debian: apt-get install chromium)")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (the extra dev)")
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield running
        running.close()


@pytest.fixture(scope="module")
def runs(prepared_data, tmp_path_factory) -> list[Path]:
    """Two runs of a few steps, of two seeds, packed and evaluated by the command line."""
    folders = []
    for seed in (1, 2):
        run = tmp_path_factory.mktemp("trained") / f"seed{seed}"
        settings = ["--training.max-steps", 12, "--training.validate-every-steps", 4, "--training.seed", seed]
        settings += ["--training.batch-tokens", 512, "--training.sequence-tokens", 64]
        settings += ["--training.micro-batch-tokens", 512, "--training.budget-seconds", 0]
        albatross("train", "tiny", "--data", prepared_data, "--out", run, "--num-gpus", 1, *SMALL, *settings)
        albatross("pack", run)
        modes = ["--mode", "plain", "sliding", "ttt", "--report", run / "report.json"]
        albatross("evaluate", run / "artifact.albatross", "--data", prepared_data, *modes)
        folders.append(run)
    return folders


@pytest.fixture(scope="module")
def pages(runs, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    for name, shown in (("one", runs[:1]), ("two", runs)):
        assert write(shown, folder / f"{name}.html") < 2_000_000
    return {name: folder / f"{name}.html" for name in ("one", "two")}


@pytest.fixture
def opened(browser, pages):
    """Opens a page; at the end nothing may have been said on the console, and nothing asked of a network."""
    contexts, complaints = [], []

    def open_page(name: str, size: str = "wide", scheme: str = "light"):
        width, height = SIZES[size]
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: request.url.startswith("file:") or complaints.append(request.url))
        page.goto(pages[name].as_uri())
        drawn(page)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


def drawn(page) -> None:
    page.wait_for_selector("body[data-drawn=true]", timeout=60_000)


def marks(page, figure: str) -> int:
    """Shapes with an area or a length in a figure's SVG, without axes and legends."""
    return page.evaluate(
        """(id) => [...document.querySelectorAll(`#chart_${id} svg :is(.mark-line, .mark-area, .mark-rect, .mark-symbol)
             path`)]
           .filter((path) => !path.closest(".role-axis, .role-legend") && path.getAttribute("d")?.length > 4)
           .map((path) => path.getBoundingClientRect()).filter((box) => box.width + box.height > 1).length""",
        figure,
    )


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["one", "two"])
def test_each_figure_is_drawn_and_nothing_complains(opened, name, scheme, size):
    page = opened(name, size, scheme)
    expected = ALWAYS_DRAWN | ({"treemap_1"} if name == "two" else set())
    assert {
        each.removeprefix("chart_") for each in page.eval_on_selector_all(".chart", "all => all.map(c => c.id)")
    } == (expected)
    assert {figure for figure in expected if marks(page, figure) == 0} == set()
    assert page.evaluate("document.documentElement.dataset.theme") == scheme
    assert page.evaluate("document.documentElement.scrollWidth") <= SIZES[size][0], "the page scrolls sideways"
    assert min(page.evaluate(CONTRAST)) >= 4.5


def test_curves_go_over_time_when_asked_by_keyboard(opened):
    page = opened("one")
    title = "#chart_loss svg .role-axis-title text"
    assert "training step" in page.locator(title).all_text_contents()
    page.focus('input[name="axis"][value="step"]')
    page.keyboard.press("ArrowRight")
    drawn(page)
    assert "training time in seconds" in page.locator(title).all_text_contents()


def test_theme_can_be_chosen_against_the_system(opened):
    page = opened("one", scheme="dark")
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.check('input[name="theme"][value="light"]')
    drawn(page)
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before == "rgb(15, 20, 25)"
    label = page.eval_on_selector("#chart_loss .role-axis-label text", "e => e.getAttribute('fill')")
    assert label == "#57606a"


def test_everything_can_be_reached_by_keyboard(opened):
    page = opened("one")
    reached = set()
    for _ in range(80):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("(e => e.closest('figure')?.id || e.name || e.className)(document.activeElement)"))
    assert {"skip", "axis", "theme"} <= reached
    assert {f"figure_{figure}" for figure in ALWAYS_DRAWN} <= reached


def test_values_of_a_figure_are_there_as_a_table(opened, runs):
    page = opened("two")
    page.focus('details[data-figure="staircase"] summary')
    page.keyboard.press("Enter")
    page.wait_for_selector("#figure_staircase table")
    cells = page.locator("#figure_staircase td").all_text_contents()
    assert {"trained", "averaged", "quantized"} <= set(cells)
    assert {"seed1", "seed2"} <= set(cells)
    assert "seed1" in page.locator("#comparison td").all_text_contents()
