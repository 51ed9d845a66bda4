//! Commands: how they start and how they end.

use std::os::unix::fs::PermissionsExt;

use belljar_proto::message::{OutputEnd, Status, Stdio, ToAgent, ToHost, WindowSize};

use crate::peer::{Peer, exec};

const ENOENT: i32 = 2;
const ENOEXEC: i32 = 8;
const EACCES: i32 = 13;

#[test]
fn exit_codes_are_exact() {
    let mut peer = Peer::greeted();
    for (id, code) in [(1, 0), (2, 1), (3, 7), (4, 255)] {
        let ran = peer.sh(id, &format!("exit {code}"));
        assert_eq!(ran.status, Some(Status::Code(code)));
    }
}

#[test]
fn signals_are_named() {
    let mut peer = Peer::greeted();
    for (id, signal) in [(1, 9), (2, 15), (3, 6), (4, 13)] {
        let ran = peer.sh(id, &format!("ulimit -c 0; kill -{signal} $$"));
        assert_eq!(ran.status, Some(Status::Signal { signal, core: false }));
    }
}

#[test]
fn the_streams_stay_apart() {
    let mut peer = Peer::greeted();
    let ran = peer.sh(1, "echo out; echo err >&2; echo out2; echo err2 >&2");
    assert_eq!(ran.stdout, b"out\nout2\n");
    assert_eq!(ran.stderr, b"err\nerr2\n");
}

#[test]
fn what_cannot_start_says_why() {
    let mut peer = Peer::greeted();
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &str, mode| {
        let path = directory.path().join(name);
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let plain = file("plain", "not a program", 0o644);
    let lost = file("lost", "#!/no/such/interpreter\n", 0o755);
    let mut failure = |exec| {
        let ran = peer.run(exec);
        assert_eq!(ran.status, None);
        ran.failed.unwrap()
    };

    let (what, errno) = failure(exec(1, &["no-such-program-here"]));
    assert_eq!(errno, ENOENT);
    assert_eq!(what, "find no-such-program-here in PATH=/usr/local/bin:/usr/bin:/bin");

    let (what, errno) = failure(exec(2, &["/no/such/program"]));
    assert_eq!((&*what, errno), ("execve /no/such/program", ENOENT));

    let (what, errno) = failure(exec(3, &[&plain]));
    assert_eq!((what, errno), (format!("execve {plain}, for it is not executable (chmod +x)"), EACCES));

    let (what, errno) = failure(exec(4, &[&lost]));
    assert_eq!(
        (what, errno),
        (format!("execve {lost}, for its interpreter /no/such/interpreter is missing in the guest"), ENOENT)
    );

    // It was found, so that it is not the one that is missing.
    let mut found = exec(8, &["lost"]);
    let path = directory.path().to_str().unwrap();
    found.env = vec![format!("PATH=/usr/bin:{path}").into_bytes()];
    let (what, errno) = failure(found);
    assert_eq!(
        (what, errno),
        (format!("execve {path}/lost, for its interpreter /no/such/interpreter is missing in the guest"), ENOENT)
    );

    // A program of another machine is not read by a shell as its script.
    let mut foreign = std::fs::read("/proc/self/exe").unwrap()[..512].to_vec();
    foreign[18] = 183;
    let path = directory.path().join("foreign");
    std::fs::write(&path, &foreign).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    let (what, errno) = failure(exec(9, &[path.to_str().unwrap()]));
    assert!(what.contains("it is a program for aarch64, the guest is"), "{what}");
    assert_eq!(errno, ENOEXEC);

    let mut wrong = exec(5, &["true"]);
    wrong.cwd = Some(b"/no/such/directory".to_vec());
    let (what, errno) = failure(wrong);
    assert_eq!(
        (&*what, errno),
        ("change to its directory /no/such/directory: there is no such directory in the guest", 0)
    );

    let mut wrong = exec(6, &["true"]);
    wrong.user = Some("no-such-user".into());
    let (what, errno) = failure(wrong);
    assert_eq!((&*what, errno), ("find user \"no-such-user\" in /etc/passwd", 0));

    let (_, errno) = failure(exec(7, &[]));
    assert_eq!(errno, ENOENT);
}

#[test]
fn a_script_without_a_first_line_runs_in_sh() {
    let mut peer = Peer::greeted();
    let directory = tempfile::tempdir().unwrap();
    let script = directory.path().join("script");
    std::fs::write(&script, "echo \"$0 $1\"\nexit 5\n").unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    let script = script.to_str().unwrap();
    let ran = peer.run(exec(1, &[script, "argument"]));
    assert_eq!(ran.text(), format!("{script} argument\n"));
    assert_eq!(ran.status, Some(Status::Code(5)));
}

#[test]
fn environment_and_directory_are_as_asked() {
    let mut peer = Peer::greeted();
    let mut wanted = exec(1, &["sh", "-c", "pwd; echo $LANG $EXTRA; umask"]);
    wanted.cwd = Some(b"/usr".to_vec());
    wanted.env = vec![b"EXTRA=a b".to_vec()];
    assert_eq!(peer.run(wanted).text(), "/usr\nC a b\n0022\n");

    let mut wanted = exec(2, &["/usr/bin/env"]);
    wanted.clear_env = true;
    wanted.env = vec![b"ONLY=this".to_vec()];
    assert_eq!(peer.run(wanted).text(), "ONLY=this\n");
}

#[test]
fn a_command_has_the_signals_of_a_new_process() {
    let mut peer = Peer::greeted();
    let ran = peer.sh(1, "grep -E '^Sig(Blk|Ign)' /proc/self/status");
    let masks: Vec<&str> = ran.text().split_whitespace().filter(|word| !word.ends_with(':')).collect();
    assert_eq!(masks, ["0000000000000000"; 2]);
}

#[test]
fn a_command_has_only_its_three_descriptors() {
    let mut peer = Peer::greeted();
    // 3 is the directory that ls reads.
    assert_eq!(peer.run(exec(1, &["ls", "/proc/self/fd"])).text(), "0\n1\n2\n3\n");
}

#[test]
fn users_are_switched() {
    if !std::fs::read_to_string("/proc/self/status").unwrap().contains("Uid:\t0\t0\t0\t0") {
        // Only root can become somebody else.
        return;
    }
    let mut peer = Peer::greeted();
    let mut wanted = exec(1, &["sh", "-c", "id -u; id -g; id -G; echo $HOME $USER"]);
    wanted.user = Some("12345:54321".into());
    assert_eq!(peer.run(wanted).text(), "12345\n54321\n54321\n/ 12345\n");

    // Where its home is differs between systems.
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap();
    let daemon = passwd.lines().find(|line| line.starts_with("daemon:")).unwrap();
    let home = daemon.split(':').nth(5).unwrap();
    let mut wanted = exec(2, &["sh", "-c", "id -un; echo $HOME $USER $LOGNAME"]);
    wanted.user = Some("daemon".into());
    assert_eq!(peer.run(wanted).text(), format!("daemon\n{home} daemon daemon\n"));

    // The standard streams can be opened by name, which a pipe's owner and mode decide.
    let script = "cat </dev/stdin; echo out >/dev/stdout; echo err >/dev/stderr";
    let mut wanted = exec(3, &["sh", "-c", script]);
    wanted.user = Some("12345".into());
    let ran = peer.run(wanted);
    assert_eq!((ran.status, ran.text(), &*ran.stderr), (Some(Status::Code(0)), "out\n", &b"err\n"[..]));
}

#[test]
fn a_process_left_behind_does_not_hold_the_end_up() {
    let mut peer = Peer::greeted();
    let ran = peer.sh(1, "sleep 60 & echo $!");
    assert_eq!((ran.status, ran.output), (Some(Status::Code(0)), Some(OutputEnd::LeftOpen)));
    assert!(ran.lingers);
    let left_behind = ran.text().trim().to_owned();
    // It lives on, and may write.
    let ran = peer.sh(2, &format!("kill -0 {left_behind} && kill {left_behind}"));
    assert_eq!(ran.status, Some(Status::Code(0)));
}

#[test]
fn a_process_left_behind_that_floods_does_not_hold_the_end_up_and_is_ended() {
    let mut peer = Peer::greeted();
    let ran = peer.sh(1, "yes >&2 & echo $!");
    assert_eq!((ran.status, ran.output), (Some(Status::Code(0)), Some(OutputEnd::Cut)));
    // By a closed pipe, once it has written more than anybody would. Who reaps it is another matter.
    let ran = peer.sh(
        2,
        &format!("while grep -q '^State:.[^ZX]' /proc/{}/status 2>/dev/null; do sleep 0.01; done", ran.text().trim()),
    );
    assert_eq!(ran.status, Some(Status::Code(0)));
}

#[test]
fn the_last_lines_of_a_tee_are_not_lost() {
    let mut peer = Peer::greeted();
    for id in 1..=20 {
        let ran = peer.run(exec(id, &["bash", "-c", "exec > >(tee /dev/null) 2>&1; seq 2000"]));
        assert_eq!((ran.status, ran.output), (Some(Status::Code(0)), Some(OutputEnd::Whole)));
        assert!(ran.text().ends_with("\n2000\n"), "{:?}", ran.text().len());
    }
}

/// Silent for two seconds in which nobody waits for it, and slow after that.
#[test]
fn a_filter_that_outlives_its_command_is_heard_out() {
    let mut peer = Peer::greeted();
    let filter = "sleep 2; while read -r line; do sleep 0.3; echo \"$line\"; done";
    // The command itself has been silent for long before it ends.
    let script = format!("exec > >({filter}) 2>&1; seq 5; sleep 6");
    let ran = peer.run(exec(1, &["bash", "-c", &script]));
    assert_eq!((ran.status, ran.output), (Some(Status::Code(0)), Some(OutputEnd::Whole)));
    assert_eq!(ran.text(), "1\n2\n3\n4\n5\n");
    let ran = peer.run(exec(2, &["bash", "-c", &script.replace("; sleep 6", "; exit 3")]));
    assert_eq!((ran.status, ran.output, ran.lingers), (Some(Status::Code(3)), Some(OutputEnd::Whole), true));
    assert_eq!(ran.text(), "1\n2\n3\n4\n5\n");
}

/// A guest with little time of its host may take long to come to the next line.
#[test]
fn a_process_left_behind_that_works_in_silence_is_heard_out() {
    let mut peer = Peer::greeted();
    let ran = peer.run(exec(1, &["bash", "-c", "{ while [ $SECONDS -lt 8 ]; do :; done; echo late; } & exit 3"]));
    assert_eq!((ran.status, ran.output), (Some(Status::Code(3)), Some(OutputEnd::Whole)));
    assert_eq!(ran.text(), "late\n");
    // By many programs, none of which is there for long.
    let script = "{ for n in $(seq 350); do sleep 0.02; done; echo late; } & exit 3";
    let ran = peer.run(exec(2, &["bash", "-c", script]));
    assert_eq!((ran.status, ran.output), (Some(Status::Code(3)), Some(OutputEnd::Whole)));
    assert_eq!(ran.text(), "late\n");
}

#[test]
fn a_process_left_behind_that_works_in_silence_for_ever_is_told_as_one() {
    let mut peer = Peer::greeted();
    let ran = peer.run(exec(1, &["bash", "-c", "{ while [ $SECONDS -lt 40 ]; do :; done; } & exit 3"]));
    assert_eq!((ran.status, ran.output), (Some(Status::Code(3)), Some(OutputEnd::LeftBusy)));
}

#[test]
fn a_signal_reaches_the_whole_group() {
    let mut peer = Peer::greeted();
    peer.send(&ToAgent::Exec(Box::new(exec(1, &["sh", "-c", "trap 'exit 3' TERM; sleep 60 & echo ready; wait"]))));
    while peer.frame().unwrap().payload != b"ready\n" {}
    peer.send(&ToAgent::Signal { id: 1, signal: 15 });
    assert_eq!(peer.outcome(1).status, Some(Status::Code(3)));
}

#[test]
fn a_terminal_is_one() {
    let mut peer = Peer::greeted();
    let mut wanted = exec(1, &["sh", "-c", "test -t 0 && stty size && echo $TERM && tty >/dev/tty && read x"]);
    wanted.stdio = Stdio::Pty { size: WindowSize { rows: 33, cols: 99 }, term: "vt220".into() };
    let ran = peer.run(wanted);
    let lines: Vec<&str> = ran.text().lines().collect();
    assert_eq!(lines[..2], ["33 99", "vt220"]);
    assert!(lines[2].starts_with("/dev/pts/"), "{lines:?}");
    // The end of input is typed, so that `read` fails.
    assert_eq!(ran.status, Some(Status::Code(1)));
}

#[test]
fn a_terminal_changes_its_size() {
    let mut peer = Peer::greeted();
    let script = "trap 'stty size; exit 4' WINCH; echo ready; while :; do sleep 0.01; done";
    let mut wanted = exec(1, &["sh", "-c", script]);
    wanted.stdio = Stdio::Pty { size: WindowSize { rows: 24, cols: 80 }, term: "dumb".into() };
    peer.send(&ToAgent::Exec(Box::new(wanted)));
    while peer.frame().unwrap().payload != b"ready\r\n" {}
    peer.send(&ToAgent::Resize { id: 1, size: WindowSize { rows: 50, cols: 132 } });
    let ran = peer.outcome(1);
    assert_eq!(ran.text(), "50 132\r\n");
    assert_eq!(ran.status, Some(Status::Code(4)));
}

#[test]
fn all_that_a_terminal_was_given_comes_out() {
    let mut peer = Peer::greeted();
    let mut wanted = exec(1, &["sh", "-c", "stty -opost; seq 1 20000"]);
    wanted.stdio = Stdio::Pty { size: WindowSize { rows: 24, cols: 80 }, term: "dumb".into() };
    let ran = peer.run(wanted);
    let all: String = (1..=20000).map(|number| format!("{number}\n")).collect();
    assert_eq!(ran.text(), all);
}

#[test]
fn a_terminal_is_hung_up_at_the_end() {
    let mut peer = Peer::greeted();
    let script = "sh -c 'trap \"\" HUP; sleep 60' & echo $!; sleep 60 & echo $!; exit 0";
    let mut wanted = exec(1, &["sh", "-mc", script]);
    wanted.stdio = Stdio::Pty { size: WindowSize { rows: 24, cols: 80 }, term: "dumb".into() };
    let ran = peer.run(wanted);
    assert_eq!(ran.status, Some(Status::Code(0)));
    let left: Vec<String> = ran.text().split_whitespace().map(str::to_owned).collect();
    // Whoever asked to be spared lives on, without a terminal.
    let script = format!("kill -0 {0} && kill -9 -{0}; kill -9 -{1}; true", left[0], left[1]);
    assert_eq!(peer.sh(2, &script).status, Some(Status::Code(0)));
}

#[test]
fn setup_and_sync_answer() {
    use belljar_proto::message::{Mount, MountFault, MountMode, Setup, SetupReport, Source, SyncReport};
    let mut peer = Peer::greeted();
    peer.send(&ToAgent::Setup(Setup::default()));
    assert_eq!(peer.message(), ToHost::SetupDone(SetupReport::default()));
    peer.send(&ToAgent::Setup(Setup {
        mounts: vec![Mount {
            name: "x".into(),
            sources: vec![Source::NineP { tag: "x".into() }],
            path: "relative".into(),
            mode: MountMode::ReadWrite,
        }],
        ..Setup::default()
    }));
    let ToHost::SetupDone(report) = peer.message() else { panic!("no answer") };
    assert_eq!(report.faults, [(0, MountFault::Failed { detail: "\"relative\" is not an absolute path".into() })]);
    peer.send(&ToAgent::Sync);
    assert_eq!(peer.message(), ToHost::Synced(SyncReport::default()));
}

#[test]
fn the_setup_says_in_which_environment_commands_run() {
    use belljar_proto::message::{Setup, System};
    let mut peer = Peer::greeted();
    for value in ["first", "second"] {
        let env = vec![format!("IN_THE_SETUP={value}"), "PATH=/usr/bin:/bin".to_owned()];
        let system = System { hostname: String::new(), env };
        peer.send(&ToAgent::Setup(Setup { system: Some(system), ..Setup::default() }));
        let ToHost::SetupDone(_) = peer.message() else { panic!("no answer") };
        let ran = peer.sh(if value == "first" { 1 } else { 2 }, "echo $IN_THE_SETUP $PATH");
        assert_eq!(String::from_utf8(ran.stdout).unwrap(), format!("{value} /usr/bin:/bin\n"));
    }
}

#[test]
fn the_setup_makes_the_directory_in_which_commands_run() {
    use belljar_proto::message::Setup;
    let mut peer = Peer::greeted();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("srv/app").display().to_string();
    peer.send(&ToAgent::Setup(Setup { working_dir: Some(path.clone()), ..Setup::default() }));
    let ToHost::SetupDone(_) = peer.message() else { panic!("no answer") };
    assert_eq!(peer.sh(1, &format!("stat -c '%A %F' {path}")).stdout, b"drwxr-xr-x directory\n");

    // What cannot be made is told, and the setup goes on.
    std::fs::write(dir.path().join("file"), "").unwrap();
    let path = dir.path().join("file/app").display().to_string();
    peer.send(&ToAgent::Setup(Setup { working_dir: Some(path.clone()), ..Setup::default() }));
    let ToHost::Log(why) = peer.message() else { panic!("it is told") };
    assert_eq!(
        why,
        format!("the image's WORKDIR {path} is missing and cannot be made: mkdir {path}: ENOTDIR (not a directory)")
    );
    let ToHost::SetupDone(_) = peer.message() else { panic!("no answer") };
}

#[test]
fn a_device_that_does_not_come_is_waited_for_no_longer_than_said() {
    use belljar_proto::message::{DeviceSign, WantedDevice};
    let mut peer = Peer::greeted();
    let mut is = |sign| {
        peer.send(&ToAgent::AwaitDevice(WantedDevice { pci: "ffff:ff:1f.7".into(), sign, limit_ms: 30 }));
        let ToHost::DeviceAwaited(seen) = peer.message() else { panic!("no answer") };
        seen
    };
    assert!(is(DeviceSign::Gone));
    assert!(!is(DeviceSign::Disks(1)) && !is(DeviceSign::Network) && !is(DeviceSign::ScsiHost));
}
