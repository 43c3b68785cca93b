"""The page with two models in headless Chromium: each draws in its own size and settings."""

import pytest
from selenium.webdriver.support.select import Select

from helpers.demo_page import Page, served
from helpers.workdirs import make_workdir


@pytest.fixture(scope="module")
def page(browser, tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    make_workdir(root / "small", {"denoiser.layers": 1})
    make_workdir(root / "large", {"denoiser.layers": 1, "data.image_size": 32, "process.T": 20})
    with served(f"--workdir={root / 'small'}", f"--workdir={root / 'large'}") as address:
        page = Page(browser, address)
        page.type("calls", 2)
        yield page


def choose(page, name):
    Select(page.find("models")).select_by_visible_text(name)


def newest(page):
    """(side of its first image, the line above it)."""
    page.find("draw").click()
    page.until(lambda: page.state == "running")
    page.finished()
    side = page.script("return document.querySelector('#images article img').naturalWidth")
    return side, page.all("#images article:first-child .head p")[0].text


def test_each_model_draws_in_its_size(page):
    assert page.find("choice").is_displayed()
    page.type("prompt", "a tree")
    page.type("num", 1)
    side, line = newest(page)
    assert side == 16 and line.endswith(", ancestral, small)")
    choose(page, "large")
    assert page.find("model").text.startswith("large: 32 × 32 pixels")
    assert page.find("prompt").get_attribute("value") == "a tree"
    assert page.find("calls").get_attribute("max") == "20"
    page.type("calls", 2)
    side, line = newest(page)
    assert side == 32 and line.startswith("a tree (") and line.endswith(", ancestral, large)")


def test_use_again_brings_back_the_model(page):
    choose(page, "large")
    oldest = page.all("#images article:last-child .head button")[0]
    assert oldest.text == "Use again"
    page.click(oldest)
    assert Select(page.find("models")).first_selected_option.text == "small"
    assert page.find("model").text.startswith("small: 16 × 16 pixels")


def test_the_editor_closes_for_images_of_another_size(page):
    choose(page, "small")
    page.click(page.all("#images article:last-child figure .row button")[1])
    page.until(lambda: page.find("editor").is_displayed())
    choose(page, "large")
    assert not page.find("editor").is_displayed()
