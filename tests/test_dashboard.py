"""The page at /dashboard in a real Chromium: its figures are the API's, it follows what happens, and stays smooth."""

import io
import itertools
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import pytest
from browser import Page, browsing, needs_chromium
from parts import encoded, images
from parts_dashboard import CONSENT, FIRST, Asking, a_day, judged, settled, unsure, version
from parts_operator import Server, bird, serving, tell_epoch
from PIL import Image

from lifelist import Client
from lifelist.deploy import dashboard
from lifelist.monitoring import notices
from lifelist.monitoring.figures import HOUR
from lifelist.monitoring.intervals import Change, Share
from lifelist.serving import keys

pytestmark = pytest.mark.timeout(180)
MANY = 1000  # classes


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a day behind it, and images that wait for a label."""
    with serving(tmp_path_factory.mktemp("home"), review=CONSENT) as made:
        a_day(made)
        assert unsure(made) >= 10
        yield made


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    with browsing() as page:
        page.view(1400, 900)
        yield page


@pytest.fixture
def page(site: Server, browser: Page) -> Iterator[Page]:
    """The page of that server, with all that it shows; without a complaint on its console to the end."""
    browser.problems.clear()
    browser.open(f"{site.url}/dashboard")
    with Asking(site):
        settled(browser)
    yield browser
    browser.open("about:blank")
    assert browser.problems == []


def api(site: Server, path: str, **asked: object) -> dict[str, object]:
    answer = httpx.get(f"{site.url}{path}", params=asked, trust_env=False)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


# ------------------------------------------------------------------------------------------------ files and routes


def test_every_file_of_the_page_is_served_with_a_strict_policy_and_asked_for_again_by_its_tag(site: Server) -> None:
    with httpx.Client(base_url=site.url, trust_env=False) as http:
        for path in ("/dashboard", *(f"/dashboard/{name}" for name in dashboard.assets())):
            answer = http.get(path)
            assert answer.status_code == 200
            assert "default-src 'none'" in answer.headers["content-security-policy"]
            assert "unsafe" not in answer.headers["content-security-policy"]
            again = http.get(path, headers={"If-None-Match": answer.headers["etag"]})
            assert (again.status_code, again.content) == (304, b"")
        assert http.get("/dashboard/../settings.py").status_code == 404
        assert http.get("/dashboard/nothing.js").json() == {
            "error": "there is no /dashboard/nothing.js; see /dashboard"
        }


def test_nothing_of_the_page_comes_from_elsewhere_or_stands_in_its_markup() -> None:
    for name, asset in dashboard.assets().items():
        text = asset.content.decode()
        outside = set(re.findall(r"https?://[^\"' )]+", text)) - {"http://www.w3.org/2000/svg"}
        assert not outside, name
    markup = dashboard.assets()["index.html"].content.decode()
    assert not re.search(r"\son\w+=|<style|style=|<script(?![^>]*src=)", markup)


def test_exemplars_are_one_picture_side_by_side_of_which_the_browser_keeps_a_copy(site: Server) -> None:
    live = site.workshop.live
    assert live is not None
    counts = api(site, f"/v1/versions/{live.version}/exemplars")
    assert counts == {"version": live.version, "classes": [{"id": FIRST + k, "images": 12} for k in range(10)]}
    with httpx.Client(base_url=site.url, trust_env=False) as http:
        answer = http.get(f"/v1/versions/{live.version}/exemplars/{FIRST}", params={"most": 3})
        assert answer.headers["content-type"] == "image/webp"
        size = live.preprocess.size
        assert Image.open(io.BytesIO(answer.content)).size == (3 * size, size)
        tag = {"If-None-Match": answer.headers["etag"]}
        assert (
            http.get(f"/v1/versions/{live.version}/exemplars/{FIRST}", params={"most": 3}, headers=tag).status_code
            == 304
        )
        missing = http.get("/v1/versions/1/exemplars/1")
        assert missing.status_code == 404
        assert (
            missing.json()["error"] == "version 1 keeps no exemplar of class 1 (any more); see /v1/versions/1/exemplars"
        )


def test_confusions_are_those_that_probes_and_labels_saw(site: Server) -> None:
    live = site.workshop.live
    assert live is not None
    found = api(site, "/v1/quality/confusions", limit=1000)
    assert found["version"] == live.version
    pairs = found["pairs"]
    assert isinstance(pairs, list)
    assert [pair["images"] for pair in pairs] == sorted((pair["images"] for pair in pairs), reverse=True)
    assert found["images"] == 10 * 200
    assert found["right"] == 2000 - sum(pair["images"] for pair in pairs)
    assert all(pair["low"] <= pair["ratio"] == pair["images"] / 200 <= pair["high"] for pair in pairs)
    with Client(site.url) as client:
        said = client.classify(bird(0), 1)
        prediction, answered = said["images"][0]["prediction_id"], said["images"][0]["classes"][0]["name"]
        other = next(name for name in ("zero", "one") if name != answered)
        client.feedback(prediction, other)
        labelled = api(site, "/v1/quality/confusions", source="feedback")
        assert [(p["truth"]["name"], p["predicted"]["name"], p["images"]) for p in labelled["pairs"]] == [
            (other, answered, 1)
        ]  # type: ignore[attr-defined]


def test_bias_is_seen_before_the_correction_and_gone_after_it(site: Server) -> None:
    found = api(site, "/v1/quality/bias")
    rows = {row["of"]: row for row in found["rows"]}  # type: ignore[attr-defined]
    assert found["new"] == [FIRST + 8, FIRST + 9]
    assert rows["linear_uncorrected"]["shown"] == rows["linear"]["shown"] == 0.2
    assert rows["linear_uncorrected"]["low"] > 0.2
    assert rows["linear"]["low"] < 0.2 < rows["linear"]["high"]
    assert rows["probe"]["images"] == 2000


def test_a_curve_of_one_class_is_of_that_class(site: Server) -> None:
    found = api(site, "/v1/quality/curve", group="class", class_id=FIRST + 2)
    assert {(p["class_id"], p["name"]) for p in found["points"]} == {(FIRST + 2, "two")}  # type: ignore[attr-defined]
    wrong = httpx.get(f"{site.url}/v1/quality/curve", params={"class_id": 1}, trust_env=False)
    assert (wrong.status_code, wrong.json()) == (400, {"error": "class_id is one of group=class; give both"})


# ---------------------------------------------------------------------------------------------------- in Chromium


@needs_chromium
def test_the_figures_on_the_page_are_those_of_the_api(site: Server, page: Page) -> None:
    live = site.workshop.live
    assert live is not None
    said: Any = api(site, "/v1/quality")
    found = [one for one in said["figures"] if one["version"] == live.version]
    doubts = [f"Doubt the estimate: {one['message']}" for one in said["doubts"] if one["version"] == live.version]
    assert page.each("#accuracy-now .note", "e.innerText") == doubts
    told = "[e.dataset.figure, Number(e.dataset.ratio), Number(e.dataset.images), e.innerText]"
    shown = {name: (ratio, count, text) for name, ratio, count, text in page.each("#accuracy-now .figure", told)}
    groups = {f"{one['source']}/{one['group']}": one for one in found if one["group"] in ("all", "old", "new")}
    groups = {name: one for name, one in groups.items() if one["ratio"] is not None}
    assert set(shown) == set(groups)
    assert len(shown) >= 12
    for name, one in groups.items():
        ratio, count, text = shown[name]
        assert (ratio, count) == (one["ratio"], one["images"])
        assert f"{100 * one['ratio']:.1f} %" in text
        assert f"{100 * one['low']:.1f} … {100 * one['high']:.1f} %, n {one['images']:,}" in text

    of_class = {
        one["class_id"]: one
        for one in api(site, "/v1/quality", group="class")["figures"]
        if one["version"] == live.version and one["source"] == "probe"
    }  # type: ignore[attr-defined]
    told = "[Number(e.dataset.row), Number(e.dataset.ratio), Number(e.dataset.images)]"
    rows = page.each("#classes-table tbody tr[data-row]", told)
    assert sorted(rows) == sorted([k, one["ratio"], one["images"]] for k, one in of_class.items())
    assert [ratio for _, ratio, _ in rows] == sorted(ratio for _, ratio, _ in rows)  # the worst first

    earlier: Any = api(site, "/v1/quality", group="class", source="probe", since="48h", until="24h")
    told = "[Number(e.closest('tr').dataset.row), e.className, e.parentElement.innerText]"
    trends = page.each("#classes-table [data-trend]", told)
    assert len(trends) == len(earlier["figures"]) == 6
    for class_id, kind, text in trends:  # none rises or falls that may do so by chance
        (then,) = (one for one in earlier["figures"] if one["class_id"] == class_id)
        sides = (Share.of(one["ratio"] * one["images"], one["images"]) for one in (then, of_class[class_id]))
        change = Change.between(*sides)
        assert change is not None
        assert kind == ("falls" if change.high < 0 else "rises" if change.low > 0 else "quiet")
        signed = [f"{100 * value:+.1f}".replace("-", "−") for value in (change.difference, change.low, change.high)]
        assert text.removeprefix("▼ ").removeprefix("▲ ").split() == [signed[0], signed[1], "…", signed[2]]

    pairs = api(site, "/v1/quality/confusions", limit=30)["pairs"]
    assert isinstance(pairs, list)
    told = page.each("#confusions tbody tr", "[...e.cells].slice(0, 3).map(c => c.innerText)")
    assert told == [[p["truth"]["name"], p["predicted"]["name"], str(p["images"])] for p in pairs]
    bias = {row["of"]: row["ratio"] for row in api(site, "/v1/quality/bias")["rows"]}  # type: ignore[attr-defined]
    assert dict(page.each("#bias .figure", "[e.dataset.figure.slice(5), Number(e.dataset.ratio)]")) == bias
    tests = api(site, "/v1/drift")["tests"]
    assert page.run("document.querySelectorAll('#drift tbody tr').length") == len(tests)  # type: ignore[arg-type]
    assert page.text("#alarm-count") == "1 alarm"
    assert "epoch 7 of 20" in page.text("#increments")
    assert page.run("document.querySelectorAll('#chart-accuracy .mark').length") >= 2


@needs_chromium
def test_traffic_on_the_page_is_what_the_counters_gained(site: Server, page: Page) -> None:
    """Every request once, those that are refused too; quantiles as Prometheus reads them."""

    def counted() -> float:
        text = httpx.get(f"{site.url}/metrics", trust_env=False).text
        return sum(
            float(value) for value in re.findall(r'^lifelist_requests_total\{.*code="200".*\} (\S+)$', text, re.M)
        )

    page.reload()
    page.wait("document.querySelector('#traffic-now strong')?.innerText === '–'")
    before = counted()
    with httpx.Client(base_url=site.url, trust_env=False) as http:
        for _ in range(40):
            assert http.post("/v1/classify", content=bird(0)).status_code == 200
        assert http.post("/v1/classify", content=b"none").status_code == 400
    assert counted() - before == 40
    page.wait("document.querySelector('#chart-rate details') !== null")
    page.run("document.querySelector('#chart-rate details').open = true")
    deadline = time.monotonic() + 20
    while (seen := sum(page.each("#chart-rate tbody tr", "parseInt(e.cells[4].innerText)"))) < 41:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert seen == 41
    counts = {(0.5, "{'0.1': 10, '0.2': 30, '+Inf': 30}"): 0.125, (0.99, "{'0.1': 10, '+Inf': 10}"): 0.099}
    counts |= {(0.5, "{'+Inf': 0}"): None, (0.99, "{'1': 90, '+Inf': 100}"): 1}
    for (share, upto), expected in counts.items():
        found = page.run(f"import('/dashboard/traffic.js').then(m => m.quantile({share}, {upto}))")
        assert found == (expected if expected is None else pytest.approx(expected))


@needs_chromium
def test_a_line_breaks_where_another_version_answered_in_between(site: Server, page: Page) -> None:
    def runs(*points: tuple[int, int]) -> list[list[int]]:
        """Of (minute, version): the minutes of each run."""
        figures = [{"at": f"2026-11-28T12:{at:02}:00Z", "version": of, "ratio": 1, "images": 1} for at, of in points]
        script = f"import('/dashboard/charts.js').then(m => m.runs({json.dumps(figures)}))"
        found = page.run(f"{script}.then(all => all.map(run => run.map(p => new Date(p.at).getMinutes())))")
        assert isinstance(found, list)
        return found

    assert runs((0, 1), (1, 1), (1, 2), (2, 2), (9, 2)) == [[0, 1], [1, 2, 9]]
    assert runs((0, 1), (5, 2), (6, 2), (9, 1), (10, 1)) == [[0], [5, 6], [9, 10]]  # it was gone back to
    assert runs((0, 1), (0, 2), (1, 1), (1, 2)) == [[0, 1], [0, 1]]  # both, at the same time


@needs_chromium
def test_a_swap_appears_within_seconds_made_by_others_or_by_the_page(site: Server, page: Page) -> None:
    live = site.workshop.live
    assert live is not None
    assert page.text("#live") == f"version {live.version}"
    with Client(site.url) as client:
        client.promote(live.version - 1)
    began = time.monotonic()
    notices.tell(site.workshop.store, "swap", "as the watcher tells it", live.version - 1)
    page.wait(f"document.querySelector('#live').innerText === 'version {live.version - 1}'", 10)
    page.wait(
        f"document.querySelector('#chart-accuracy').innerHTML.includes('>v{live.version - 1}</text>')",
        10,
    )
    assert time.monotonic() - began < 10
    page.wait(f"document.querySelector('tr.live').dataset.version === '{live.version - 1}'", 10)

    page.click("#roll-back")
    assert f"Make version {live.version} live again" in page.text("#sure")
    page.click("#sure-go")
    page.wait(f"document.querySelector('#live').innerText === 'version {live.version}'", 10)
    page.click(f"[data-key=promote-{live.version + 1}]")  # which the gate refused
    assert "The gate refused it" in page.text("#sure")
    page.click("#sure-go")
    page.wait(f"document.querySelector('#live').innerText === 'version {live.version + 1}'", 10)
    assert site.workshop.live is not None
    assert site.workshop.live.version == live.version + 1
    with Client(site.url) as client:
        client.promote(live.version)


@needs_chromium
def test_of_swaps_that_stand_close_on_a_chart_the_last_is_named(site: Server, page: Page) -> None:
    for number in (3, 4, 2):
        notices.tell(site.workshop.store, "swap", "close to the next", number)
    page.open(f"{site.url}/dashboard")
    page.wait("document.querySelector('#chart-accuracy').innerHTML.includes('>v2</text>')", 10)
    boxes = page.each("#chart-accuracy .mark text", "[e.getBoundingClientRect().left, e.getBoundingClientRect().right]")
    assert len(boxes) < len(page.each("#chart-accuracy .mark line", "1"))
    assert all(right < left for (_, right), (left, _) in itertools.pairwise(sorted(boxes)))


@needs_chromium
def test_training_goes_on_before_ones_eyes(site: Server, page: Page) -> None:
    running = site.workshop.store.open_rollouts()[0]
    tell_epoch(site.workshop, running, 8, 20)
    page.wait("document.querySelector('#increments').innerText.includes('epoch 8 of 20')", 5)
    assert page.run("document.querySelector('#increments progress').value") == 8


@needs_chromium
def test_the_page_is_used_by_keys_alone_and_names_what_it_shows(page: Page) -> None:
    named = "e.innerText || e.labels?.length || e.getAttribute('aria-label') || e.getAttribute('aria-labelledby')"
    shown = page.each('button, select, input, [tabindex="0"]', f"!e.offsetParent || !!({named}) || e.outerHTML")
    assert len(shown) > 30
    assert set(shown) == {True}
    head = "!!e.caption && [...e.tHead.rows[0].cells].every(c => c.scope === 'col')"
    assert set(page.each("table", head)) == {True}
    assert set(page.each("section", "!!document.getElementById(e.getAttribute('aria-labelledby'))")) == {True}
    page.run("document.querySelector('#classes-table th[data-by=name] button').focus()")
    page.key("Enter", 13)
    assert page.run("document.querySelector('th[data-by=name]').getAttribute('aria-sort')") == "ascending"
    page.run("document.querySelector('#chart-accuracy svg').focus()")
    page.key("ArrowLeft", 37)
    first = page.text("#chart-accuracy output")
    assert re.search(r"^\d\d:\d\d: (labels|audit|probe|estimated) \d+ % \(\d+ % … \d+ %\), n \d+", first)
    page.key("ArrowLeft", 37)
    assert page.text("#chart-accuracy output") != first
    page.run("document.querySelector('#chart-accuracy details').open = true")
    assert page.wait("document.querySelectorAll('#chart-accuracy tbody tr').length") > 100


@needs_chromium
def test_a_class_opens_with_its_curve_and_its_exemplars(page: Page) -> None:
    page.click(f"[data-class='{FIRST + 3}']")
    page.wait("document.querySelector('#class-detail').open && document.querySelector('#chart-class svg') !== null")
    assert page.text("#class-detail-title") == f"three (class {FIRST + 3})"
    page.wait("document.querySelector('#class-exemplars img')?.complete")
    page.key("Escape", 27)
    page.wait("!document.querySelector('#class-detail').open")


# What the corner shows can be judged: its picture is there.
READY = "document.querySelector('#review-stage').getAttribute('aria-busy') === 'false'"


def at_the_corner(page: Page) -> None:
    """Whoever uses the keys has come to the images to label."""
    page.wait("!document.querySelector('#review-stage').hidden")
    page.run("document.querySelector('#review-image').focus()")
    page.wait(READY)


def reviews(site: Server) -> Any:
    return api(site, "/v1/review", limit=1000)


def labels(site: Server) -> dict[str, int]:
    """What was counted of feedback, by outcome."""
    text = httpx.get(f"{site.url}/metrics", trust_env=False).text
    rows = re.findall(r'^lifelist_feedback_total\{outcome="(\w+)"\} (\S+)$', text, re.M)
    return {outcome: int(float(value)) for outcome, value in rows}


def kept_of(site: Server, class_id: int) -> int:
    """Examples of a class, by the API."""
    images: Any = api(site, f"/v1/classes/{class_id}")["images"]
    return sum(images.values())


def chosen(row: Any) -> tuple[int, Any]:
    """A class to give by its key, and that key's place: one that is not being learned just now, as `zero` is."""
    return next((k, one) for k, one in enumerate(row["suggestions"]) if one["id"] != FIRST)


@needs_chromium
def test_a_key_labels_an_image_which_becomes_feedback_and_an_example_and_the_next_one_comes(
    site: Server, page: Page
) -> None:
    before, counted = reviews(site), labels(site)
    first, second, third = before["images"][:3]
    asked = "performance.getEntriesByType('resource').filter(e => e.name.endsWith('/image')).length"
    assert page.run(asked) == 0  # no image of a user is fetched before somebody looks there
    at_the_corner(page)
    assert page.run(asked) == 1
    assert page.run("document.querySelector('#review-image img').naturalWidth") == 16
    assert f"Answered {first['predicted']['name']}" in page.text("#review-facts")
    assert len(page.each("#review-facts .tag", "e.innerText")) == len(first["why"])
    told = page.each("#review-choices button", "[e.innerText.split(/\\s+/)[1], e.querySelector('small').innerText]")
    assert [name for name, _ in told] == [one["name"] for one in first["suggestions"]]
    probable = [one["probability"] for one in first["suggestions"]]
    assert [share for _, share in told] == ["by nearest mean" if p is None else f"{100 * p:.1f} %" for p in probable]

    place, truth = chosen(first)
    kept = kept_of(site, truth["id"])
    key = str(place + 1), 49 + place
    page.key(*key)
    assert page.text("#review-said") == f"Labelled {truth['name']}."
    page.wait(f"document.querySelector('#review-facts').innerText.includes('Answered {second['predicted']['name']}')")
    page.key("u", 85)  # undone: nothing was sent
    assert page.text("#review-said") == f"Taken back: labelled {truth['name']}."
    page.wait(READY)
    assert reviews(site) == before
    page.key("e", 69)
    page.key(*key)
    assert page.text("#review-said") == f"Labelled {truth['name']}, and kept as an example."
    page.wait(READY)
    page.key("s", 83)  # the second is skipped, with which the first is sent
    page.wait(READY)
    page.wait("document.querySelector('#review-count').innerText.endsWith('1 labelled and 0 skipped of late')", 5)
    after = reviews(site)
    assert (after["open"], after["labelled"], after["skipped"]) == (before["open"] - 1, 1, 0)
    assert kept_of(site, truth["id"]) == kept + 1
    outcome = "correct" if truth["id"] == first["predicted"]["id"] else "wrong"
    assert labels(site)[outcome] == counted[outcome] + 1
    assert f"Answered {third['predicted']['name']}" in page.text("#review-facts")
    page.open("about:blank")  # what was held back goes as the page does
    deadline = time.monotonic() + 10
    while reviews(site)["skipped"] != 1:
        assert time.monotonic() < deadline
        time.sleep(0.05)


@needs_chromium
def test_what_the_server_refuses_is_told_and_the_image_comes_again(site: Server, page: Page) -> None:
    before, counted = reviews(site), labels(site)
    second = before["images"][1]
    at_the_corner(page)
    page.key("t", 84)
    page.call("Input.insertText", text="wrn")
    page.key("1", 49)  # in a text field, keys are text
    assert page.text("#review-said") == ""
    assert page.text("#review-hint") == "No class is named “wrn”. Tick the box to make it a new one."
    page.key("Enter", 13)
    page.wait(READY)
    page.wait("document.querySelector('#review-problem').innerText !== ''")  # it is sent by itself, after a while
    assert page.text("#review-problem").startswith("Not taken for “wrn”: no class is named 'wrn'")
    page.problems[:] = [one for one in page.problems if "404" not in one]  # which the browser logs by itself
    assert f"Answered {second['predicted']['name']}" in page.text("#review-facts")  # what is shown stays
    page.key("Escape", 27)
    page.key("s", 83)
    page.wait("document.querySelector('#review-facts').innerText.includes('It comes again: “wrn” was not taken')")
    page.key("u", 85)
    page.wait(READY)
    assert reviews(site) == before
    assert labels(site) == counted


@needs_chromium
def test_nothing_is_wider_than_a_phone(page: Page) -> None:
    page.view(390, 844, phone=True)
    page.wait("document.documentElement.scrollWidth === 390 && innerWidth === 390", 5)
    assert page.run("document.documentElement.scrollWidth") == 390
    page.view(1400, 900)


@needs_chromium
def test_with_keys_the_page_asks_for_one_and_shows_what_it_may(tmp_path: Path, browser: Page) -> None:
    browser.problems.clear()
    with serving(tmp_path) as guarded:
        made = {role: keys.add(guarded.settings.keys_file, role, [role]) for role in ("read", "operate")}
        time.sleep(1.1)  # processes look at the file once a second
        browser.open(f"{guarded.url}/dashboard")
        browser.wait("document.querySelector('#key')?.open")
        assert browser.text("#live") == "…"

        def use(key: str) -> None:
            browser.run(f"document.querySelector('#key-text').value = '{key}'")
            browser.click("#key-form button[type=submit]")

        use("lifelist_wrong")
        browser.wait("document.querySelector('#key-said').innerText.includes('not known here')")
        use(made["read"])
        browser.wait("document.querySelector('#live').innerText === 'version 1'")
        browser.wait("document.querySelector('#versions table') !== null")
        assert browser.run("document.querySelector('#review-part').hidden")  # images of users are for `operate`
        assert browser.run("document.querySelectorAll('#versions button').length") == 0
        assert browser.run("[sessionStorage.length, localStorage.length, document.cookie]") == [1, 0, ""]
        browser.click("#key-button")
        use(made["operate"])
        browser.wait("document.querySelector('#key-button').innerText === 'key: operate'")
        browser.wait(
            "document.querySelector('#review-none').innerText.includes('the setting review.keep_images is off')"
        )
        assert browser.run("document.querySelector('#review-stage').hidden")
        browser.open("about:blank")
    assert browser.problems == []


@needs_chromium
def test_a_thousand_classes_stay_smooth(tmp_path: Path, browser: Page) -> None:
    browser.problems.clear()
    with serving(tmp_path, review=CONSENT) as wide:
        shop = wide.workshop
        pictures = [encoded(one) for one in images(20)]
        names = [f"class {k:04}" for k in range(MANY)]
        made = version(
            shop,
            names,
            [k // 100 for k in range(MANY)],
            {name: pictures[k % 16 : k % 16 + 5] for k, name in enumerate(names)},
        )
        judged(shop, made, time.time() - 3 * HOUR, time.time())
        with Client(wide.url) as client:
            client.promote(made.version)
        browser.open(f"{wide.url}/dashboard")
        browser.wait("document.querySelector('#class-count')?.innerText === '1,000 classes'", 30)
        browser.wait("document.querySelectorAll('.pictures img:not([hidden])').length > 5")
        browser.wait("document.querySelector('#review-none').innerText.startsWith('Nothing waits')")
        browser.wait(f"document.querySelectorAll('#review-classes option').length === {MANY}")
        assert browser.run("document.querySelectorAll('#classes-table tr').length") < 60
        assert browser.run("document.querySelector('#classes-table').getAttribute('aria-rowcount')") == "1001"
        measured = browser.run("""new Promise(async (done) => {
            const still = [], moving = [], seen = new Set();
            const scroller = document.querySelector("#class-rows");
            const frame = async (times) => {
                const began = performance.now();
                await new Promise(requestAnimationFrame);
                times.push(performance.now() - began);
            };
            for (let k = 0; k < 120; k++) {
                await frame(still);
                scroller.scrollTop += 433;
                await frame(moving);
                for (const row of document.querySelectorAll("[data-row]")) seen.add(row.dataset.row);
            }
            await new Promise((resolve) => setTimeout(resolve, 200));
            const end = scroller.scrollTop + scroller.clientHeight >= scroller.scrollHeight - 1;
            done({ still, moving, seen: seen.size, end });
        })""")
        assert measured["end"]
        assert measured["seen"] == MANY  # whoever scrolls sees every class
        assert median(measured["moving"]) < 2 * median(measured["still"])  # no frame is left out for it
        sorting, showing_all = browser.run("""(() => {
            const timed = (act) => {
                const began = performance.now();
                act();
                document.body.offsetHeight;
                return performance.now() - began;
            };
            const row = document.querySelector("[data-row]"), all = document.createElement("table");
            const rows = Array.from({ length: 1000 }, () => row.cloneNode(true));
            return [
                timed(() => document.querySelector("th[data-by=name] button").click()),
                timed(() => { all.append(...rows); document.body.append(all); }),
            ];
        })()""")
        assert sorting < showing_all
        browser.run("document.querySelector('#class-filter').value = '0777'")
        browser.run("document.querySelector('#class-filter').dispatchEvent(new Event('input')) && null")
        assert browser.text("#class-count") == "1 of 1,000 classes"
        browser.open("about:blank")
    assert browser.problems == []
