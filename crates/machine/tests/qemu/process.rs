//! The life of a process that stands in for QEMU: a few lines of Perl that speak QMP on descriptor 6.

use std::fs;
use std::io::{PipeReader, Read};
use std::path::PathBuf;
use std::time::Duration;

use belljar_machine::qemu::args::MachineConfig;
use belljar_machine::qemu::descriptors::{Descriptors, Purpose};
use belljar_machine::qemu::process::{Qemu, SpawnError, SpawnRequest};
use belljar_machine::qemu::qmp::{QmpError, QueryStatus};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use write_program::write_program;

use super::shim;

/// Speaks QMP; `BODY` decides what becomes of a command, whose name is in `$c` and whose number is in `$id`.
const QMP: &str = r#"
    use IO::Handle;
    open(my $q, '+<&=', 6) or die; $q->autoflush(1); STDERR->autoflush(1);
    print $q qq({"QMP": {"version": {"qemu": {"micro": 0, "minor": 2, "major": 7}, "package": ""}, "capabilities": []}}\r\n);
    while (my $line = <$q>) {
        my ($c) = $line =~ /"execute":"([^"]+)"/; my ($id) = $line =~ /"id":(\d+)/;
        BODY
        print $q qq({"return": {}, "id": $id}\r\n);
    }
"#;

struct Fake {
    dir: TempDir,
    program: PathBuf,
}

impl Fake {
    fn new(script: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("fake-qemu");
        write_program(&program, format!("#!/usr/bin/env perl\n{script}"));
        Self { dir, program }
    }

    fn speaking(body: &str) -> Self {
        Self::new(&QMP.replace("BODY", body))
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("qemu.log")
    }

    /// Starts it, with a pipe that ends when the last process that was handed it is gone.
    async fn spawn(&self) -> (Result<Qemu, SpawnError>, PipeReader) {
        let (end, held) = std::io::pipe().unwrap();
        let mut descriptors = Descriptors::default();
        descriptors.add(Purpose::Volume, held);
        let request = SpawnRequest {
            program: &self.program,
            config: &MachineConfig::default(),
            shim: &shim(),
            env: &std::env::vars_os().collect::<Vec<_>>(),
            gauge: None,
            log: &self.log(),
            descriptors,
        };
        (Qemu::spawn(request).await, end)
    }
}

fn assert_gone(mut end: PipeReader) {
    assert_eq!(end.read(&mut [0]).unwrap(), 0);
}

#[tokio::test]
async fn channels_are_connected_and_quit_ends_it() {
    let fake = Fake::speaking(
        r#"if ($c eq 'query-status') {
            for my $fd (3, 4, 5) { open(my $h, '+<&=', $fd) or die; $h->autoflush(1); my $l = <$h>; print $h "$fd: $l"; }
            print $q qq({"return": {"running": true, "status": "running"}, "id": $id}\r\n); next;
        }
        if ($c eq 'quit') {
            print $q qq({"event": "SHUTDOWN", "data": {"guest": false, "reason": "host-qmp-quit"}}\r\n);
            print STDERR "bye\n"; exit 0;
        }"#,
    );
    let (qemu, end) = fake.spawn().await;
    let mut qemu = qemu.unwrap();
    let mut channels = qemu.take_channels();
    channels.console.write_all(b"a\n").await.unwrap();
    channels.agent.write_all(b"b\n").await.unwrap();
    channels.serial1.write_all(b"c\n").await.unwrap();
    assert!(qemu.qmp().execute(QueryStatus {}).await.unwrap().running);
    let mut events = qemu.events();
    let quit = qemu.quit(Duration::from_secs(60)).await.unwrap();
    assert_eq!((quit.status.code(), quit.killed, quit.said.as_str()), (Some(0), false, "bye"));
    assert_eq!(quit.to_string(), "QEMU exited with code 0: bye");
    assert_eq!(events.next().await.unwrap().reason(), Some("host-qmp-quit"));
    for (channel, want) in [(channels.console, "3: a\n"), (channels.agent, "4: b\n"), (channels.serial1, "5: c\n")] {
        let mut text = String::new();
        let mut channel = channel;
        channel.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, want);
    }
    assert_gone(end);
    assert_eq!(fs::read_to_string(fake.log()).unwrap(), "bye\n");
    assert!(qemu.exit_watch().has_ended());
    assert_eq!(qemu.wait().await, quit, "an end can be asked for again");
    assert_eq!(qemu.rss(), None);
}

#[tokio::test]
async fn an_early_end_tells_the_message_and_what_helps() {
    let fake = Fake::new(
        "print STDERR qq(qemu: -blockdev x: Failed to get \"write\" lock\\n\\e[2JIs another process using the image [x]?\\n); exit 1;",
    );
    let (result, end) = fake.spawn().await;
    let error = result.unwrap_err();
    let said = error.to_string();
    assert!(matches!(&error, SpawnError::Exited { end, .. } if end.status.code() == Some(1)), "{error:?}");
    assert!(said.contains("exited with code 1: qemu: -blockdev x: Failed to get \"write\" lock"), "{said}");
    assert!(said.contains("stop it, or use a copy"), "{said}");
    assert!(!said.contains('\u{1b}'), "{said}");
    assert_gone(end);
}

#[tokio::test]
async fn a_death_by_signal_is_named() {
    let (result, end) = Fake::new("kill 'ABRT', $$; sleep 100;").spawn().await;
    let said = result.unwrap_err().to_string();
    assert!(said.contains("killed by SIGABRT"), "{said}");
    assert_gone(end);
}

#[tokio::test]
async fn what_is_no_qemu_is_killed() {
    let fake = Fake::new("open(my $q, '>&=', 6); syswrite($q, qq(hello\\n)); sleep 1000;");
    let (result, end) = fake.spawn().await;
    let error = result.unwrap_err();
    assert!(matches!(&error, SpawnError::NoControl { error: QmpError::Decode(_), .. }), "{error:?}");
    assert_gone(end);
}

#[tokio::test]
async fn a_program_that_is_not_there_is_told() {
    let mut fake = Fake::new("");
    fake.program = "/no/such/qemu".into();
    let (result, end) = fake.spawn().await;
    let said = result.unwrap_err().to_string();
    assert!(said.contains("cannot start /no/such/qemu: No such file"), "{said}");
    assert_gone(end);
}

#[tokio::test]
async fn a_log_that_cannot_be_made_starts_nothing() {
    let mut fake = Fake::speaking("");
    let kept = fake.dir;
    fake.dir = tempfile::tempdir_in(kept.path()).unwrap();
    fs::remove_dir(fake.dir.path()).unwrap();
    let (result, end) = fake.spawn().await;
    assert!(matches!(result.unwrap_err(), SpawnError::Log { .. }));
    assert_gone(end);
}

#[tokio::test]
async fn a_kill_reaches_all_that_it_started() {
    let fake = Fake::speaking("if ($c eq 'qmp_capabilities' and !fork) { $SIG{TERM} = 'IGNORE'; sleep 1000; exit }");
    let (qemu, end) = fake.spawn().await;
    let mut qemu = qemu.unwrap();
    let ended = qemu.kill().await.unwrap();
    assert!(ended.killed);
    assert_eq!(ended.to_string(), "QEMU was killed by SIGKILL (by Belljar)");
    assert_gone(end);
}

#[tokio::test]
async fn who_does_not_quit_is_killed() {
    let fake = Fake::speaking("sleep 1000 if $c eq 'quit';");
    let (qemu, end) = fake.spawn().await;
    let ended = qemu.unwrap().quit(Duration::from_millis(50)).await.unwrap();
    assert!(ended.killed);
    assert_gone(end);
}

#[tokio::test]
async fn dropping_kills_and_the_end_is_still_told() {
    let (qemu, end) = Fake::speaking("").spawn().await;
    let qemu = qemu.unwrap();
    let mut watch = qemu.exit_watch();
    drop(qemu);
    assert!(watch.ended().await.killed);
    assert_gone(end);
}

/// Neither does it need the runtime that it was started in.
#[test]
fn dropping_the_runtime_leaves_nothing() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (qemu, end) = runtime.block_on(Fake::speaking("").spawn());
    drop(runtime);
    drop(qemu);
    assert_gone(end);
}

#[tokio::test]
async fn giving_up_on_the_start_leaves_nothing() {
    let fake = Fake::new("$| = 1; open(my $c, '>&=', 5); syswrite($c, 'x'); sleep 1000;");
    let (mut end, held) = std::io::pipe().unwrap();
    let (config, shim, log) = (MachineConfig::default(), shim(), fake.log());
    let mut descriptors = Descriptors::default();
    descriptors.add(Purpose::Volume, held);
    let request = SpawnRequest {
        program: &fake.program,
        config: &config,
        shim: &shim,
        env: &[],
        gauge: None,
        log: &log,
        descriptors,
    };
    // The first poll starts it; it never says a word on the control channel.
    let gave_up = tokio::time::timeout(Duration::from_millis(20), Qemu::spawn(request)).await;
    assert!(gave_up.is_err());
    assert_eq!(end.read(&mut [0]).unwrap(), 0);
}

#[tokio::test]
async fn processor_time_and_memory_are_measured() {
    let fake = Fake::speaking("if ($c eq 'query-status') { my $n = 0; $n++ while (times)[0] < 0.1; }");
    let (qemu, _end) = fake.spawn().await;
    let mut qemu = qemu.unwrap();
    let mut clock = qemu.cpu_clock();
    assert!(qemu.rss().unwrap() > 0);
    let _ = qemu.qmp().execute(QueryStatus {}).await;
    let busy = clock();
    assert!(busy >= 90, "{busy} ms");
    let ended = qemu.kill().await.unwrap();
    assert!(clock() >= busy && ended.cpu >= Duration::from_millis(busy));
    assert_eq!(u128::from(clock()), ended.cpu.as_millis());
}

#[tokio::test]
async fn a_flood_of_messages_is_bounded() {
    let fake = Fake::speaking(
        "if ($c eq 'quit') { print STDERR 'x' x 1000, \"\\n\" for 1 .. 20000; print STDERR \"last words\\n\"; exit 3 }",
    );
    let (qemu, _end) = fake.spawn().await;
    let ended = qemu.unwrap().quit(Duration::from_secs(100)).await.unwrap();
    assert_eq!(ended.status.code(), Some(3));
    assert!(ended.said.ends_with("last words") && ended.said.len() <= 16 << 10);
    let size = fs::metadata(fake.log()).unwrap().len();
    assert!((8 << 20..9 << 20).contains(&size), "{size}");
}
