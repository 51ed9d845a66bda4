//! What is said of a suite: its mistakes, its list, its progress and its end.

use std::fs;

use serde_json::Value;

use crate::harness::{Lab, Pty, SUITE, WELL, snapshot};

#[test]
fn every_mistake_is_shown_at_once_with_its_place() {
    let lab = Lab::new();
    lab.suite("", &[("a", "exit 0"), ("plain", "exit 0")]);
    std::os::unix::fs::chown(lab.path("workspace/t/plain"), None, None).expect("own");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    fs::set_permissions(lab.path("workspace/t/plain"), mode).expect("mode");
    let config = "[guests.debian]\nimage = \"x.qcow2\"\nmemry = \"1GiB\"\ncpus = 0\n\n[[suites]]\nname = \"s\"\ntests = [\"t/*\"]\nguests = [\"debain\"]\ntimeout = \"5 parsecs\"\n\n[profile.ci]\nretries = \"many\"\nfilter = \"suite(s) and and\"\n";
    fs::write(lab.path("workspace/belljar.toml"), config).expect("file");
    for command in ["test", "list"] {
        let outcome = lab.belljar([command]).go();
        outcome.code(96).says("");
        insta::allow_duplicates! { snapshot!(outcome); }
    }
}

#[test]
fn mistakes_in_headers_are_told_with_those_of_the_configuration() {
    let lab = Lab::new();
    lab.suite(
        &SUITE.replace("name = \"s\"", "name = \"s\"\ntimeout = \"5 parsecs\""),
        &[
            ("a", "# belljar: colour = \"red\""),
            // Whether there is such a guest can be told when the configuration is right.
            ("b", "# belljar: guests = [\"h\"]"),
        ],
    );
    let outcome = lab.belljar(["list"]).go();
    outcome.code(96).complains("parsecs").complains("unknown key `colour`").complains("t/a:2:");
    assert!(!outcome.stderr.contains("\"h\""), "{}", outcome.stderr);
}

#[test]
fn what_would_not_run_is_listed_as_such() {
    let lab = Lab::new();
    let guests = [
        "[guests.gone]\nimage = \"no/such.qcow2\"\n",
        "[guests.huge]\nkernel = \"../vmlinux\"\nrootfs = \"../rootfs\"\nmemory = \"1000TiB\"\n",
        "[guests.bare]\nkernel = \"../no-kernel\"\nrootfs = \"../rootfs\"\n",
    ];
    let suite = SUITE.replace("[\"g\"]", "[\"g\", \"gone\", \"huge\", \"bare\"]");
    lab.suite(&format!("{}\n{suite}", guests.join("\n")), &[("a", "exit 0")]);
    for words in [&["list"][..], &["test", "--dry-run"]] {
        let outcome = lab.belljar(words).script(WELL).go();
        let text = outcome.code(0).text();
        let line = |guest: &str| text.lines().find(|l| l.contains(guest)).unwrap_or_default().to_owned();
        assert!(line(" gone ").contains("cannot run: there is no disk image"), "{text}");
        assert!(line(" huge ").contains("cannot run: the guest wants 1048576000 MiB"), "{text}");
        assert!(line(" bare ").contains("no-kernel"), "{text}");
        assert!(text.contains("4 units (3 cannot run here), 0 skipped"), "{text}");
    }
    let outcome = lab.belljar(["list", "--json"]).script(WELL).go();
    let listing: Value = serde_json::from_str(&outcome.code(0).text()).expect("JSON");
    let machines = listing["machines"].as_array().expect("machines");
    assert_eq!(machines.iter().filter(|m| m["obstacles"].as_array().is_some_and(|o| !o.is_empty())).count(), 3);
    // Without QEMU nothing would.
    let outcome = lab.belljar(["list", "--qemu", "/no/such/qemu"]).go();
    assert!(outcome.code(0).text().contains("4 units (4 cannot run here)"), "{}", outcome.text());
    // Nor does a single command start where there is no room for its guest.
    let outcome = lab.run(WELL).args(["--memory", "1000TiB"]).command(["true"]).go();
    outcome.code(125).complains("this host has").complains("give the guest less");
}

#[test]
fn a_guest_with_several_kernels_is_one_for_each() {
    let lab = Lab::new();
    let suite = SUITE.replace("[\"g\"]", "[\"k\"]");
    lab.suite(
        &format!("[guests.k]\nkernels = [\"../kernels/vmlinux-*\"]\nrootfs = \"../rootfs\"\n{suite}"),
        &[("a", "exit 0"), ("b", "# belljar: guests = [\"k-two\", \"g\"]\nexit 0")],
    );
    // Nobody tested what is not there.
    lab.test([""; 0]).script(WELL).go().code(96).complains("\"../kernels/vmlinux-*\" matches no file");
    fs::create_dir(lab.path("kernels")).expect("directory");
    for name in ["one", "two"] {
        fs::copy(lab.path("vmlinux"), lab.path(format!("kernels/vmlinux-{name}"))).expect("kernel");
    }
    let outcome = lab.test([""; 0]).script(WELL).go();
    let units = outcome.code(0).text();
    for unit in ["s/a@k-one", "s/a@k-two", "s/b@k-two", "s/b@g"] {
        assert!(units.contains(unit), "{units}");
    }
    assert!(units.contains("4 tests: 4 passed"), "{units}");
    let outcome = lab.test(["guest(k) and name(a)"]).script(WELL).go();
    assert!(outcome.code(0).text().contains("2 tests: 2 passed"), "{}", outcome.text());
    lab.belljar(["run", "--guest", "k", "--", "true"])
        .script(WELL)
        .go()
        .code(125)
        .complains("name one of them: \"k-one\" and \"k-two\"");
}

#[test]
fn a_file_that_is_no_toml() {
    let lab = Lab::new();
    fs::write(lab.path("workspace/belljar.toml"), "[[suites]\nname = \"s\"\n").expect("file");
    let outcome = lab.belljar(["list"]).go();
    snapshot!(outcome.code(96));
}

#[test]
fn wrong_headers_and_files_that_are_no_tests() {
    let lab = Lab::new();
    lab.suite(
        SUITE,
        &[("a", "# belljar: timeout = 5\n# belljar: colour = \"red\""), ("b", "# belljar: guests = [\"h\"]")],
    );
    fs::write(lab.path("workspace/t/notes.txt"), "").expect("file");
    std::os::unix::fs::symlink("nowhere", lab.path("workspace/t/link")).expect("link");
    let outcome = lab.belljar(["test"]).go();
    snapshot!(outcome.code(96));
}

#[test]
fn without_a_configuration() {
    let lab = Lab::new();
    lab.belljar(["test"]).go().code(96).complains("there is no belljar.toml in");
    lab.belljar(["test", "-c", "no/such.toml"]).go().code(96).complains("no/such.toml");
    lab.suite("", &[]);
    lab.belljar(["test"]).go().code(4).complains("[[suites]]");
}

#[test]
fn from_a_directory_below_and_by_name() {
    let lab = Lab::new();
    lab.suite(SUITE, &[("a", "exit 0")]);
    let file = lab.path("workspace/belljar.toml");
    let list = |words: &[&std::ffi::OsStr], dir: &str| {
        let mut command = lab.belljar(["list"]).args(words).to_command();
        command.current_dir(lab.path(dir)).output().expect("belljar starts")
    };
    let here = list(&[], "workspace");
    assert!(here.status.success() && !here.stdout.is_empty());
    assert_eq!(list(&[], "workspace/t").stdout, here.stdout);
    assert_eq!(list(&["-c".as_ref(), file.as_os_str()], "home").stdout, here.stdout);
    assert_eq!(list(&["-c".as_ref(), lab.path("workspace").as_os_str()], "home").stdout, here.stdout);
}

#[test]
fn a_wrong_command_line() {
    let lab = Lab::new();
    lab.suite(SUITE, &[("a", "exit 0")]);
    for words in [
        &["test", "--no-such-flag"][..],
        &["test", "-j", "0"],
        &["test", "--repeat", "2", "--until-fail"],
        &["test", "suite(s"],
        &["test", "--memory", "lots"],
        &["test", "--max-memory", "lots"],
        &["test", "--retries", "-1"],
        &["test", "--partition", "half"],
        &["report", "--format", "pdf"],
    ] {
        let outcome = lab.belljar(words.iter().copied()).go();
        outcome.code(2);
        assert!(!outcome.stderr.is_empty());
    }
    let outcome = lab.belljar(["test", "suite(s) and nmae(a)"]).go();
    snapshot!(outcome.code(2));
    lab.belljar(["test", "--profile", "ic"]).go().code(96).complains("ic");
    lab.belljar(["test", "-e", "NOT_SET_ANYWHERE"]).go().code(2).complains("NOT_SET_ANYWHERE");
}

#[test]
fn no_test_matched() {
    let lab = Lab::new();
    lab.suite(SUITE, &[("a", "exit 0")]);
    for words in [&["b"][..], &["guest(h)"], &["tag(slow)"], &["not a"]] {
        lab.test(words).go().code(4).complains("no test matches");
    }
    assert_eq!(lab.runs().len(), 0);
}

/// Guests, matrix, settings: enough to show all that a list shows.
fn shown(lab: &Lab) {
    let config = format!(
        "{}\n[[suites]]\nname = \"disk\"\ntests = [\"disk/**/*.sh\"]\nguests = [\"g\", \"h\"]\ntags = [\"slow\"]\n\
         [[suites]]\nname = \"net\"\ntests = [\"net/*\"]\nguests = [\"g\"]\nisolation = \"suite\"\n\
         [profile.ci]\nretries = 2\n",
        lab.guest("h", "memory = \"2GiB\"\n")
    );
    lab.suite(
        &config,
        &[
            ("disk/ext4.sh", "exit 0"),
            (
                "disk/deep/raid.sh",
                "# belljar: guests = [\"h\"]\n# belljar: disks = [{ size = \"1GiB\", serial = \"d0\" }]\nexit 0",
            ),
            ("disk/old.sh", "# belljar: skip = \"needs a floppy\"\nexit 1"),
            ("net/bridge", "exit 0"),
            ("net/firewall", "# belljar: requires = [\"nft\"]\nexit 0"),
        ],
    );
}

#[test]
fn a_list_for_people() {
    let lab = Lab::new();
    shown(&lab);
    insta::assert_snapshot!(lab.belljar(["list"]).go().code(0).text());
    insta::assert_snapshot!(lab.belljar(["list", "-v", "suite(disk)"]).go().code(0).text());
}

#[test]
fn a_list_for_programs() {
    let lab = Lab::new();
    shown(&lab);
    let outcome = lab.belljar(["list", "--json", "--profile", "ci", "tag(slow)"]).go();
    outcome.code(0);
    let text = outcome.text().replace(&lab.path("").display().to_string(), "[LAB]/");
    let _json: Value = serde_json::from_str(&text).expect("JSON");
    insta::assert_snapshot!(text);
}

#[test]
fn what_would_run_is_shown_and_not_run() {
    let lab = Lab::new();
    shown(&lab);
    let dry = lab.test(["--dry-run"]).go();
    assert_eq!(dry.code(0).text(), lab.belljar(["list"]).go().text());
    assert_eq!(lab.runs().len(), 0);
}

/// One of everything.
fn mixed(lab: &Lab) {
    lab.suite(
        &format!("{SUITE}retries = 1\n"),
        &[
            ("1-pass", "echo fine"),
            ("2-fail", "echo working; echo 'no: it is broken' >&2; echo x > $BELLJAR_OUT/x; exit 3"),
            ("3-skip", "echo no loop devices; exit 77"),
            ("4-skipped", "# belljar: skip = \"not today\"\n:"),
            ("5-flaky", "[ $BELLJAR_ATTEMPT = 2 ]"),
            ("6-crash", "machine serial 'send \"[   12.345678] Kernel panic - not syncing: Fatal exception\\r\\n\"' panicked; exec sleep 60"),
            ("7-late", "# belljar: timeout = \"300ms\"\nexec sleep 60"),
            ("8-tap", "# belljar: format = \"tap\"\necho 1..2; echo ok 1 - a; echo not ok 2 - b"),
            ("9-large", "# belljar: memory = \"70GiB\"\n:"),
        ],
    );
}

/// What is said without what differs from run to run.
fn plain(lab: &Lab, text: &str) -> String {
    let mut text = text.replace(&lab.path("").display().to_string(), "[LAB]/");
    for run in lab.runs() {
        text = text.replace(&run.file_name().unwrap_or_default().to_string_lossy().into_owned(), "[RUN]");
    }
    text
}

const TIMES: [(&str, &str); 1] = [(r"\[ *\d+\.\d+s\]", "[   [TIME]s]")];

#[test]
fn a_mixed_run_told_plainly() {
    let lab = Lab::new();
    mixed(&lab);
    let outcome = lab.test(["-j1"]).go();
    outcome.code(100);
    assert_eq!(outcome.stderr, "");
    insta::with_settings!({ filters => TIMES.to_vec() }, {
        insta::assert_snapshot!(plain(&lab, &outcome.text()));
    });
}

#[test]
fn quiet_says_only_what_is_bad_and_verbose_more() {
    let lab = Lab::new();
    mixed(&lab);
    let quiet = lab.test(["-j1", "-q"]).go().code(100).text();
    assert!(!quiet.contains("1-pass") && !quiet.contains("3-skip") && quiet.contains("2-fail"), "{quiet}");
    let verbose = lab.test(["-j1", "-v"]).go().code(100).text();
    for word in ["accelerator", "4-skipped", "not today", "1-pass"] {
        assert!(verbose.contains(word), "{word}: {verbose}");
    }
    lab.suite(SUITE, &[]);
    let well = lab.test(["-q", "name(1-pass)"]).go().code(0).text();
    assert!(well.lines().count() <= 2, "{well}");
}

#[test]
fn colours_on_a_terminal_unless_told_not_to() {
    let lab = Lab::new();
    lab.suite(SUITE, &[("a", "exit 0"), ("b", "exit 1")]);
    let told = |no_color: bool| {
        let pty = Pty::new();
        let call = lab.test(["-j1"]).env("TERM", "xterm").stdout(pty.stdio());
        let call = if no_color { call.env("NO_COLOR", "1") } else { call };
        call.go().code(100);
        pty.await_text("Summary");
        String::from_utf8_lossy(&pty.seen()).into_owned()
    };
    assert!(told(false).contains("\x1b[1;31m"), "{:?}", told(false));
    let plain = told(true);
    // The live lines still move the cursor; nothing is painted.
    let painted = plain.split("\x1b[").skip(1).any(|rest| {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != ';').unwrap_or(0);
        rest[end..].starts_with('m') && !matches!(&rest[..end], "" | "0")
    });
    assert!(!painted, "{plain:?}");
    let piped = lab.test(["-j1"]).go();
    assert!(!piped.text().contains('\x1b'), "{:?}", piped.text());
}

#[test]
fn reports_are_written_where_asked() {
    let lab = Lab::new();
    lab.suite(
        &format!("{SUITE}[profile.default]\njunit = \"reports/j.xml\"\ntap = \"reports/t.tap\"\n"),
        &[("a", "exit 0")],
    );
    fs::create_dir(lab.path("elsewhere")).expect("directory");
    let mut command = lab.test(["-c", "../workspace", "--tap", "mine.tap", "--html", "deep/er/h.html"]).to_command();
    let said = command.current_dir(lab.path("elsewhere")).output().expect("belljar starts");
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    assert!(lab.path("workspace/reports/j.xml").exists(), "the profile's are relative to belljar.toml");
    assert!(lab.path("elsewhere/mine.tap").exists() && !lab.path("workspace/reports/t.tap").exists());
    assert!(lab.path("elsewhere/deep/er/h.html").exists());
    let names: Vec<_> = fs::read_dir(lab.path("workspace/reports")).expect("reports").collect();
    assert_eq!(names.len(), 1, "nothing half-written is left: {names:?}");
}

#[test]
fn a_report_that_cannot_be_written_is_no_success() {
    let lab = Lab::new();
    lab.suite(SUITE, &[("a", "exit 0"), ("b", "exit 1")]);
    fs::write(lab.path("workspace/file"), "").expect("file");
    for path in ["file/r.xml", "/dev/full", "/proc/r.xml"] {
        let outcome = lab.test(["--junit", path, "name(a)"]).go();
        outcome.code(125).complains("cannot write the report").complains(path);
        // What failed says more.
        lab.test(["--junit", path, "name(b)"]).go().code(100).complains("cannot write the report");
    }
    lab.belljar(["report", "-o", "file/r.xml"]).go().code(125).complains("cannot write the report");
}

#[test]
fn a_report_is_only_of_a_suite_and_only_of_a_run() {
    let lab = Lab::new();
    lab.belljar(["report"]).go().code(125).complains("there is no run of `belljar test`");
    lab.run(WELL).sh("true").go().code(0);
    lab.belljar(["report"]).go().code(125).complains("there is no run of `belljar test`");
    lab.belljar(["report", "../../etc"]).go().code(125).complains("there is no run");
}

#[test]
fn the_password_of_a_guest_stays_where_it_is() {
    let lab = Lab::new();
    lab.image("disk.qcow2", "qcow2");
    let guest = "[guests.p]\nimage = \"../disk.qcow2\"\nlogin = { user = \"root\", password-env = \"GUEST_SECRET\" }\n";
    lab.suite(&format!("{guest}\n{}", SUITE.replace("\"g\"", "\"p\"")), &[("a", "exit 0")]);
    let script = "[serial]\nlogin user=root password=hunter2-hunter2\n[agent]\nwait agent 80000\nagent pid1=off\n";
    let outcome = lab.test(["--error-retries", "0"]).go();
    outcome.code(125);
    assert!(outcome.text().contains("GUEST_SECRET"), "{}", outcome.text());
    let outcome =
        lab.test(["-v", "--html", "r.html"]).script(script).env("GUEST_SECRET", "hunter2-hunter2").in_playground().go();
    outcome.code(0).keeps_secret("hunter2-hunter2");
    assert!(!fs::read_to_string(lab.path("workspace/r.html")).expect("report").contains("hunter2-hunter2"));
    lab.belljar(["list", "--json"]).env("GUEST_SECRET", "hunter2-hunter2").go().keeps_secret("hunter2-hunter2");
}
