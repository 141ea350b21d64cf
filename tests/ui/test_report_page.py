"""The report in a real browser: loads nothing, fits a phone, has contrast, toggles hide, keys reach everything."""

import itertools
import json
import shutil
import subprocess
import sys

import pytest

from tests.ui.browsing import missing, open_page

pytestmark = pytest.mark.services
PHONE, DESKTOP = 390, 1280
# Relative luminance by WCAG 2.2, of what `getComputedStyle` says.
CONTRAST = """
const rgb = text => text.match(/[\\d.]+/g).map(Number);
const luminance = text => rgb(text).slice(0, 3).map(part => part / 255)
  .map(part => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
  .reduce((sum, part, at) => sum + part * [0.2126, 0.7152, 0.0722][at], 0);
const ratio = (one, other) => {
  const [dark, light] = [luminance(one), luminance(other)].sort((a, b) => a - b);
  return (light + 0.05) / (dark + 0.05);
};
const ground = node => {
  for (; node; node = node.parentElement) {
    const colour = getComputedStyle(node).backgroundColor;
    if (colour !== 'rgba(0, 0, 0, 0)') return colour;
  }
};
return [...document.querySelectorAll('h1, h2, h3, p, th, td, li, a, figcaption, label, legend, summary, svg text')]
  .map(node => {
    const style = getComputedStyle(node);
    const svg = node.closest('svg');
    const box = svg && node.previousElementSibling;
    const colour = svg ? style.fill : style.color;
    const behind = box && box.tagName === 'rect' ? getComputedStyle(box).fill : ground(svg ? svg.parentElement : node);
    return [ratio(colour, behind), node.textContent.trim().slice(0, 40)];
  }).filter(([value, text]) => text && value < 4.5);
"""


def fits_the_window(page):
    # Tables scroll inside of their own boxes; the page itself does not.
    assert page.driver.execute_script("return document.documentElement.scrollWidth <= innerWidth + 1")


def loads_nothing(page):
    script = "return performance.getEntriesByType('resource').map(entry => entry.name)"
    assert page.driver.execute_script(script) == []
    errors = [own for own in page.driver.get_log("browser") if own["level"] == "SEVERE"]
    assert errors == []


def text_stands_out(page):
    assert page.driver.execute_script(CONTRAST) == []


def headings_go_down_in_steps(page):
    script = "return [...document.querySelectorAll('h1, h2, h3, h4')].map(node => Number(node.tagName[1]))"
    levels = page.driver.execute_script(script)
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


def contents_lead_to_sections(page):
    script = "return [...document.querySelectorAll('nav a')].map(a => [a.innerText, !!document.querySelector(a.hash)])"
    links = dict(page.driver.execute_script(script))
    assert all(links.values())
    assert {"Recommended", "Summary", "Roofline", "Audit of the estimators", "Limits"} <= set(links)


def a_toggle_hides_a_model_everywhere(page):
    shown = "[...document.querySelectorAll('main th[scope=row]')].filter(n => n.innerText === 'h2' && n.offsetParent)"
    drawn = "[...document.querySelectorAll('figure svg g')].filter(n => n.textContent.startsWith('h2:'))"
    visible = f"{drawn}.filter(n => getComputedStyle(n).display !== 'none')"
    count = lambda what: page.driver.execute_script(f"return {what}.length")  # noqa: E731
    assert count(shown) >= 2
    assert count(visible) == count(drawn) >= 2
    box = "[...document.querySelectorAll('label')].find(n => n.innerText.trim() === 'h2').querySelector('input')"
    page.driver.execute_script(f"{box}.click()")
    assert (count(shown), count(visible)) == (0, 0)
    page.driver.execute_script(f"{box}.click()")
    assert count(shown) >= 2


def keys_reach_links_boxes_and_tables(page):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    body = page.driver.find_element(By.TAG_NAME, "body")
    page.driver.execute_script("document.activeElement.blur(); scrollTo(0, 0)")
    seen = set()
    for _ in range(60):
        body.send_keys(Keys.TAB)
        focused = "const n = document.activeElement; return [n.tagName, n.className, n.type || '']"
        tag, name, kind = page.driver.execute_script(focused)
        seen.add(name or kind or tag.lower())
        outline = page.driver.execute_script("return getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none"
        if {"skip", "a", "scroll", "checkbox"} <= seen:
            return
    raise AssertionError(f"the Tab key reached only {seen}")


def marks_say_their_figures(page):
    script = "return [...document.querySelectorAll('figure svg title')].map(n => n.textContent)"
    titles = page.driver.execute_script(script)
    assert any(title.startswith("h2: accuracy") for title in titles)
    assert any(title.startswith("H-30 (published)") for title in titles)
    assert any(title.startswith("layer 0: ") for title in titles)


def builds_have_hashes(page):
    page.driver.execute_script("document.querySelector('#builds').open = true")
    text = page.text
    assert "evals/h2" in text
    assert "throughput/teacher" in text


CHECKS = (
    fits_the_window,
    loads_nothing,
    text_stands_out,
    headings_go_down_in_steps,
    contents_lead_to_sections,
    a_toggle_hides_a_model_everywhere,
    keys_reach_links_boxes_and_tables,
    marks_say_their_figures,
    builds_have_hashes,
)


@pytest.mark.skipif(missing() is not None, reason=str(missing()))
def test_report(world, tiny_recipe_file, tmp_path, subtests):
    home = shutil.copytree(world, tmp_path / "home")
    command = [
        sys.executable,
        "-m",
        "apriel_assets.cli",
        "report",
        "--recipe",
        tiny_recipe_file,
        "--home",
        home,
    ]
    subprocess.run([*map(str, command), "--json"], check=True, capture_output=True)
    with open_page("", tmp_path / "profile", width=DESKTOP) as page:
        for width in (DESKTOP, PHONE):
            for scheme in ("light", "dark"):
                size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width == PHONE}
                page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
                media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
                page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
                page.driver.get((home / "report.html").as_uri())
                for check in CHECKS:
                    with subtests.test(f"{check.__name__} {json.dumps([width, scheme])}"):
                        check(page)
