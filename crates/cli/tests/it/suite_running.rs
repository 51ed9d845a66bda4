//! In which order, how often and how many at the same time.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::harness::{Lab, Outcome, SUITE};

/// Fails so often, then passes; the count is kept where the pretended guest writes, on the host.
fn fails(times: u32) -> String {
    format!(
        "echo x >> $BELLJAR_TEST.tries; [ $(wc -l < $BELLJAR_TEST.tries) -gt {times} ] || {{ echo not yet; exit 1; }}"
    )
}

/// How many tries of these units ran at the same time at most.
fn overlap(outcome: &Outcome<'_>, of: impl Fn(&str) -> bool) -> usize {
    let (mut now, mut most) = (0_usize, 0);
    for event in outcome.events() {
        let wanted = event["unit"].as_str().is_some_and(&of);
        match event["kind"].as_str() {
            Some("attempt-started") if wanted => now += 1,
            Some("attempt-ended") if wanted => now -= 1,
            _ => {}
        }
        most = most.max(now);
    }
    most
}

/// Tests in the order in which their first tries began.
fn order(outcome: &Outcome<'_>) -> Vec<String> {
    let mut order: Vec<String> = Vec::new();
    for event in outcome.told("attempt-started", "") {
        let unit = event["unit"].as_str().unwrap_or_default();
        let name = unit.trim_start_matches("s/").trim_end_matches("@g").to_owned();
        if !order.contains(&name) {
            order.push(name);
        }
    }
    order
}

#[test]
fn a_flaky_test_passes_and_is_shown_as_flaky() {
    let lab = Lab::new();
    lab.suite(&format!("{SUITE}retries = 2\n"), &[("flaky", &fails(2)), ("bad", &fails(3)), ("well", "exit 0")]);
    let outcome = lab.test(["--junit", "r.xml"]).go();
    outcome.code(100).verdicts_are(&[("flaky", "flaky"), ("bad", "fail 1"), ("well", "pass")]);
    assert_eq!(outcome.tries("flaky"), ["fail 1", "fail 1", "pass"]);
    assert_eq!(outcome.tries("bad").len(), 3);
    let said = outcome.text();
    assert!(said.contains("FLAKY 3") && said.contains("2 passed (1 flaky), 1 failed"), "{said}");
    assert!(said.contains("TRY 1 FAIL"), "{said}");
    let junit = std::fs::read_to_string(lab.path("workspace/r.xml")).expect("report");
    assert_eq!(junit.matches("<flakyFailure").count(), 2, "{junit}");
    assert_eq!(junit.matches("<rerunFailure").count(), 2, "{junit}");
}

#[test]
fn every_try_has_files_of_its_own() {
    let lab = Lab::new();
    lab.suite(
        &format!("{SUITE}retries = 1\n"),
        &[("a", "echo try $BELLJAR_ATTEMPT | tee $BELLJAR_OUT/f; [ $BELLJAR_ATTEMPT = 2 ]")],
    );
    let outcome = lab.test([""; 0]).go();
    outcome.code(0).verdicts_are(&[("a", "flaky")]);
    for n in 1..=2 {
        let said = format!("try {n}\n").into_bytes();
        assert_eq!(outcome.kept(&format!("attempts/s.a@g/try-{n}/output.log")), said);
        assert_eq!(outcome.kept(&format!("attempts/s.a@g/try-{n}/out/f")), said);
        assert!(!outcome.kept(&format!("attempts/s.a@g/try-{n}/console.log")).is_empty());
    }
}

#[test]
fn the_pause_before_a_retry_grows() {
    let lab = Lab::new();
    let retries = "retries = { count = 4, delay = \"2ms\", backoff = \"exponential\", max-delay = \"10ms\" }\n";
    lab.suite(&format!("{SUITE}{retries}"), &[("bad", "exit 1")]);
    let outcome = lab.test([""; 0]).go();
    outcome.code(100);
    let pauses: Vec<Value> = outcome.told("attempt-ended", "bad").iter().map(|e| e["retry_in"].clone()).collect();
    assert_eq!(pauses, [2.into(), 4.into(), 8.into(), 10.into(), Value::Null]);
}

#[test]
fn faults_of_the_host_are_tried_again_and_counted_apart() {
    let lab = Lab::new();
    let guest = lab.machine("g2", crate::harness::WELL);
    // QEMU does not start the first time.
    lab.machine_script("g2.1", "[start]\nstderr \"qemu-system-x86_64: no memory just now\"\nexit 1\n");
    lab.suite(
        &format!("{guest}\n[[suites]]\nname = \"s\"\ntests = [\"t/*\"]\nguests = [\"g2\"]\nretries = 0\n"),
        &[("a", "exit 0")],
    );
    let outcome = lab.test([""; 0]).go();
    outcome.code(0);
    // A try that was no failure of the test makes no flaky test.
    assert_eq!(outcome.verdicts()["s/a@g2"], "pass");
    let tries: Vec<String> = outcome.told("attempt-ended", "").iter().map(crate::harness::words).collect();
    assert_eq!(tries, ["error host", "pass"]);
}

#[test]
fn a_guest_that_never_boots_is_not_tried_for_every_test() {
    for jobs in ["-j1", "-j2", "-j20"] {
        let lab = Lab::new();
        let guest = lab.machine("dead", "[start]\nstderr \"qemu-system-x86_64: it is broken\"\nexit 1\n");
        let names: Vec<String> = (0..50).map(|n| format!("t{n}")).collect();
        let tests: Vec<(&str, &str)> = names.iter().map(|n| (n.as_str(), "exit 0")).collect();
        lab.suite(&format!("{guest}\n[[suites]]\nname = \"s\"\ntests = [\"t/*\"]\nguests = [\"dead\"]\n"), &tests);
        let outcome = lab.test(["--error-retries", "0", jobs]).go();
        outcome.code(125);
        assert!(outcome.verdicts().values().all(|v| v == "error host"), "{:?}", outcome.verdicts());
        let starts =
            lab.seen().lines().filter(|l| l.contains("\"kind\":\"args\"") && l.contains("fake.script=dead")).count();
        assert_eq!(starts, 3, "{jobs}: however many wait for it");
        assert!(outcome.text().contains("never came up"), "{}", outcome.text());
    }
}

/// A guest that cannot be frozen; and there may be no place for templates.
#[test]
fn a_guest_that_cannot_be_kept_is_tried_once_and_told_once() {
    let here = ("BELLJAR_TEMPLATES", "on", "this guest cannot be kept as a template");
    let nowhere = ("BELLJAR_CACHE_DIR", "/proc/no", "templates cannot be kept in /proc/no");
    for ((variable, value, why), jobs) in [(here, "-j1"), (here, "-j4"), (nowhere, "-j1"), (nowhere, "-j4")] {
        let lab = Lab::new();
        let names: Vec<String> = (0..8).map(|n| format!("t{n}")).collect();
        let tests: Vec<(&str, &str)> = names.iter().map(|n| (n.as_str(), "exit 0")).collect();
        let guest = lab.machine("h", &format!("[options]\nmigrate refuse\n{}", crate::harness::WELL));
        let suite = "[[suites]]\nname = \"s\"\ntests = [\"t/*\"]\nguests = [\"h\"]\n";
        lab.suite(&format!("{guest}\n{suite}"), &tests);
        let outcome = lab.test([jobs]).env("BELLJAR_TEMPLATES", "on").env(variable, value).go();
        outcome.code(0);
        assert_eq!(outcome.verdicts().values().filter(|v| *v == "pass").count(), 8, "{:?}", outcome.verdicts());
        let warned = outcome.told("warning", "");
        assert_eq!(warned.len(), 1, "{jobs}: {warned:?}");
        assert!(warned[0]["message"].to_string().contains(why), "{warned:?}");
        let starts = lab.seen().lines().filter(|l| l.contains("\"-initrd\"")).count();
        assert!((8..=9).contains(&starts), "{jobs}: started {starts} times");
    }
}

/// Those that wait while it is tried go on when it is there.
#[test]
fn a_guest_that_came_up_once_is_there_for_all() {
    let lab = Lab::new();
    let guest = lab.machine("g2", "[serial]\ndrain\n[agent]\nagent\n");
    // The first two die; the rest are well.
    for start in ["g2.1", "g2.2"] {
        lab.machine_script(start, "[start]\nexit 1\n");
    }
    let names: Vec<String> = (0..12).map(|n| format!("t{n}")).collect();
    let tests: Vec<(&str, &str)> = names.iter().map(|n| (n.as_str(), "exit 0")).collect();
    lab.suite(&format!("{guest}\n[[suites]]\nname = \"s\"\ntests = [\"t/*\"]\nguests = [\"g2\"]\n"), &tests);
    let outcome = lab.test(["--error-retries", "1", "-j12"]).go();
    outcome.code(0);
    assert!(outcome.verdicts().values().all(|v| v == "pass"), "{:?}", outcome.verdicts());
}

#[test]
fn fail_fast_begins_nothing_more() {
    let lab = Lab::new();
    lab.suite(SUITE, &[("1", "exit 0"), ("2", "exit 1"), ("3", "exit 0"), ("4", "exit 0")]);
    let outcome = lab.test(["-j1", "--fail-fast"]).go();
    outcome.code(100).verdicts_are(&[("1", "pass"), ("2", "fail 1"), ("3", "planned"), ("4", "planned")]);
    assert!(outcome.text().contains("fail-fast"), "{}", outcome.text());
    assert!(outcome.text().contains("1 passed, 1 failed, 2 not run"), "{}", outcome.text());
    lab.suite(&format!("{SUITE}[profile.default]\nfail-fast = true\n"), &[]);
    lab.test(["-j1", "--no-fail-fast"]).go().code(100).verdicts_are(&[
        ("1", "pass"),
        ("2", "fail 1"),
        ("3", "pass"),
        ("4", "pass"),
    ]);
}

#[test]
fn again_and_again() {
    let lab = Lab::new();
    lab.suite(SUITE, &[("well", "exit 0"), ("third", "echo x >> n; [ $(wc -l < n) -ne 3 ]")]);
    let outcome = lab.test(["--repeat", "4"]).go();
    outcome.code(100).verdicts_are(&[("well", "pass"), ("third", "fail 1")]);
    assert_eq!(outcome.tries("well").len(), 4);
    assert_eq!(outcome.tries("third"), ["pass", "pass", "fail 1", "pass"]);
    assert!(outcome.text().contains("1 of 4 repetitions"), "{}", outcome.text());
    std::fs::remove_file(lab.path("workspace/n")).expect("count");
    let outcome = lab.test(["--until-fail", "id(=s/third@g)"]).go();
    outcome.code(100).verdicts_are(&[("third", "fail 1")]);
    assert_eq!(outcome.tries("third"), ["pass", "pass", "fail 1"]);
}

const SHORT: &str = "sleep 0.05";

#[test]
fn limits_of_jobs_groups_and_who_wants_to_be_alone() {
    let lab = Lab::new();
    let grouped = format!("# belljar: group = \"net\"\n{SHORT}");
    let alone = format!("# belljar: exclusive = true\n{SHORT}");
    lab.suite(
        &format!("{SUITE}[groups.net]\nmax-parallel = 1\n"),
        &[
            ("net1", &grouped),
            ("net2", &grouped),
            ("net3", &grouped),
            ("alone1", &alone),
            ("alone2", &alone),
            ("a", SHORT),
            ("b", SHORT),
            ("c", SHORT),
        ],
    );
    let outcome = lab.test(["-j4"]).go();
    outcome.code(0);
    assert_eq!(overlap(&outcome, |u| u.contains("net")), 1);
    let all = overlap(&outcome, |_| true);
    assert!((2..=4).contains(&all), "{all}");
    // While one that wants to be alone runs, nothing else does.
    let mut running: Vec<String> = Vec::new();
    for event in outcome.events() {
        let unit = event["unit"].as_str().unwrap_or_default().to_owned();
        match event["kind"].as_str() {
            Some("attempt-started") => running.push(unit),
            Some("attempt-ended") => running.retain(|u| *u != unit),
            _ => {}
        }
        assert!(running.len() <= 1 || !running.iter().any(|u| u.contains("alone")), "{running:?}");
    }
    let outcome = lab.test(["-j1"]).go();
    assert_eq!(overlap(&outcome, |_| true), 1);
}

#[test]
fn memory_and_processors_hold_guests_back() {
    let lab = Lab::new();
    lab.suite(SUITE, &[("a", SHORT), ("b", SHORT), ("c", SHORT), ("d", SHORT)]);
    // Each guest takes 1 GiB and what QEMU needs.
    let outcome = lab.test(["--max-memory", "2500MiB"]).go();
    assert_eq!(overlap(&outcome, |_| true), 2);
    let outcome = lab.test(["--max-cpus", "3"]).go();
    assert_eq!(overlap(&outcome, |_| true), 3);
}

#[test]
fn what_is_urgent_first_then_what_took_longest() {
    let lab = Lab::new();
    lab.suite(
        SUITE,
        &[
            ("a", "exit 0"),
            ("b", "sleep 2.4"),
            ("c", "sleep 1.2"),
            ("last", "# belljar: priority = -1\nexit 0"),
            ("first", "# belljar: priority = 5\nexit 0"),
        ],
    );
    let outcome = lab.test(["-j1"]).go();
    assert_eq!(order(&outcome), ["first", "a", "b", "c", "last"], "by name as long as nothing is known");
    let outcome = lab.test(["-j1"]).go();
    assert_eq!(order(&outcome), ["first", "b", "c", "a", "last"], "longest first");
}

#[test]
fn one_guest_for_a_suite_keeps_the_order_and_a_crash_costs_one_test() {
    let lab = Lab::new();
    lab.suite(
        &format!("{SUITE}isolation = \"suite\"\nsetup = \"setup.sh\"\n"),
        &[
            ("./setup.sh", "echo up >> $BELLJAR_WORKSPACE/setups"),
            ("1", "exit 0"),
            ("2", "exit 1"),
            ("3", "poweroff"),
            ("4", "exit 0"),
            ("5", "# belljar: timeout = \"300ms\"\nexec sleep 60"),
            ("6", "exit 0"),
        ],
    );
    let outcome = lab.test(["-j4"]).go();
    outcome.code(100).verdicts_are(&[
        ("1", "pass"),
        ("2", "fail 1"),
        ("3", "crash power-off"),
        ("4", "pass"),
        ("5", "timeout command"),
        ("6", "pass"),
    ]);
    assert_eq!(order(&outcome), ["1", "2", "3", "4", "5", "6"]);
    assert_eq!(overlap(&outcome, |_| true), 1);
    let instances: BTreeMap<String, i64> = outcome
        .told("attempt-started", "")
        .iter()
        .map(|e| (e["unit"].as_str().unwrap_or_default().to_owned(), e["instance"].as_i64().unwrap_or(-1)))
        .collect();
    let of = |n: u32| instances[&format!("s/{n}@g")];
    assert!(of(1) == of(2) && of(2) == of(3), "{instances:?}");
    assert!(of(3) != of(4) && of(4) == of(5) && of(5) != of(6), "{instances:?}");
    // The set-up belongs to the guest, so a new one is set up again.
    let setups = std::fs::read_to_string(lab.path("workspace/setups")).expect("setups");
    assert_eq!(setups.lines().count(), 3);
    let guests = outcome.told("guest-started", "").len();
    assert_eq!((guests, outcome.told("guest-ended", "").len()), (3, 3));
}

#[test]
fn a_retry_in_a_shared_guest() {
    let lab = Lab::new();
    lab.suite(&format!("{SUITE}isolation = \"suite\"\nretries = 1\n"), &[("1", &fails(1)), ("2", "exit 0")]);
    let outcome = lab.test([""; 0]).go();
    outcome.code(0).verdicts_are(&[("1", "flaky"), ("2", "pass")]);
    assert_eq!(outcome.told("guest-started", "").len(), 1);
}

#[test]
fn a_set_up_runs_before_each_fresh_guests_test() {
    let lab = Lab::new();
    lab.suite(
        &format!("{SUITE}setup = [\"one.sh\", \"two.sh\"]\nenv = {{ WHAT = \"this\" }}\n"),
        &[
            ("./one.sh", "echo one $WHAT $BELLJAR_SUITE $BELLJAR_GUEST >> log"),
            ("./two.sh", "echo two >> log"),
            ("a", "echo $BELLJAR_TEST >> log"),
            ("b", "echo $BELLJAR_TEST >> log"),
        ],
    );
    let outcome = lab.test(["-j1"]).go();
    outcome.code(0);
    let log = std::fs::read_to_string(lab.path("workspace/log")).expect("log");
    assert_eq!(log, "one this s g\ntwo\na\none this s g\ntwo\nb\n");
    assert_eq!(outcome.told("setup-ended", "").len(), 4);
}

#[test]
fn tests_in_a_binary_are_run_one_by_one() {
    let lab = Lab::new();
    // As Rust's test harness speaks.
    let binary = r#"
ignored=no; exact=no; name=
for word; do case $word in --ignored|--include-ignored) ignored=$word ;; --list) list=yes ;; --exact) exact=yes ;; --*|terse|pretty) ;; *) name=$word ;; esac; done
if [ "$list" = yes ]; then
    [ $ignored = --ignored ] || printf 'fine: test\nbroken: test\n'
    echo 'slow: test'; exit 0
fi
echo "$name" >> ran
case $name in fine) w=ok; p=1; f=0; i=0; c=0 ;; broken) w=FAILED; p=0; f=1; i=0; c=101 ;; slow) w=ignored; p=0; f=0; i=1; c=0 ;; esac
r=ok; [ $c = 0 ] || r=FAILED
printf '\nrunning 1 test\ntest %s ... %s\n\ntest result: %s. %s passed; %s failed; %s ignored; 0 measured; 2 filtered out; finished in 0.00s\n\n' $name $w $r $p $f $i
exit $c"#;
    lab.suite(&format!("{SUITE}format = \"libtest\"\n"), &[("bin", binary), ("not-rust", "echo hello; exit 0")]);
    let outcome = lab.test(["-j2"]).go();
    outcome.code(100);
    let verdicts = outcome.verdicts();
    assert_eq!(verdicts["s/bin::fine@g"], "pass", "{verdicts:?}");
    assert_eq!(verdicts["s/bin::broken@g"], "fail 101", "{verdicts:?}");
    assert!(verdicts["s/bin::slow@g"].starts_with("skip"), "{verdicts:?}");
    assert!(verdicts["s/not-rust@g"].starts_with("fail"), "{verdicts:?}");
    let ran = std::fs::read_to_string(lab.path("workspace/ran")).expect("ran");
    assert_eq!(ran.lines().filter(|l| *l == "fine").count(), 1);
    // One of them alone.
    let outcome = lab.test(["id(=s/bin::fine@g)"]).go();
    outcome.code(0);
    assert_eq!(outcome.verdicts().len(), 1, "{:?}", outcome.verdicts());
}

#[test]
fn a_global_limit_ends_the_run() {
    let lab = Lab::new();
    lab.suite(SUITE, &[("1", "exec sleep 60"), ("2", "exit 0")]);
    let outcome = lab.test(["-j1", "--global-timeout", "4s"]).go();
    outcome.code(100).verdicts_are(&[("1", "timeout command"), ("2", "planned")]);
    assert!(outcome.text().contains("global-timeout"), "{}", outcome.text());
}

#[test]
fn a_slow_test_is_told_of() {
    let lab = Lab::new();
    lab.suite(&format!("{SUITE}slow-timeout = \"1s\"\n"), &[("slow", "sleep 1.3")]);
    let outcome = lab.test([""; 0]).go();
    outcome.code(0).verdicts_are(&[("slow", "pass")]);
    assert!(outcome.text().contains("SLOW"), "{}", outcome.text());
}

#[test]
fn tests_get_what_their_places_say() {
    let lab = Lab::new();
    lab.suite(
        &format!("{SUITE}args = [\"a b\", \"*\"]\nenv = {{ A = \"suite\", B = \"suite\" }}\n"),
        &[
            ("a", "printf '%s|' \"$@\" \"$A\" \"$B\" \"$C\" \"$BELLJAR_TEST\" \"$BELLJAR_SUITE\" \"$BELLJAR_GUEST\"; pwd -P >&2"),
            ("h", "# belljar: env = { B = \"header\" }\n# belljar: args = []\nprintf '%s|' \"$@\" \"$A\" \"$B\" \"$C\""),
        ],
    );
    let outcome = lab.test(["-e", "C=flag"]).go();
    outcome.code(0);
    let said = |test: &str| {
        let log = outcome.kept(&format!("attempts/s.{test}@g/try-1/output.log"));
        String::from_utf8(log).expect("text")
    };
    assert!(said("a").starts_with("a b|*|suite|suite|flag|a|s|g|"), "{}", said("a"));
    assert_eq!(said("h"), "suite|header|flag|");
}
