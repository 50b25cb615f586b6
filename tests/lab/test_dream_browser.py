"""The dream page in Chromium, opened from a folder as by a double click.

Debian's `chromium`, or Chrome. Where there is neither, these tests are skipped, and fail if the
variable CI is set, as it is in .ci/run.
"""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from dreamjs import build_page, save_agents
from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

from lab import dream_page

PHONE = {"width": 380, "height": 760}


@pytest.fixture(scope="module")
def browser():
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if not found:
        reason = "NO BROWSER: the dream page is not tested (install chromium)"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    agents = save_agents(tmp_path_factory.mktemp("agents"))
    return (build_page(tmp_path_factory.mktemp("page"), agents) / "index.html").as_uri()


@pytest.fixture
def visit(browser, url):
    """Opens the page at a task; at the end nothing may have gone wrong, or left the folder."""
    faults, requests, contexts = [], [], []

    def visit(hash: str = "#cartpole", **options) -> Page:
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.on("console", lambda message: faults.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(url + hash)
        page.wait_for_function("session !== null")
        return page

    yield visit
    for context in contexts:
        context.close()
    home = url.rpartition("/")[0], "data:"
    assert not faults and all(address.startswith(home) for address in requests)


def stand_still(page: Page) -> None:
    """An episode begins, and the clock stops: the test itself makes the steps."""
    page.keyboard.press("p")
    page.keyboard.press("r")


def steps(page: Page, number: int) -> list[float]:
    """Makes that many steps, and says what the last action was."""
    page.evaluate("(number) => { for (let i = 0; i < number; i++) step(); }", number)
    return page.evaluate("Array.from(session.action)")


def pixels(page: Page, side: str) -> str:
    page.evaluate("paintAll(clock.last)")
    return page.evaluate(f"document.querySelector('#{side} canvas').toDataURL()")


@pytest.mark.parametrize("task", dream_page.TASKS)
def test_a_task_runs_by_itself_and_is_drawn(visit, task):
    page = visit(f"#{task}")
    page.wait_for_function("session.steps > 1")
    stand_still(page)
    start = {side: pixels(page, side) for side in ("real", "dream")}
    steps(page, 2)
    for side in ("real", "dream"):
        assert pixels(page, side) != start[side], side
    shown = page.locator("button[aria-pressed=true][data-task]")
    expect(shown).to_have_attribute("data-task", task)


def test_falling_asleep_and_waking_up_are_shown(visit):
    page = visit("#cartpole")
    stand_still(page)
    steps(page, 1)
    page.keyboard.press("z")
    expect(page.locator("#sleep-text")).to_have_text("Wake up")
    steps(page, 2)
    expect(page.locator("#dream-state")).to_have_text("asleep for 2 steps")
    expect(page.locator("#real-state")).to_contain_text("step 3 · return 6")  # 2 frames a choice
    expect(page.locator("#kl")).to_have_text("–")
    expect(page.locator("#error")).not_to_have_text("–")
    page.locator("#sleep").click()
    expect(page.locator("#kl")).not_to_have_text("–")


@pytest.mark.parametrize("task", ["pendulum", "lunar_lander"])
def test_keys_steer(visit, task):
    """Each key gives its own action, and the visitor has taken over."""
    page = visit(f"#{task}")
    stand_still(page)
    seen = set()
    for control in page.evaluate("task.controls.map((c) => c.key)"):
        page.keyboard.down(control)
        seen.add(tuple(steps(page, 1)))
        page.keyboard.up(control)
    idle = steps(page, 1)
    assert len(seen) == page.evaluate("task.controls.length")
    assert tuple(idle) not in seen
    expect(page.locator("[data-driver=visitor]")).to_have_attribute("aria-pressed", "true")
    if task == "lunar_lander":  # whose recording cannot be steered
        assert page.evaluate("session.asleep")
        return
    page.get_by_role("button", name="Letter keys").click()  # they can be switched off
    for key in ("z", "Space", "d", "g"):
        page.keyboard.press(key)
    assert steps(page, 1) == idle
    assert page.evaluate("[session.asleep, settings.ghosts]") == [False, False]
    page.keyboard.down("ArrowRight")
    assert tuple(steps(page, 1)) in seen


def test_the_mouse_steers_on_the_picture_and_a_finger_on_the_buttons(visit):
    page = visit("#acrobot", has_touch=True, viewport={"width": 380, "height": 760})
    stand_still(page)
    box = page.locator("#real canvas").bounding_box()
    for share, action in ((0.2, [1, 0, 0]), (0.8, [0, 0, 1])):
        page.mouse.move(box["x"] + share * box["width"], box["y"] + box["height"] / 2)
        page.mouse.down()
        assert steps(page, 1) == action
        page.mouse.up()
    assert steps(page, 1) == [0, 1, 0]
    button = page.get_by_role("button", name="Torque to the right")
    button.press("Space")  # a short press counts for one step
    assert [steps(page, 1) for _ in range(2)] == [[0, 0, 1], [0, 1, 0]]
    button.dispatch_event("pointerdown", {"pointerId": 1, "isPrimary": True})
    assert [steps(page, 1) for _ in range(2)] == [[0, 0, 1]] * 2
    button.dispatch_event("pointerup", {"pointerId": 1})
    assert steps(page, 1) == [0, 1, 0]


def test_motion_can_be_paused_and_is_at_first_where_the_visitor_wants_less_of_it(visit):
    page = visit("#pendulum")
    page.get_by_role("button", name="Pause").click()
    before = page.evaluate("session.steps")
    page.wait_for_timeout(300)
    assert page.evaluate("session.steps") == before
    still = visit("", reduced_motion="reduce")
    expect(still.locator("#status")).to_contain_text("Paused: press P.")
    still.get_by_role("button", name="Play", exact=True).click()
    expect(still.locator("#paused")).to_have_attribute("aria-pressed", "false")
    assert still.evaluate("opening.on")


def test_it_opens_with_a_show_until_a_visitor_takes_over(visit):
    page = visit("")
    assert page.evaluate("[session.steps > 7, settings.ghosts, location.hash]") == [True, True, ""]
    page.evaluate("settings.paused = true")  # a dream of these agents may end at any time
    for asleep in (True, False):
        page.evaluate("session.dream.over = false; opening.pass(5000)")
        assert page.evaluate("session.asleep") == asleep
        expect(page.locator("#status")).to_contain_text("closed" if asleep else "opened its eyes")
    page.keyboard.press("ArrowLeft")
    page.evaluate("advance(5000)")
    assert page.evaluate("[session.asleep, settings.driver]") == [False, "visitor"]


def test_the_address_holds_what_is_shown(visit):
    page = visit("#acrobot&driver=sampled&speed=0.25&ghosts=1")
    assert page.evaluate("[settings.driver, settings.speed, settings.ghosts]") == [
        "sampled",
        0.25,
        True,
    ]
    page.get_by_role("button", name="Agent, greedy").click()
    page.get_by_role("button", name="CartPole", exact=True).click()
    page.wait_for_function("session !== null")
    assert page.evaluate("location.hash") == "#cartpole&driver=greedy&speed=0.5&ghosts=1"


def test_what_sleep_has_cost_and_the_visitors_best_are_counted(visit):
    page = visit("#cartpole")
    stand_still(page)
    steps(page, 3)
    page.keyboard.press("z")
    page.evaluate("session.world.world.state[2] = 1")  # the pole lies
    steps(page, 1)
    expect(page.locator("#tally")).to_have_text("Awake for 3 steps; asleep, reality lasted 1.")
    page.keyboard.press("z")
    page.evaluate("agents.cartpole.score = 10")
    page.keyboard.down("a")
    expect(page.locator("#tally")).to_contain_text("Beat the agent: its mean return is 10.")
    page.evaluate("while (!session.real.over) step()")
    total = page.evaluate("session.real.total")
    beaten = ": you have beaten it!" if total > 10 else ": a draw!" if total == 10 else "."
    expect(page.locator("#tally")).to_contain_text(
        f"Your best return is {total:.0f}, the agent’s mean 10{beaten}"
    )


def test_the_last_steps_are_saved_as_a_gif(visit, tmp_path):
    page = visit("#pendulum")
    stand_still(page)
    page.evaluate("film.pictures = []")
    for _ in range(3):
        steps(page, 1)
        page.evaluate("paintAll(clock.last)")
    with page.expect_download() as download:
        page.get_by_role("button", name="Save this dream as a GIF").click()
    download.value.save_as(tmp_path / "dream.gif")
    assert download.value.suggested_filename == "pendulum_dream.gif"
    with Image.open(tmp_path / "dream.gif") as gif:
        assert (gif.n_frames, gif.size, gif.info["duration"]) == (3, (640, 236), 50)


def test_every_control_has_a_name_and_is_reached_by_the_tab_key(visit):
    page = visit("#lunar_lander")
    stand_still(page)
    wanted = page.evaluate(
        """[...document.querySelectorAll('button:not([hidden]), a')].map((element, i) => {
             element.dataset.number = i;
             return (element.getAttribute('aria-label') || element.textContent).trim();
           })"""
    )
    assert len(wanted) > 25 and all(wanted)
    reached = set()
    for _ in wanted:
        page.keyboard.press("Tab")
        reached.add(int(page.evaluate("document.activeElement.dataset.number")))
    assert reached == set(range(len(wanted)))
    assert page.locator("canvas:not([aria-label])").count() == 0


@pytest.mark.parametrize(("task", "width"), [("cartpole", 320), ("lunar_lander", PHONE["width"])])
def test_a_narrow_window_needs_no_scrolling_sideways(visit, task, width):
    page = visit(f"#{task}", viewport={**PHONE, "width": width}, has_touch=True)
    page.wait_for_function("session.steps > 1")
    page.keyboard.press("z")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for target in page.locator("a:visible, button:visible").all():
        assert target.bounding_box()["height"] >= 44, target.text_content()
    for name in ("#real canvas", "#dream canvas", "#sleep", "#steer button:first-child"):
        box = page.locator(name).bounding_box()
        assert box["y"] >= 0 and box["y"] + box["height"] <= PHONE["height"], name
        assert box["width"] > 44 or name.startswith("#steer"), name


def test_the_readmes_picture_can_be_taken_again(browser, tmp_path):
    """Reality and dream are what the page shows today; below them, other machines have other fonts.
    Without ghosts they would differ by 3, with other random numbers by 9, awake by 90."""
    dream_page.take_picture(browser, dream_page.PAGE, tmp_path / "picture.png")

    def stage(path: Path) -> np.ndarray:
        upper = Image.open(path).convert("RGB").crop((0, 0, 1072, 392))
        return np.asarray(upper.resize((268, 98)), np.float32)

    again = stage(tmp_path / "picture.png")
    committed = stage(dream_page.ROOT / "assets" / "dream_page.png")
    assert np.abs(again - committed).mean() < 2
