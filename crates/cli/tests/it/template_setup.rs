//! Set-up that is kept with its guest: `setup-once`.

use std::fs;

use crate::harness::{Belljar, Lab, Outcome};

/// A guest with an initramfs of its own and a shell on the console, from which our agent is started.
const SHELL: &str = "[serial]\nshell\n[agent]\nwait agent 80000\nagent pid1=off\n";

/// Counts where the test can see it, and leaves something in the guest.
const SETUP: &str = "echo ran >> $BELLJAR_TEST_COUNT; cat data/* > $HOME/installed";

/// The value that a test finds in its guest.
const FINDS: &str = "cat $HOME/installed; [ $(cat $HOME/installed) = one ]";

struct Laboratory(Lab);

impl Laboratory {
    /// A suite of two tests, with a set-up that reads what is in `data`.
    fn new(options: &str, setup: &str) -> Self {
        let lab = Lab::new();
        fs::write(lab.path("initrd"), cpio()).expect("initramfs");
        lab.machine_script("i", &format!("[options]\n{options}\n{SHELL}"));
        let laboratory = Self(lab);
        laboratory.suite("", setup, &[("a", FINDS), ("b", FINDS)]);
        fs::create_dir_all(laboratory.0.path("workspace/data")).expect("directory");
        laboratory.input("one");
        laboratory
    }

    fn suite(&self, more: &str, setup: &str, tests: &[(&str, &str)]) {
        let guest = "[guests.i]\nkernel = \"../vmlinux\"\ninitrd = \"../initrd\"\nappend = \"fake.script=i\"\n";
        let suite = "[[suites]]\nname = \"s\"\ntests = [\"t/*\"]\nguests = [\"i\"]\nsetup = \"setup.sh\"\nsetup-once = true\n\
            setup-inputs = [\"data/*\"]\n";
        self.0.suite(&format!("{guest}{suite}{more}"), tests);
        self.0.test_file("./setup.sh", setup);
    }

    fn input(&self, text: &str) {
        fs::write(self.0.path("workspace/data/input"), text).expect("input");
    }

    fn call(&self, words: &[&str]) -> Belljar<'_> {
        let call = self.0.test(["--error-retries", "0"]).with_templates();
        // One after the other, for what is mounted on the console is mounted for all guests that boot.
        let one = ["-j1"].into_iter().filter(|_| !words.iter().any(|w| w.starts_with("-j")));
        let call = call.args(one).args(words);
        call.env("BELLJAR_TEST_COUNT", self.0.path("scratch/count")).in_playground()
    }

    /// How often the set-up ran since this was asked last.
    fn ran(&self) -> usize {
        let count = self.0.path("scratch/count");
        let ran = fs::read_to_string(&count).unwrap_or_default().lines().count();
        let _none = fs::remove_file(count);
        ran
    }

    /// Templates of guests and of set-ups.
    fn templates(&self) -> usize {
        self.0.templates().len()
    }
}

fn passed(outcome: &Outcome<'_>) {
    outcome.code(0);
    let verdicts = outcome.verdicts();
    assert_eq!(verdicts.len(), 2);
    assert!(verdicts.values().all(|v| v == "pass"), "{verdicts:?}");
}

/// An initramfs with nothing but a name of a program in it.
fn cpio() -> Vec<u8> {
    let mut cpio = Vec::new();
    for (name, mode) in [("init", 0o100_755), ("TRAILER!!!", 0)] {
        let fields = [0, mode, 0, 0, 1, 0, 0, 0, 0, 0, 0, name.len() + 1, 0];
        let header: String = fields.iter().map(|f| format!("{f:08x}")).collect();
        cpio.extend(format!("070701{header}{name}\0").bytes());
        cpio.resize(cpio.len().next_multiple_of(4), 0);
    }
    cpio
}

#[test]
fn runs_once_for_all_tests_of_all_runs() {
    let lab = Laboratory::new("", SETUP);
    let outcome = lab.call(&[]).go();
    passed(&outcome);
    assert_eq!(outcome.warnings(), [""; 0]);
    assert_eq!((lab.ran(), lab.templates()), (1, 2));
    assert_eq!(outcome.chosen("set-up").iter().filter(|c| *c == "made").count(), 1);
    let outcome = lab.call(&[]).go();
    passed(&outcome);
    assert_eq!((lab.ran(), lab.templates()), (0, 2));
    assert!(outcome.chosen("set-up").iter().all(|c| c == "found"), "{:?}", outcome.chosen("set-up"));
    assert_eq!(lab.0.starts().0, 1, "one boots, all others are copies");
}

#[test]
fn what_a_test_does_to_its_guest_the_next_one_does_not_see() {
    let lab = Laboratory::new("", SETUP);
    let spoil = format!("{FINDS} && echo two > $HOME/installed");
    lab.suite("", SETUP, &[("a", &spoil), ("b", &spoil)]);
    for _ in 0..2 {
        passed(&lab.call(&[]).go());
    }
    assert_eq!(lab.ran(), 1);
}

#[test]
fn runs_again_when_what_it_reads_changes() {
    let lab = Laboratory::new("", SETUP);
    passed(&lab.call(&[]).go());
    assert_eq!(lab.ran(), 1);
    lab.input("two");
    lab.call(&[]).go().code(100);
    assert_eq!(lab.ran(), 1, "the tests see what was made of the new input");
    lab.input("one");
    passed(&lab.call(&[]).go());
    assert_eq!(lab.ran(), 0, "that guest is still there");
    lab.0.test_file("./setup.sh", &format!("{SETUP}; :"));
    passed(&lab.call(&[]).go());
    assert_eq!(lab.ran(), 1);
    lab.suite("env = { MORE = \"1\" }\n", &format!("{SETUP}; :"), &[]);
    passed(&lab.call(&[]).go());
    assert_eq!(lab.ran(), 1);
    // What it does not read is none of its business.
    fs::write(lab.0.path("workspace/other"), "x").expect("file");
    passed(&lab.call(&[]).go());
    assert_eq!(lab.ran(), 0);
    assert_eq!(lab.templates(), 5, "the guest itself, and as it was set up four times");
    assert_eq!(lab.0.starts().0, 1);
}

#[test]
fn sees_itself_and_its_inputs_alone() {
    let setup = "echo ran >> $BELLJAR_TEST_COUNT; find . -type f | sort > $HOME/saw; echo mine > written; pwd; echo one > $HOME/installed";
    let lab = Laboratory::new("", setup);
    let saw = "printf './data/input\\n./setup.sh\\n' | cmp - $HOME/saw && [ ! -e written ] && [ -e secret ]";
    lab.suite("", setup, &[("a", saw), ("b", saw)]);
    fs::write(lab.0.path("workspace/secret"), "").expect("file");
    passed(&lab.call(&[]).go());
    assert_eq!(lab.ran(), 1);
    assert!(!lab.0.path("workspace/written").exists());
}

#[test]
fn its_failure_is_no_failure_of_the_tests_and_is_not_kept() {
    let lab = Laboratory::new("", "echo ran >> $BELLJAR_TEST_COUNT; echo cannot install it; exit 5");
    let outcome = lab.call(&[]).go();
    outcome.code(125);
    assert!(outcome.verdicts().values().all(|v| v == "error host"), "{:?}", outcome.verdicts());
    assert!(outcome.text().contains("cannot install it"), "{}", outcome.text());
    assert_eq!(lab.templates(), 1, "the guest's own");
    assert!((1..=2).contains(&lab.ran()));
    // Mended, it works.
    lab.0.test_file("./setup.sh", SETUP);
    passed(&lab.call(&[]).go());
    assert_eq!((lab.ran(), lab.templates()), (1, 2));
}

#[test]
fn runs_in_every_guest_where_none_is_kept() {
    let lab = Laboratory::new("", SETUP);
    let outcome = lab.call(&["--no-template"]).go();
    passed(&outcome);
    assert_eq!((lab.ran(), lab.templates()), (2, 0));
    assert_eq!(outcome.warnings(), [""; 0]);

    let lab = Laboratory::new("migrate refuse", SETUP);
    let outcome = lab.call(&[]).go();
    passed(&outcome);
    outcome.warns_once("this guest cannot be kept as a template");
    assert_eq!((lab.ran(), lab.templates()), (2, 0));
}

#[test]
fn runs_in_every_guest_where_only_the_guest_itself_can_be_kept() {
    for options in ["migrate refuse", "migrate fail", "migrate die", "incoming fail", "cont ignore"] {
        let lab = Laboratory::new("", SETUP);
        // The second machine is the one that is set up.
        lab.0.machine_script("i.2", &format!("[options]\n{options}\n{SHELL}"));
        let outcome = lab.call(&[]).go();
        passed(&outcome);
        outcome.warns_once("the guest cannot be kept with its set-up");
        assert_eq!(lab.templates(), 1, "{options}");
        let tried = usize::from(options.starts_with("migrate"));
        assert_eq!(lab.ran(), 2 + tried, "{options}: in vain, and in each test's guest");
        assert_eq!(lab.0.starts().0, 1, "{options}");
    }
}

#[test]
fn a_kept_set_up_that_is_spoilt_is_made_again() {
    let lab = Laboratory::new("", SETUP);
    passed(&lab.call(&[]).go());
    assert_eq!(lab.ran(), 1);
    for template in lab.0.templates() {
        let state = fs::read(template.join("state")).expect("state");
        fs::write(template.join("state"), &state[..state.len() - 1]).expect("spoilt");
    }
    let outcome = lab.call(&[]).go();
    passed(&outcome);
    assert_eq!((lab.ran(), lab.templates()), (1, 2));
    let warnings = outcome.warnings();
    assert!(warnings.len() == 2 && warnings.iter().all(|w| w.contains("was removed, for")), "{warnings:#?}");
    // Without the guest's own the one that is set up is as good as ever.
    let own = lab
        .0
        .templates()
        .into_iter()
        .find(|t| !fs::read_to_string(t.join("manifest")).expect("manifest").contains("with the set-up of s"));
    fs::remove_dir_all(own.expect("the guest's own")).expect("removed");
    passed(&lab.call(&[]).go());
    assert_eq!((lab.ran(), lab.templates()), (0, 1));
}

#[test]
fn killed_while_it_is_set_up_nothing_half_made_is_used() {
    let lab = Laboratory::new("", "mark setting-up; exec sleep 60");
    let mut run = lab.call(&[]).spawn();
    run.await_mark("setting-up");
    run.kill();
    assert_eq!(lab.templates(), 2, "one is made, of the other the beginning is left: {:?}", lab.0.templates());
    lab.0.test_file("./setup.sh", SETUP);
    passed(&lab.call(&[]).go());
    assert_eq!(lab.ran(), 1);
    let half = |path: &std::path::PathBuf| path.to_string_lossy().ends_with(".making");
    assert!(!lab.0.templates().iter().any(half), "{:?}", lab.0.templates());
}

#[test]
fn a_set_up_that_comes_to_no_end_is_not_kept() {
    for (setup, options, said) in [
        ("exec sleep 60", "setup-timeout = \"1s\"\n", "setup-timeout"),
        ("poweroff; exec sleep 60", "", "setup.sh failed"),
        ("panic; exec sleep 60", "", "setup.sh failed"),
        ("kill -9 $$", "", "SIGKILL"),
    ] {
        let lab = Laboratory::new("", setup);
        lab.suite(options, setup, &[]);
        let outcome = lab.call(&[]).go();
        outcome.code(125);
        assert!(outcome.verdicts().values().all(|v| v == "error host"), "{setup}: {:?}", outcome.verdicts());
        assert!(outcome.text().contains(said), "{setup}: {}", outcome.text());
        assert_eq!(lab.templates(), 1, "{setup}");
    }
}

#[test]
fn interrupted_while_it_is_set_up() {
    let lab = Laboratory::new("", "mark setting-up; exec sleep 60");
    let mut run = lab.call(&[]).spawn();
    run.await_mark("setting-up");
    run.signal(rustix::process::Signal::INT);
    let outcome = run.end();
    outcome.code(130);
    lab.0.template();
}

#[test]
fn guests_made_ahead_and_guests_for_a_whole_suite_are_set_up_too() {
    let lab = Laboratory::new("", SETUP);
    let names: Vec<String> = (0..6).map(|n| format!("t{n}")).collect();
    let tests: Vec<(&str, &str)> = names.iter().map(|n| (n.as_str(), FINDS)).collect();
    lab.suite("", SETUP, &tests);
    let outcome = lab.call(&["-j2"]).go();
    outcome.code(0);
    assert_eq!((outcome.verdicts().len(), lab.ran(), lab.templates()), (8, 1, 2));
    lab.suite("isolation = \"suite\"\n", SETUP, &[]);
    let outcome = lab.call(&[]).go();
    outcome.code(0);
    assert_eq!((outcome.verdicts().len(), lab.ran(), lab.templates()), (8, 0, 2));
    assert_eq!(outcome.told("guest-ready", "").len(), 1);
}

#[test]
fn two_runs_at_the_same_time_set_it_up_once() {
    let lab = Laboratory::new("", SETUP);
    let runs = [lab.call(&[]).spawn(), lab.call(&[]).spawn()];
    for run in runs {
        let outcome = run.end_dirty();
        outcome.code(0);
        assert!(outcome.text().contains("2 passed"), "{}", outcome.text());
    }
    assert_eq!((lab.ran(), lab.templates(), lab.0.starts().0), (1, 2, 1));
}

#[test]
fn each_suite_has_its_own_over_one_guest() {
    let lab = Laboratory::new("", SETUP);
    let other =
        "[[suites]]\nname = \"o\"\ntests = [\"o/*\"]\nguests = [\"i\"]\nsetup = \"other.sh\"\nsetup-once = true\n";
    lab.suite(other, SETUP, &[("o/a", "[ ! -e $HOME/installed ] && [ -e $HOME/other ]")]);
    lab.0.test_file("./other.sh", "echo ran >> $BELLJAR_TEST_COUNT; touch $HOME/other");
    for ran in [2, 0] {
        let outcome = lab.call(&[]).go();
        outcome.code(0);
        assert_eq!((outcome.verdicts().len(), lab.ran(), lab.templates()), (3, ran, 3));
    }
    assert_eq!(lab.0.starts().0, 1);
}

#[test]
fn not_where_the_root_is_the_hosts() {
    let lab = Lab::new();
    let suite = format!("{}setup = \"setup.sh\"\nsetup-once = true\n", crate::harness::SUITE);
    lab.suite(&suite, &[("a", "[ -e up ]"), ("./setup.sh", "touch up; echo ran >> $BELLJAR_TEST_COUNT")]);
    let outcome = lab.test(["-j1"]).with_templates().env("BELLJAR_TEST_COUNT", lab.path("scratch/count")).go();
    outcome.code(0).verdicts_are(&[("a", "pass")]);
    assert_eq!(outcome.chosen("set-up"), ["run"]);
    assert_eq!(lab.templates().len(), 1);
}
