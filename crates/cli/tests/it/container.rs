//! Containers, against an engine that checks what it is told and plays what goes wrong (`testing/fake-engine`); its containers are namespaces in
//! which the agent itself runs.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use write_program::write_program;

use crate::harness::{Lab, Outcome};

const ENGINE: &str = include_str!("../../../../testing/fake-engine/engine.sh");

const SYSTEMD: &str = include_str!("../../../../testing/fake-engine/systemd.sh");

/// An engine of a lab's own.
pub(crate) struct Engine<'a> {
    lab: &'a Lab,
    kind: &'static str,
}

impl<'a> Engine<'a> {
    /// `belljar test` of these guests and suites.
    fn suite(&self, config: &str) -> Outcome<'a> {
        fs::write(self.lab.path("workspace/belljar.toml"), config).expect("file");
        self.lab.belljar(["test".into(), "--engine".into(), self.program().into_os_string()]).go()
    }

    /// One of this kind, with one image.
    pub(crate) fn new(lab: &'a Lab, kind: &'static str) -> Self {
        let engine = Self { lab, kind };
        fs::create_dir_all(engine.path("")).expect("directory");
        write_program(engine.program(), ENGINE);
        fs::write(engine.path("systemd.sh"), SYSTEMD).expect("program");
        engine.file("kind", kind).file("images", "img\n")
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.lab.path(format!("engines/{}", self.kind)).join(name)
    }

    pub(crate) fn program(&self) -> PathBuf {
        self.path(self.kind)
    }

    pub(crate) fn file(self, name: &str, text: &str) -> Self {
        fs::write(self.path(name), text).expect("file");
        self
    }

    /// What goes wrong from now on.
    pub(crate) fn manner(&self, manner: &str) {
        fs::write(self.path("manner"), manner).expect("file");
    }

    /// What it was told.
    pub(crate) fn calls(&self) -> String {
        fs::read_to_string(self.path("calls")).unwrap_or_default()
    }

    /// How often it was told something that begins like this.
    pub(crate) fn told(&self, begins: &str) -> usize {
        self.calls().lines().filter(|line| line.starts_with(begins)).count()
    }

    /// Whether a container of it runs whose agent has begun.
    pub(crate) fn is_up(&self) -> bool {
        let agent = |entry: fs::DirEntry| {
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let root = fs::read_link(entry.path().join("root")).unwrap_or_default();
            line.starts_with(b"/.belljar/agent\0serve\0") && root.starts_with(self.path(""))
        };
        fs::read_dir("/proc").into_iter().flatten().flatten().any(agent)
    }

    /// Runs a shell's line in a container.
    pub(crate) fn run(&self, more: &[&str], line: &str) -> Outcome<'a> {
        let program = self.program().into_os_string();
        let fixed = ["--engine".into(), program, "--container".into(), "img".into()];
        let words = ["run".into()].into_iter().chain(fixed).chain(more.iter().map(Into::into));
        self.lab.belljar(words).sh(line).go()
    }
}

#[test]
fn what_a_command_does_is_exact_whatever_the_engine() {
    for kind in ["podman", "docker"] {
        let lab = Lab::new();
        let engine = Engine::new(&lab, kind);
        let outcome = engine.run(&["-v"], "cat; echo out; echo err >&2; exit 7");
        outcome.code(7).says("out\n").complains("err").complains("engine: ").complains("agent on a socket");
        engine.run(&[], "kill -9 $$").code(137).complains("SIGKILL");
        engine.run(&[], "exec /no/such/program").code(127);
        let program = engine.program().into_os_string();
        let words = ["run".into(), "--engine".into(), program, "--container".into(), "img".into()];
        lab.belljar(words).stdin("a\nb\n").sh("wc -l; id -u; pwd").go().code(0).says("2\n0\n/mnt/hostos\n");
        assert_eq!(engine.told("import "), 1, "what was found out is remembered: {}", engine.calls());
    }
}

#[test]
fn a_workspace_is_what_its_mode_says() {
    for (kind, how) in [("podman", "share: overlay"), ("docker", "share: copy")] {
        let lab = Lab::new();
        let engine = Engine::new(&lab, kind);
        fs::write(lab.path("workspace/there"), "before\n").expect("file");
        let there = || fs::read_to_string(lab.path("workspace/there")).expect("file");
        let outcome = engine.run(&["-v", "--workspace-mode", "cow"], "echo after > there; touch new; cat there");
        outcome.code(0).says("after\n").complains(how);
        assert_eq!((there().as_str(), lab.path("workspace/new").exists()), ("before\n", false));
        engine.run(&["--workspace-mode", "ro"], "echo after > there").code(2);
        assert_eq!(there(), "before\n");
        engine.run(&[], "echo after > there; echo x > $BELLJAR_OUT/x").code(0);
        assert_eq!(there(), "after\n");
    }
}

#[test]
fn an_engine_is_told_more_where_it_starts_nothing_as_it_is() {
    let lab = Lab::new();
    let engine = Engine::new(&lab, "podman").file("manner", "limits");
    engine.run(&["-v"], "true").code(0).complains("--ulimit nproc=100:100").complains("tried before: as it is");
    let tried = engine.calls().lines().filter(|line| line.contains("--entrypoint /agent")).count();
    engine.run(&[], "true").code(0);
    let now = engine.calls().lines().filter(|line| line.contains("--entrypoint /agent")).count();
    assert_eq!(tried, now);
    assert!(tried > 3, "{}", engine.calls());
}

#[test]
fn the_engine_that_works_is_taken() {
    let lab = Lab::new();
    let podman = Engine::new(&lab, "podman").file("manner", "no-container");
    let docker = Engine::new(&lab, "docker");
    let path = [podman.path(""), docker.path("")].map(|dir| dir.display().to_string()).join(":");
    let path = format!("{path}:{}", std::env::var("PATH").unwrap_or_default());
    let run = || lab.belljar(["run", "-v", "--container", "img"]).env("PATH", &path).sh("true").go();
    run().code(0).complains("engine: Docker version 24.0.7");
    docker.manner("no-daemon");
    // What is remembered is not asked again, and then the engine itself says it.
    run().code(125).complains("Cannot connect to the Docker daemon");
    let doctor = lab.belljar(["doctor", "--fresh"]).env("PATH", &path).go();
    doctor.tells("it runs no container: OCI runtime error: nothing works here").tells("systemctl start docker");
}

#[test]
fn without_an_engine_it_is_said_how_to_have_one() {
    let lab = Lab::new();
    let run = |more: &[&str]| {
        let words = ["run", "--container", "img"].iter().chain(more);
        lab.belljar(words).env("PATH", "/no/such").sh("true").go()
    };
    run(&[]).code(125).complains("there is no container engine").complains("install podman");
    run(&["--engine", "/usr"]).code(125).complains("/usr is no program");
    run(&["--engine", "/no/such/engine"]).code(125).complains("there is no container engine /no/such/engine");
    let other = Engine::new(&lab, "podman").file("kind", "QEMU emulator version 8.2.0");
    other.run(&[], "true").code(125).complains("neither podman nor docker");
}

#[test]
fn an_image_is_fetched_where_that_is_asked_for_and_never_else() {
    for kind in ["podman", "docker"] {
        let lab = Lab::new();
        let engine = Engine::new(&lab, kind).file("images", "");
        let missing = engine.run(&[], "true");
        missing.code(125).complains("has no image img").complains("pull img").complains("pull = \"missing\"");
        assert_eq!(engine.told("pull"), 0);
        engine.manner("pull-refused");
        engine
            .run(&["--pull", "missing"], "true")
            .code(125)
            .complains("cannot fetch the image img")
            .complains("denied");
        engine.manner("");
        engine.run(&["--pull", "missing"], "true").code(0);
        engine.run(&["--pull", "missing"], "true").code(0);
        assert_eq!(engine.told("pull"), 2);
        engine.run(&["--pull", "always"], "true").code(0);
        assert_eq!(engine.told("pull"), 3);
    }
}

#[test]
fn what_goes_wrong_is_told_with_what_to_do() {
    for (manner, code, said) in [
        ("nonsense", 125, "cannot be read: "),
        ("full", 125, "make room where podman keeps its containers"),
        ("dies", 121, "before its agent had come up"),
        ("other-processor", 77, "install qemu-user-static"),
    ] {
        let lab = Lab::new();
        let engine = Engine::new(&lab, "podman");
        engine.run(&[], "true").code(0);
        engine.manner(manner);
        engine.run(&[], "true").code(code).complains(said);
    }
}

#[test]
fn an_engine_that_hangs_is_given_up() {
    let lab = Lab::new();
    let engine = Engine::new(&lab, "podman");
    engine.run(&[], "true").code(0);
    engine.manner("hang");
    let before = Instant::now();
    let outcome = engine.run(&["--boot-timeout", "1s"], "true");
    outcome.code(124).complains("did not bring the container up within 1 s").complains("podman ps");
    assert!(before.elapsed() < Duration::from_secs(30));
    assert_eq!(engine.told("rm --force --volumes belljar-"), 1, "{}", engine.calls());
}

#[test]
fn a_limit_that_the_engine_does_not_set_is_told() {
    let lab = Lab::new();
    let engine = Engine::new(&lab, "podman");
    engine.manner("unlimited");
    engine.run(&[], "true").code(0).complains("podman cannot limit memory here: a container may take all");
    // One that turns out so only later.
    let lab = Lab::new();
    let engine = Engine::new(&lab, "podman");
    engine.manner("unlimited-later");
    let outcome = engine.run(&["--memory", "256M"], "true");
    outcome
        .code(0)
        .complains("podman says: Resource limits are not supported and ignored")
        .complains("may not be limited");
    // Once for a suite.
    lab.test_file("t/a", "exit 0");
    lab.test_file("t/b", "exit 0");
    let outcome =
        engine.suite("[guests.c]\ncontainer = 'img'\n[[suites]]\nname = 's'\ntests = 't/*'\nguests = ['c']\n");
    let outcome = outcome.code(0);
    let told = format!("{}{}", outcome.stderr, String::from_utf8_lossy(&outcome.stdout));
    assert_eq!(told.matches("podman says").count(), 1, "{told}");
}

#[test]
fn an_images_own_user_and_directory_are_a_commands() {
    let lab = Lab::new();
    let dir = r#"[{"Id": "77", "Config": {"WorkingDir": "/usr"}, "Architecture": ""}]"#;
    let engine = Engine::new(&lab, "docker").file("inspected", dir);
    engine.run(&["-w", "none"], "id -u; pwd").code(0).says("0\n/usr\n");
    engine.run(&[], "pwd").code(0).says("/mnt/hostos\n");
    let missing = r#"[{"Id": "77", "Config": {"WorkingDir": "/srv/not there"}, "Architecture": ""}]"#;
    let engine = engine.file("inspected", missing);
    engine.run(&["-w", "none"], "pwd").code(0).says("/srv/not there\n");
    // An ordinary user's namespaces know no other users.
    let mut engine = engine;
    if rustix::process::geteuid().is_root() {
        let user = r#"[{"Id": "77", "Config": {"User": "12:34"}, "Architecture": ""}]"#;
        engine = engine.file("inspected", user);
        engine.run(&[], "id -u; id -g").code(0).says("12\n34\n");
        engine.run(&["-u", "root"], "id -u").code(0).says("0\n");
        let group = r#"[{"Id": "77", "Config": {"User": ":5"}, "Architecture": ""}]"#;
        engine = engine.file("inspected", group);
        engine.run(&[], "id -u; id -g; id -G").code(0).says("0\n5\n5\n");
    }
    let other = r#"[{"Id": "77", "Architecture": "mips64"}]"#;
    let engine = engine.file("inspected", other);
    engine.run(&[], "true").code(77).complains("for the processor mips64, for which there is no agent here");
}

#[test]
fn a_container_ends_with_its_belljar() {
    let lab = Lab::new();
    let engine = Engine::new(&lab, "podman");
    let program = engine.program().into_os_string();
    let words = ["run".into(), "--engine".into(), program, "--container".into(), "img".into()];
    let live = lab.belljar(words).sh("touch running; exec sleep 1000").spawn();
    let until = Instant::now() + Duration::from_secs(60);
    while !lab.path("workspace/running").exists() {
        assert!(Instant::now() < until, "it does not come up: {}", engine.calls());
        std::thread::sleep(Duration::from_millis(20));
    }
    // The laboratory sees that no process is left.
    live.kill();
    let owner = engine.calls().lines().rev().find_map(|line| Some(line.split_once("belljar.owner=")?.1.to_owned()));
    let owner = owner.and_then(|rest| Some(rest.split_once(' ')?.0.to_owned())).expect("a label");
    // The next start looks for what may be left, and removes that alone.
    let left = format!("c1 map[belljar.owner:{owner} x:y]\nc2 map[belljar.owner:elsewhere/1/2/3]\nc3 map[a:b]\n");
    fs::write(engine.path("left"), left).expect("file");
    engine.run(&[], "true").code(0).complains("removed the container c1, left by a belljar that has ended");
    assert_eq!((engine.told("rm --force --volumes c1"), engine.told("rm --force --volumes c")), (1, 1));
    let before = engine.told("ps ");
    engine.run(&[], "true").code(0);
    assert_eq!(engine.told("ps "), before, "nobody was killed since");
}

#[test]
fn a_suite_runs_what_a_container_can_and_skips_the_rest() {
    let lab = Lab::new();
    let engine = Engine::new(&lab, "podman");
    lab.suite(
        "[guests.box]\ncontainer = \"img\"\n[[suites]]\nname = \"s\"\ntests = \"t/*\"\nguests = [\"box\"]\nsetup = \"setup/one\"\nsetup-once = true\n",
        &[
            ("pass", "echo x > mine; test -e /mnt/hostos/t/pass; echo y > $BELLJAR_OUT/y"),
            ("fail", "exit 3"),
            ("skip", "echo not here; exit 77"),
            ("machine", "# belljar: needs = \"machine\"\nexit 1"),
            ("disks", "# belljar: disks = [{ size = \"1GiB\" }]\nexit 1"),
            ("slow", "# belljar: timeout = \"1s\"\nsleep 1000"),
        ],
    );
    lab.test_file("setup/one", "exit 0");
    let program = engine.program();
    let program = program.to_str().expect("text");
    let listed = lab.belljar(["list", "--engine", program]).go();
    listed.code(0).tells("skipped: it needs a machine").tells("skipped: it wants disks");
    let outcome = lab.belljar(["test", "--engine", program]).go();
    outcome.code(100);
    let verdicts = outcome.verdicts();
    let of = |test: &str| verdicts.iter().find(|(id, _)| id.contains(test)).map(|(_, v)| v.as_str()).unwrap_or("none");
    assert!(of("pass").starts_with("pass"), "{verdicts:?}");
    assert!(of("fail").contains('3') && of("skip").contains("not here"), "{verdicts:?}");
    assert!(of("machine").starts_with("skip") && of("disks").starts_with("skip"), "{verdicts:?}");
    assert!(of("slow").starts_with("timeout"), "{verdicts:?}");
    assert!(!lab.path("workspace/mine").exists());
    assert_eq!(engine.told("commit "), 1, "{}", engine.calls());
}

#[test]
fn systemd_is_the_first_process_where_that_is_asked_for() {
    for kind in ["podman", "docker"] {
        let lab = Lab::new();
        let engine = Engine::new(&lab, kind);
        let outcome = engine
            .run(&["-v", "--systemd"], "read -r name </proc/1/comm; echo $name; systemctl is-system-running; exit 4");
        outcome.code(4).says("systemd\nrunning\n").complains("booted: running").complains("which systemd is now");
        engine.run(&[], "read -r name </proc/1/comm; echo $name").code(0).says("belljar-agent\n");
        engine.manner("degraded");
        engine.run(&["--systemd"], "true").code(0).complains("degraded; failed: bad.service, worse.service");
        engine.manner("maintenance");
        engine.run(&["--systemd"], "true").code(121).complains("in the state maintenance; failed: bad.service");
        engine.manner("systemd-slow");
        let slow = engine.run(&["--systemd", "--boot-timeout", "3s"], "true");
        slow.code(124).complains(
            "did not say that the system is up within 3 s, which it calls starting; it waits for: slow.service",
        );
        engine.manner("no-systemctl");
        engine.run(&["--systemd"], "true").code(125).complains("its systemctl does not run");
        engine.manner("systemd-dies");
        engine.run(&["--systemd"], "true").code(121).complains("Failed to allocate manager object");
    }
}

#[test]
fn where_systemd_cannot_be_had_nothing_runs_for_it() {
    for (kind, manner, said) in [
        ("podman", "no-systemd", "the image has no systemd"),
        ("podman", "no-groups", "no control groups that systemd can write to"),
        ("docker", "no-groups", "`privileged` (--privileged) has docker give it such"),
    ] {
        let lab = Lab::new();
        let engine = Engine::new(&lab, kind);
        engine.run(&[], "true").code(0);
        engine.manner(manner);
        engine.run(&["--systemd"], "touch ran").code(77).complains(said);
        assert!(!lab.path("workspace/ran").exists());
    }
}

#[test]
fn a_container_ends_whose_systemd_does_not() {
    let lab = Lab::new();
    let engine = Engine::new(&lab, "podman");
    engine.run(&[], "true").code(0);
    engine.manner("systemd-frozen");
    engine.run(&["--systemd"], "sleep 1000 & echo here").code(0).says("here\n");
    assert_eq!(engine.told("rm --force --volumes belljar-"), 1, "{}", engine.calls());
}

#[test]
fn a_test_that_needs_systemd_is_skipped_where_there_is_none() {
    let lab = Lab::new();
    let engine = Engine::new(&lab, "podman");
    engine.run(&[], "true").code(0);
    let workspace = lab.path("workspace");
    let test = |name: &str, text: &str| lab.test_file(name, text);
    test("needs", "# belljar: needs = \"systemd\"\nread -r name </proc/1/comm; [ $name = systemd ]");
    test("asks", "systemctl is-system-running");
    let config = "[guests.with]\ncontainer = 'img'\nsystemd = true\n[guests.without]\ncontainer = 'img'\n\
                  [[suites]]\nname = 's'\ntests = 't/*'\nguests = ['with', 'without']\n";
    fs::write(workspace.join("belljar.toml"), config).expect("file");
    let program = engine.program().into_os_string();
    let words = ["test".into(), "--engine".into(), program.clone()];
    let outcome = lab.belljar(words).go();
    outcome.code(100).tells("PASS").tells("s/needs@with").tells("s/needs@without: skipped: it needs systemd");
    outcome.tells("4 tests: 2 passed, 1 failed, 1 skipped");
    let listed = lab.belljar(["list".into(), "--engine".into(), program]).go();
    listed.code(0).tells("it needs systemd, and this guest is a container without it").tells("3 units, 1 skipped");
    // Somebody else's process is no systemd, whatever it left.
    engine.manner("no-groups");
    let outcome = lab.belljar(["test".into(), "--engine".into(), engine.program().into_os_string()]).go();
    outcome.tells("s/needs@with: skipped").tells("s/asks@with: skipped");
}

#[test]
fn a_command_that_has_the_system_end_is_told_as_in_a_machine() {
    let lab = Lab::new();
    let engine = Engine::new(&lab, "podman");
    engine.run(&[], "true").code(0);
    let run = |line: &str| engine.run(&["--systemd"], line);
    let jobs = |unit: &str| format!("echo stopping >/run/state; echo '84 {unit} start waiting' >/run/jobs; exit");
    run(&format!("{} 0", jobs("poweroff.target")))
        .code(121)
        .complains("powered off while running: systemd was stopping");
    run(&format!("{} 7", jobs("reboot.target"))).code(121).complains("the guest rebooted unasked while running");
    // What it said when it came up is no reason.
    let ended = run("kill -47 1; sleep 100");
    ended.code(121).complains("its systemd powered the system off, or restarted it");
    assert!(!ended.stderr.contains("RLIMIT_CORE"), "{}", ended.stderr);
    // It may be about to execute itself anew.
    run("echo offline >/run/state; (sleep 1; echo running >/run/state) >/dev/null 2>&1 & exit 4").code(4);
    // It is there, and no longer what it was: for this command that is nothing.
    run("echo maintenance >/run/state; exit 3").code(3);
    run("rm /usr/bin/systemctl").code(0);
}

#[test]
fn an_agent_that_was_killed_or_stopped_is_told_soon() {
    let lab = Lab::new();
    let engine = Engine::new(&lab, "podman");
    engine.run(&[], "true").code(0);
    for (signal, said) in
        [("KILL", "the agent was killed, or died"), ("STOP", "the agent was stopped in the container")]
    {
        let begun = Instant::now();
        let line = format!("kill -{signal} $PPID; sleep 1000");
        engine.run(&["--systemd", "--timeout", "60s"], &line).code(121).complains(said);
        assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    }
    // Also where the command's time is over sooner.
    let late = engine.run(&["--systemd", "--timeout", "1s"], "kill -STOP $PPID; sleep 1000");
    late.code(121).complains("the agent was stopped in the container");
    engine.run(&["--systemd", "--timeout", "1s"], "sleep 1000").code(124);
    assert_eq!(engine.told("rm --force --volumes belljar-"), 3, "{}", engine.calls());
}

#[test]
fn what_is_no_systemd_is_not_believed_to_be_one() {
    let lab = Lab::new();
    let engine = Engine::new(&lab, "podman");
    engine.run(&[], "true").code(0);
    engine.manner("systemd-forged");
    engine.run(&["--systemd"], "touch ran").code(77).complains("is not systemd, although the image's systemctl says");
    assert!(!lab.path("workspace/ran").exists());
}

#[test]
fn the_next_test_does_not_run_in_a_system_that_stops() {
    let lab = Lab::new();
    let engine = Engine::new(&lab, "podman");
    engine.run(&[], "true").code(0);
    let test = |name: &str, text: &str| lab.test_file(name, text);
    // Each of them would fail in the container of another.
    let fresh = "[ ! -e /used ] || exit 9; : >/used;";
    test("a", &format!("{fresh} echo stopping >/run/state"));
    test("b", &format!("{fresh} echo maintenance >/run/state"));
    test("c", &format!("{fresh} echo hangs >/run/state"));
    test("d", &format!("{fresh} rm /usr/bin/systemctl"));
    test("e", &format!("{fresh} exit 0"));
    test("f", "[ -e /used ] || exit 9; : >/run/preparing");
    test("g", &format!("{fresh} exit 0"));
    let config = "[guests.g]\ncontainer = 'img'\nsystemd = true\n\
                  [[suites]]\nname = 's'\ntests = 't/*'\nguests = ['g']\nisolation = 'suite'\n";
    let outcome = engine.suite(config);
    outcome.code(100).tells("7 tests: 5 passed, 2 crashed").tells("the guest powered off");
    outcome.tells("logind was about to end the system when the command had ended");
    outcome.tells("the command leaves behind the system in the state maintenance");
    outcome.tells("the command leaves behind a systemd that has not said within 10 s how the system stands");
    outcome.tells("the command leaves behind a system without systemctl");
}

#[test]
fn units_that_a_test_leaves_are_stopped_by_systemd_and_named() {
    let lab = Lab::new();
    let engine = Engine::new(&lab, "podman");
    engine.run(&[], "true").code(0);
    let test = |name: &str, text: &str| lab.test_file(name, &format!("set -e\n{text}"));
    let left = |unit: &str| format!("echo '{unit} Left' >>/run/units");
    let [run, failed, none] =
        ["run-u1.service loaded active running", "bad.service loaded failed failed", "odd.mount loaded active mounted"];
    test(
        "a",
        &format!(
            "{}; {}; {}; {}; sed -i 's/idle.service loaded inactive dead/idle.service loaded active running/' /run/units",
            left(run),
            left(failed),
            left(none),
            left("opt.mount loaded failed failed")
        ),
    );
    test(
        "b",
        "cat /run/done; grep -q '^stop -- idle.service run-u1.service' /run/done; grep -q '^old.service' /run/units; grep -q '^odd' /run/units; ! grep '^run-u1' /run/units; echo x >/mine",
    );
    // What does not stop is killed.
    test(
        "c",
        &format!(
            "{}; sed -i 's/old.service loaded active/old.service loaded failed/' /run/units",
            left("hangs.service loaded active running")
        ),
    );
    test("d", "grep -q '^kill --signal=SIGKILL -- hangs.service' /run/done; [ -e /mine ]");
    test("e", &left("never.service loaded active running"));
    test("f", "[ ! -e /mine ]; sed -i /multi-user/d /run/units; echo x >/mine");
    test("g", "[ ! -e /mine ]");
    let config = "[guests.g]\ncontainer = 'img'\nsystemd = true\n\
                  [[suites]]\nname = 's'\ntests = 't/*'\nguests = ['g']\nisolation = 'suite'\n";
    let outcome = engine.suite(config);
    outcome.code(0).tells("7 tests: 7 passed");
    outcome.tells("note s/b@g: an earlier test left units of systemd behind, which were stopped: idle.service, run-u1.service, bad.service (failed), opt.mount (failed)");
    outcome.tells("note s/d@g: an earlier test left units of systemd behind, which were stopped: hangs.service");
    outcome
        .tells("note s/d@g: units of systemd that ran do not run any more after an earlier test: old.service (failed)");
    // It is told for each that runs without it, until there is another container.
    outcome
        .tells("note s/e@g: units of systemd that ran do not run any more after an earlier test: old.service (failed)");
    assert_eq!(outcome.text().matches("do not run any more").count(), 2, "{}", outcome.text());
    outcome.tells("an earlier test has left behind: the unit never.service, which does not stop");
    outcome.tells("an earlier test has left behind: the system without multi-user.target");
}

#[test]
fn a_daemon_that_a_test_has_stopped_is_no_other_tests() {
    let lab = Lab::new();
    let engine = Engine::new(&lab, "podman");
    engine.run(&[], "true").code(0);
    for (name, text) in [
        ("./setup", "sleep 1000 >/dev/null 2>&1 & echo $! >/pid"),
        ("t/a", "kill -STOP $(cat /pid); echo x >/mine"),
        ("t/b", "[ ! -e /mine ] && grep -q '^State:.*sleeping' /proc/$(cat /pid)/status"),
    ] {
        lab.test_file(name, text);
    }
    let config = "[guests.g]\ncontainer = 'img'\n[[suites]]\nname = 's'\ntests = 't/*'\nguests = ['g']\n\
                  isolation = 'suite'\nsetup = 'setup'\n";
    let outcome = engine.suite(config);
    outcome.code(0).tells("2 tests: 2 passed").tells("which somebody has stopped");
}

#[test]
fn a_set_up_that_has_the_system_end_is_what_failed() {
    let lab = Lab::new();
    let engine = Engine::new(&lab, "podman");
    engine.run(&[], "true").code(0);
    lab.test_file("t/a", "echo x >/mnt/hostos/ran");
    lab.test_file("./setup", "echo stopping >/run/state; echo '84 poweroff.target start waiting' >/run/jobs");
    for more in ["", "setup-once = true\n"] {
        let config = format!(
            "[guests.g]\ncontainer = 'img'\nsystemd = true\n\
             [[suites]]\nname = 's'\ntests = 't/*'\nguests = ['g']\nsetup = 'setup'\n{more}"
        );
        let outcome = engine.suite(&config);
        let why = "the set-up script setup failed: the guest powered off";
        outcome.code(125).tells(why).tells("systemd was stopping the system for poweroff.target");
        outcome.tells("1 test: 0 passed, 1 could not be judged");
        assert!(!lab.path("workspace/ran").exists());
    }
}

#[test]
fn a_set_up_is_kept_with_the_services_that_it_enables() {
    let lab = Lab::new();
    let engine = Engine::new(&lab, "podman");
    engine.run(&[], "true").code(0);
    let script = |name: &str, text: &str| lab.test_file(name, text);
    script("t/a", "true");
    let suite = |name: &str| {
        format!("[[suites]]\nname = '{name}'\ntests = 't/*'\nguests = ['g']\nsetup = '{name}'\nsetup-once = true\n")
    };
    let config = format!("[guests.g]\ncontainer = 'img'\nsystemd = true\n{}{}", suite("kept"), suite("not"));
    script("./kept", "echo 'enabled.service loaded active running X' >>/run/units");
    script(
        "./not",
        "echo 'enabled.service loaded active running X\nplain.service loaded active running X' >>/run/units",
    );
    let outcome = engine.suite(&config);
    outcome.code(0).tells("2 tests: 2 passed");
    outcome.tells("it leaves behind the unit plain.service, which is not enabled (`systemctl enable plain.service` has it run in each container)");
    assert_eq!(engine.told("commit "), 1, "{}", engine.calls());
}

#[test]
fn nothing_of_the_hosts_comes_where_the_engine_makes_files() {
    let lab = Lab::new();
    let engine = Engine::new(&lab, "podman");
    engine.run(&[], "true").code(0);
    let looks =
        || engine.calls().lines().filter(|line| line.contains("/.belljar/agent") && line.contains(" places ")).count();
    assert_eq!(looks(), 1, "{}", engine.calls());
    engine.run(&[], "true").code(0);
    assert_eq!(looks(), 1, "what an image is like is remembered");
    engine.run(&["--mount-at", "/a:b"], "touch ran").code(125).complains("at \"/a:b\", for the path has a colon");
    engine
        .run(&["--dry-run", "-u", "bob"], "exit 3")
        .code(0)
        .tells("--user bob")
        .tells("--entrypoint sh 0123abcd -c 'exit 3'");
    engine.run(&["--mount-at", "/etc"], "touch ran").code(125).complains("leads to /etc").complains("--mount-at");
    engine.manner("linked");
    let id = r#"[{"Id": "4567abcd", "Config": {}, "Architecture": ""}]"#;
    let engine = engine.file("inspected", id);
    for _ in 0..2 {
        engine.run(&[], "touch ran").code(125).complains("in the image img /mnt/hostos is a link to /etc");
    }
    engine.run(&["--mount-at", "/srv/w"], "pwd").code(0).says("/srv/w\n");
    assert!(!lab.path("workspace/ran").exists());
}

#[test]
fn a_missing_image_is_foreseen_and_kept_images_are_told_and_removed() {
    let lab = Lab::new();
    let engine = Engine::new(&lab, "podman");
    engine.run(&[], "true").code(0);
    let workspace = lab.path("workspace");
    let config = "[guests.there]\ncontainer = 'img'\n[guests.missing]\ncontainer = 'none'\n\
                  [[suites]]\nname = 's'\ntests = 't'\nguests = ['there', 'missing']\n";
    fs::write(workspace.join("belljar.toml"), config).expect("file");
    write_program(workspace.join("t"), "#!/bin/sh\n");
    let program = engine.program().into_os_string();
    let listed = lab.belljar(["list".into(), "--engine".into(), program.clone()]).go();
    listed.code(0).tells("cannot run: podman has no image none").tells("(1 cannot run here)");

    let template = |words: &[&str]| lab.belljar(["template"].iter().chain(words)).env("BELLJAR_ENGINE", &program).go();
    let listed = || engine.told("images --filter label=belljar.cache=");
    template(&["list"]).code(0);
    assert_eq!(listed(), 0, "nobody is asked where nothing was kept");
    let config = "[guests.there]\ncontainer = 'img'\n[[suites]]\nname = 's'\ntests = 't'\nguests = ['there']\nsetup = 'setup'\nsetup-once = true\n";
    fs::write(workspace.join("belljar.toml"), config).expect("file");
    write_program(workspace.join("setup"), "#!/bin/sh\n");
    lab.belljar(["test".into(), "--engine".into(), program.clone()]).go().code(0);
    let engine = engine.file("kept", "0123456789ab localhost/belljar-setup:k 12 MB\n");
    template(&["list"]).code(0).tells("12 MB").tells("localhost/belljar-setup:k");
    assert_eq!(engine.told("rmi 0123456789ab"), 0);
    template(&["prune", "--all"]).code(0).tells("1 images of containers removed");
    assert_eq!(engine.told("rmi 0123456789ab"), 1, "{}", engine.calls());
}
