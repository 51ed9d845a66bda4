#!/usr/bin/env python3
"""Looks at the HTML report in a real browser: search, filters, keys, dark mode, a thousand units, and a hostile guest.

SAMPLE is the program `sample` (cargo build -p belljar-report --example sample). With --belljar and --fake-qemu, a suite is run
on the pretended QEMU, and the report that `belljar report` makes of it is looked at as well.
Needs chromium, chromedriver and Python's selenium.
"""

import argparse
import pathlib
import subprocess
import sys
import tempfile
import time
from urllib.parse import unquote, urlsplit

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "fake-qemu"))
from suite import Suite  # noqa: E402

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.chrome.service import Service

FLAGS = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
--disable-component-update --disable-sync --hide-scrollbars --window-size=1440,900""".split()
# Far more than a browser needs, even on a busy machine; a page that draws everything at once takes longer.
LOAD_LIMIT = 20.0


def browser(profile):
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for flag in FLAGS + [f"--user-data-dir={profile}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))


class Page:
    def __init__(self, driver, shots):
        self.driver = driver
        self.shots = shots

    def open(self, path, fragment=""):
        self.driver.get("about:blank")
        self.driver.get_log("browser")
        begin = time.monotonic()
        self.driver.get(path.as_uri() + fragment)
        self.wait(lambda: self.js("return document.documentElement.dataset.ready") == "true")
        return time.monotonic() - begin

    def wait(self, holds, limit=LOAD_LIMIT):
        end = time.monotonic() + limit
        while not holds():
            assert time.monotonic() < end, "the page did not get there"
            time.sleep(0.02)

    def js(self, script, *args):
        return self.driver.execute_script(script, *args)

    def keys(self, *keys):
        self.js("if (document.activeElement === null) document.body.focus()")
        self.driver.switch_to.active_element.send_keys(*keys)

    def text(self, selector):
        return self.js("return document.querySelector(arguments[0])?.textContent ?? ''", selector)

    def count(self, selector):
        return self.js("return document.querySelectorAll(arguments[0]).length", selector)

    def shot(self, name):
        if self.shots:
            self.driver.save_screenshot(str(self.shots / f"{name}.png"))

    def clean(self):
        bad = [e for e in self.driver.get_log("browser") if e["level"] == "SEVERE"]
        assert not bad, bad


def small(page, path):
    page.open(path)
    page.shot("list")
    total = len(page.js("return JSON.parse(document.getElementById('data').textContent).units"))
    assert page.count(".row") == total
    # Failures come first, and say why.
    assert page.js("return document.querySelector('.row').classList.contains('v-fail')")
    assert page.text(".row .why")

    page.keys("/")
    page.keys("RAID1")
    page.wait(lambda: page.count(".row") == 3)
    assert "3 of" in page.text("#count")
    assert "raid1" in page.js("return location.hash.toLowerCase()")
    page.keys(Keys.ESCAPE)
    page.wait(lambda: page.count(".row") == total)
    page.keys(Keys.ESCAPE)

    page.driver.find_element(By.CSS_SELECTOR, "[data-only=crash]").click()
    assert page.count(".row") == page.count(".row.v-crash") > 0
    assert page.js("return document.querySelector('[data-only=crash]').getAttribute('aria-pressed')") == "true"
    page.driver.find_element(By.CSS_SELECTOR, "[data-only=crash]").click()
    page.js("document.activeElement.blur()")

    page.keys("f")
    assert page.count(".row.v-pass") == 0 and page.count(".row") > 0
    page.keys("f")
    page.js("const s = document.getElementById('guest'); s.value = 'alpine'; s.dispatchEvent(new Event('change'))")
    assert page.count(".row") == page.js("return [...document.querySelectorAll('.marks')].filter((m) => m.textContent.includes('alpine')).length")
    page.keys(Keys.ESCAPE)
    assert page.count(".row") == total

    # By keyboard alone: down to a failure, into its details, back.
    page.keys("j")
    first = page.text("#detail-title")
    assert first and page.count("#tests [aria-current]") == 1
    page.shot("detail")
    page.keys(Keys.ARROW_DOWN)
    assert page.text("#detail-title") != first
    page.keys("k")
    assert page.text("#detail-title") == first
    page.keys(Keys.ENTER)
    assert page.js("return document.activeElement.id") == "detail-title"
    assert "test=" in page.js("return location.hash")
    page.keys(Keys.ESCAPE)
    assert page.js("return document.getElementById('detail').hidden")
    assert page.js("return document.activeElement.classList.contains('row')")

    page.keys("2")
    assert page.count(".matrix .cell") == total
    page.keys("j")
    page.shot("matrix")
    page.keys("3")
    assert page.count(".time-svg .run") >= total - 5
    page.shot("timeline")
    page.js("document.activeElement.blur()")
    page.keys("1")

    was = page.js("return getComputedStyle(document.body).backgroundColor")
    page.keys("d")
    assert page.js("return getComputedStyle(document.body).backgroundColor") != was
    page.shot("list-dark")
    page.keys("3")
    page.shot("timeline-dark")
    page.keys("1")
    page.keys("d")
    assert page.js("return getComputedStyle(document.body).backgroundColor") == was

    page.keys("?")
    assert page.js("return document.getElementById('keys').open")
    page.shot("keys")
    page.keys(Keys.ESCAPE)

    # A link to one test opens it.
    page.open(path, "#view=matrix&test=kernel/cgroup-memory.tap@debian-12")
    assert "cgroup" in page.text("#detail-title") and page.count(".cases tr") == 5
    page.shot("cases")
    names = page.js("""return [...document.querySelectorAll('button, input, select, [role=button]')].filter((e) => e.offsetParent)
        .filter((e) => !(e.getAttribute('aria-label') || e.textContent.trim() || e.closest('label'))).length""")
    assert names == 0, "something to press has no name"
    page.clean()

    page.driver.set_window_size(420, 800)
    page.open(path)
    page.shot("phone")
    assert page.js("return document.documentElement.scrollWidth <= innerWidth + 1"), "the page is wider than a phone"
    page.driver.set_window_size(1440, 900)


def system_dark(page, path):
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "dark"}]})
    page.js("try { localStorage.clear() } catch {}")
    page.open(path, "#test=storage/mkfs-ext4.sh@debian-12")
    channel = page.js("return getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0]")
    assert int(channel) < 60, channel
    page.shot("detail-dark")
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def thousand(page, path):
    took = page.open(path)
    print(f"1000 units: {took:.2f} s until ready, {path.stat().st_size >> 10} KiB")
    assert took < LOAD_LIMIT
    assert page.count(".row") < 500, "all rows were made at once"
    page.shot("big")
    # The rest comes as one scrolls, or goes there by keyboard.
    page.js("const m = document.getElementById('tests'); m.scrollTop = m.scrollHeight")
    page.wait(lambda: page.count(".row") >= 300)
    page.keys("/")
    page.keys("017-upgrade")
    page.wait(lambda: 0 < page.count(".row") < 10)
    page.keys(Keys.ESCAPE, Keys.ESCAPE)
    page.keys("3")
    page.wait(lambda: page.count(".time-svg .run") > 900)
    page.shot("big-timeline")
    page.keys("2")
    page.wait(lambda: page.count(".matrix tr") > 100)
    page.shot("big-matrix")
    page.clean()


def hostile(page, path):
    page.open(path)
    title = page.driver.title
    assert "owned" not in title
    elements = page.js("return document.scripts.length")
    assert elements == 2, elements
    for key in ["j"] * 40 + ["2", "j", "j", "3", "1"]:
        page.keys(key)
        assert page.driver.title == title
        assert page.js("return document.scripts.length") == 2
        assert page.count("img, iframe, object, embed, link, base") == 0
    page.shot("hostile")
    for url in page.js("return [...document.querySelectorAll('a[href]')].map((a) => a.protocol)"):
        assert url == "file:", url
    assert page.js("""return [...document.querySelectorAll('*')].every((e) => [...e.attributes].every((a) => !/^on/i.test(a.name)))""")
    # Whatever slipped through: the policy does not let it run.
    page.js("const s = document.createElement('script'); s.textContent = 'document.title = \"owned\"'; document.body.append(s)")
    assert page.driver.title == title, "the content security policy let a script run"


def cut(page, path):
    page.open(path)
    assert "cut off" in page.text("#headline")
    assert page.count(".row.v-unfinished") > 0
    page.shot("cut")
    page.clean()


def real(page, scratch, belljar, fake_qemu):
    """The whole way: tests, their event log, the report of it."""
    tests = [
        ("pass", "echo fine"),
        ("fail", "echo '<b>broken</b>'; echo x > $BELLJAR_OUT/left; exit 3"),
        ("skip", "echo not here; exit 77"),
        ("skipped", '# belljar: skip = "never"\n:'),
        ("flaky", "# belljar: retries = 1\n[ $BELLJAR_ATTEMPT = 2 ]"),
        ("crash", "poweroff"),
        ("tap", "# belljar: format = \"tap\"\necho 1..2; echo ok 1 - first; echo not ok 2 - second"),
    ]
    suite = Suite(scratch / "real", belljar, fake_qemu, tests)
    ran = suite.call(suite.command("-j2"))
    assert ran.returncode == 100, ran
    made = suite.call([str(belljar), "report", "last", "--format", "html", "--output", "report.html"])
    assert made.returncode == 0, made
    page.open(suite.workspace / "report.html")
    page.shot("real")
    assert page.count(".row") == len(tests)
    for outcome, count in {"pass": 1, "flaky": 1, "fail": 2, "crash": 1, "skip": 2}.items():
        assert page.count(f".row.v-{outcome}") == count, outcome
    page.open(suite.workspace / "report.html", "#test=s/fail@g")
    detail = page.text("#detail")
    assert "exit code 3" in detail and "<b>broken</b>" in detail and "left" in detail, detail
    # What it links to is there, beside the log.
    links = page.js("return [...document.querySelectorAll('#detail a[href]')].map((a) => a.href)")
    assert links, "the files of a failed test are not linked to"
    for link in links:
        assert pathlib.Path(unquote(urlsplit(link).path)).exists(), link
    page.open(suite.workspace / "report.html", "#test=s/tap@g")
    assert page.count(".cases tr") >= 2
    page.keys("3")
    page.wait(lambda: page.count(".time-svg .run") > 0)
    page.clean()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sample", type=pathlib.Path)
    parser.add_argument("--belljar", type=pathlib.Path)
    parser.add_argument("--fake-qemu", type=pathlib.Path)
    parser.add_argument("--shots", type=pathlib.Path, help="leave screenshots here")
    args = parser.parse_args()
    sample, shots = args.sample.resolve(), args.shots
    if shots:
        shots = shots.resolve()
        shots.mkdir(parents=True, exist_ok=True)
    cases = [("small", 54, [], small), ("small", 54, [], system_dark), ("thousand", 1000, [], thousand),
             ("hostile", 60, ["hostile"], hostile), ("cut", 60, ["cut"], cut)]
    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        driver = browser(scratch / "profile")
        try:
            for name, units, flags, check in cases:
                subprocess.run([sample, scratch / name, str(units), *flags], check=True)
                check(Page(driver, shots), scratch / name / "report.html")
                print(f"ok {check.__name__}", flush=True)
            if args.belljar and args.fake_qemu:
                real(Page(driver, shots), scratch, args.belljar.resolve(), args.fake_qemu.resolve())
                print("ok real", flush=True)
        finally:
            driver.quit()


if __name__ == "__main__":
    main()
