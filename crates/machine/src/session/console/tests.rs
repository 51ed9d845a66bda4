//! Sessions with real shells of this host on a pseudo-terminal, whose directories are this host's too.

use super::*;
use crate::access::climb;
use crate::access::tests::{pty, quick};
use crate::command::Terminal;
use crate::console::Console;
use crate::session::agent::SinkFuture;
use belljar_proto::message::{Outcome, Question, WindowSize};
use tokio::sync::mpsc;

/// Keeps what comes.
#[derive(Default)]
struct Kept {
    out: Vec<u8>,
    err: Vec<u8>,
}

impl OutputSink for Kept {
    fn stdout<'a>(&'a mut self, bytes: &'a [u8]) -> SinkFuture<'a> {
        self.out.extend_from_slice(bytes);
        Box::pin(std::future::ready(Ok(())))
    }
    fn stderr<'a>(&'a mut self, bytes: &'a [u8]) -> SinkFuture<'a> {
        self.err.extend_from_slice(bytes);
        Box::pin(std::future::ready(Ok(())))
    }
}

struct Guest {
    session: ConsoleSession,
    dir: tempfile::TempDir,
    _console: Console,
    _program: pty::PtyGuest,
}

/// The program is typed once for all commands, into a directory that goes with the guest: here it is the host's.
impl Drop for Guest {
    fn drop(&mut self) {
        if let Some(Some(programs)) = &self.session.programs {
            let _ = std::fs::remove_dir_all(programs);
        }
    }
}

async fn guest(argv: &[&str], exchange: bool) -> Guest {
    let (line, program) = pty::spawn(argv, &[]).expect("a terminal");
    let mut console = Console::new(line, std::io::sink());
    let options = crate::access::AccessOptions { root: false, ..quick() };
    let mut patience = Patience::new(Duration::from_secs(60));
    let shell = climb(&mut console, &options, &mut patience, &mut |_| {}).await.expect("shell");
    let dir = tempfile::tempdir().expect("directory");
    let path = dir.path().to_owned();
    let exchange = exchange.then(|| Exchange { guest: path.to_string_lossy().into_owned(), host: path });
    let mut session = ConsoleSession::new(shell, exchange, 1.0);
    // The host's process has the outputs open, too, and is in the same `/proc`: as if each command left something running.
    session.late_quiet = Duration::ZERO;
    Guest { session, dir, _console: console, _program: program }
}

fn command(argv: &[&str]) -> GuestCommand {
    GuestCommand {
        argv: argv.iter().map(|a| a.as_bytes().to_vec()).collect(),
        env: Vec::new(),
        cwd: None,
        user: None,
        terminal: None,
        guards: None,
    }
}

async fn run(guest: &mut Guest, command: GuestCommand, stdin: &[u8]) -> (Result<Exit, Lost>, Kept) {
    let mut kept = Kept::default();
    let mut stdin = stdin;
    let mut io = Io { stdin: Some(&mut stdin), sink: &mut kept, control: None };
    let result = guest.session.exec(command, &mut io).await;
    (result, kept)
}

fn code(result: Result<Exit, Lost>) -> Exit {
    result.unwrap_or_else(|lost| panic!("{lost:?}"))
}

const SHELLS: &[&[&str]] = &[&["bash", "--norc", "-i"], &["dash", "-i"], &["busybox", "sh"]];

#[tokio::test]
async fn streams_codes_and_places_are_exact() {
    for argv in SHELLS {
        for exchange in [true, false] {
            let mut g = guest(argv, exchange).await;
            for n in [0, 1, 7, 77, 255] {
                let (result, kept) = run(&mut g, command(&["sh", "-c", &format!("exit {n}")]), b"").await;
                assert!(result.is_ok(), "{argv:?} {exchange} {n}: {result:?}");
                assert_eq!(code(result), Exit::Code(n), "{argv:?} {exchange}");
                assert!(kept.out.is_empty() && kept.err.is_empty());
            }
            let (result, kept) = run(&mut g, command(&["sh", "-c", "kill -9 $$"]), b"").await;
            assert_eq!(kept.err, b"", "what our own shell says is not the command's");
            assert_eq!(code(result), Exit::Signal { number: 9, core: false });
            let (result, kept) = run(&mut g, command(&["sh", "-c", "exit 137"]), b"").await;
            assert_eq!(
                (code(result), kept.err.as_slice()),
                (Exit::Code(137), &b""[..]),
                "not killed, and nothing said"
            );
            let (result, _) = run(&mut g, command(&["/no/such/program"]), b"").await;
            assert_eq!(code(result), Exit::Code(127));

            for (cwd, user, says) in [
                ("/no/such 'dir", None, "/no/such 'dir: there is no such directory in the guest"),
                ("/etc/passwd", None, "/etc/passwd: it is not a directory in the guest"),
                ("/", Some("nobody-of-that-name"), "find user \"nobody-of-that-name\""),
                ("/", Some("4711"), "find user \"4711\""),
            ] {
                let mut c = command(&["true"]);
                c.cwd = Some(cwd.into());
                c.user = user.map(str::to_owned);
                let (result, kept) = run(&mut g, c, b"").await;
                let lost = result.expect_err(cwd);
                assert_eq!(lost.verdict().run_exit_code(), 126, "{lost:?}");
                assert!(lost.message().as_deref().is_some_and(|m| m.contains(says)), "{argv:?} {exchange} {lost:?}");
                assert_eq!((&*kept.out, &*kept.err), (&b""[..], &b""[..]), "{argv:?} {exchange}");
            }

            let both = "echo out; echo err >&2; printf 'no newline'";
            let (result, kept) = run(&mut g, command(&["sh", "-c", both]), b"").await;
            assert_eq!(code(result), Exit::Code(0));
            assert_eq!(
                (kept.out.as_slice(), kept.err.as_slice()),
                (&b"out\nno newline"[..], &b"err\n"[..]),
                "{argv:?}"
            );

            // (dash drops variables whose names it cannot hold, so a program prints the second.)
            let mut c =
                command(&["awk", "BEGIN { print ENVIRON[\"PWD\"]; print ENVIRON[\"WORD\"]; print ENVIRON[\"a.b\"] }"]);
            c.cwd = Some(b"/usr/bin".to_vec());
            c.env = vec![b"WORD=it's 100% \"odd\"\tyes".to_vec(), b"a.b=x".to_vec()];
            let (result, kept) = run(&mut g, c, b"").await;
            assert_eq!(code(result), Exit::Code(0));
            assert_eq!(String::from_utf8_lossy(&kept.out), "/usr/bin\nit's 100% \"odd\"\tyes\nx\n");
            assert_eq!(fs_err::read_dir(g.dir.path()).expect("list").count(), 0, "nothing is left behind");
        }
    }
}

#[tokio::test]
async fn any_bytes_come_through_both_ways() {
    let bytes: Vec<u8> = (0..300_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let mut g = guest(SHELLS[1], true).await;
    let (result, kept) = run(&mut g, command(&["cat"]), &bytes).await;
    assert_eq!(code(result), Exit::Code(0));
    assert!(kept.out == bytes, "{} bytes of {}", kept.out.len(), bytes.len());

    let mut g = guest(SHELLS[1], false).await;
    let file = g.dir.path().join("bytes");
    fs_err::write(&file, &bytes).expect("write");
    let (result, kept) = run(&mut g, command(&["cat", &file.to_string_lossy()]), b"").await;
    assert_eq!(code(result), Exit::Code(0));
    assert!(kept.out == bytes, "{} bytes of {}", kept.out.len(), bytes.len());
    let (result, kept) = run(&mut g, command(&["cat"]), &bytes[..20_000]).await;
    assert_eq!(code(result), Exit::Code(0));
    assert!(kept.out == bytes[..20_000], "{} bytes", kept.out.len());
    // Pieces that would be options, formats and quotations to `printf` or the shell.
    let odd = [&b"-n %s\\n'\"$(id)`"[..], &b"-".repeat(2000), &b"%".repeat(700), &b"\0\r\n\x03\x04\x15\xff".repeat(90)]
        .concat();
    let (result, kept) = run(&mut g, command(&["cat"]), &odd).await;
    assert_eq!(code(result), Exit::Code(0));
    assert!(kept.out == odd, "{:?}", String::from_utf8_lossy(&kept.out));
    let (result, _) = run(&mut g, command(&["cat"]), &vec![0; (256 << 10) + 1]).await;
    let lost = result.expect_err("more than can be typed");
    assert!(format!("{lost:?}").contains("--no-stdin"), "{lost:?}");
}

#[tokio::test]
async fn output_comes_while_the_command_runs() {
    for exchange in [true, false] {
        let mut g = guest(SHELLS[0], exchange).await;
        let go = g.dir.path().join("go");
        // The command ends only after its first line was seen here.
        struct Answering(PathBuf, Vec<u8>);
        impl OutputSink for Answering {
            fn stdout<'a>(&'a mut self, bytes: &'a [u8]) -> SinkFuture<'a> {
                self.1.extend_from_slice(bytes);
                if self.1 == b"first\n" {
                    fs_err::write(&self.0, "").expect("go");
                }
                Box::pin(std::future::ready(Ok(())))
            }
            fn stderr<'a>(&'a mut self, _: &'a [u8]) -> SinkFuture<'a> {
                Box::pin(std::future::ready(Ok(())))
            }
        }
        let script = format!("echo first; while [ ! -e '{}' ]; do sleep 0.1; done; echo second", go.display());
        let mut sink = Answering(go, Vec::new());
        let mut io = Io { stdin: None, sink: &mut sink, control: None };
        let result = g.session.exec(command(&["sh", "-c", &script]), &mut io).await;
        assert_eq!(code(result), Exit::Code(0));
        assert_eq!(sink.1, b"first\nsecond\n");
    }
}

#[tokio::test]
async fn a_signal_reaches_the_command_and_its_end_is_told() {
    for argv in SHELLS {
        for exchange in [true, false] {
            let mut g = guest(argv, exchange).await;
            let (sender, control) = mpsc::channel(1);
            let mut kept = Kept::default();
            let mut io = Io { stdin: None, sink: &mut kept, control: Some(control) };
            sender.send(ExecControl::Signal(9)).await.expect("queued");
            let result =
                tokio::time::timeout(Duration::from_secs(60), g.session.exec(command(&["sleep", "1000"]), &mut io))
                    .await;
            match result {
                Ok(result) => assert_eq!(code(result), Exit::Signal { number: 9, core: false }, "{argv:?}"),
                // It may have come before the command was there to get it.
                Err(_) => {
                    g.session.kill_running().await.expect("killed");
                    panic!("{argv:?} {exchange}: the signal did nothing");
                }
            }
        }
    }
}

#[tokio::test]
async fn a_command_that_was_given_up_is_killed() {
    for exchange in [true, false] {
        let mut g = guest(SHELLS[0], exchange).await;
        let pid = g.dir.path().join("its-pid");
        let script = format!("echo $$ >'{}'; sleep 1000; true", pid.display());
        let mut kept = Kept::default();
        let mut io = Io { stdin: None, sink: &mut kept, control: None };
        let running = async {
            let command = command(&["sh", "-c", &script]);
            tokio::select! {
                ended = g.session.exec(command, &mut io) => panic!("{ended:?}"),
                () = async {
                    while fs_err::read_to_string(&pid).unwrap_or_default().is_empty() {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                } => {}
            }
        };
        running.await;
        g.session.kill_running().await.expect("killed");
        let number = fs_err::read_to_string(&pid).expect("pid");
        let process = PathBuf::from(format!("/proc/{}", number.trim()));
        let gone = async {
            while process.exists() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), gone).await.expect("gone");
        let (result, kept) = run(&mut g, command(&["echo", "next"]), b"").await;
        assert_eq!((code(result), kept.out.as_slice()), (Exit::Code(0), &b"next\n"[..]));
    }
}

#[tokio::test]
async fn what_a_guest_puts_in_place_of_its_files_is_not_followed() {
    let mut g = guest(SHELLS[0], true).await;
    // The command replaces every file of its own, and the keeper's code, by links to a file with a secret.
    let secret = tempfile::NamedTempFile::new().expect("file");
    fs_err::write(secret.path(), "secret 0 - 0 0\n").expect("write");
    let script = format!(
        "cd '{}'/.belljar-*; for f in 1 2 code; do rm -f $f; ln -s '{}' $f; done; echo late; mkdir code.tmp; sleep 3",
        g.dir.path().display(),
        secret.path().display()
    );
    let (result, kept) =
        tokio::time::timeout(Duration::from_secs(60), run(&mut g, command(&["sh", "-c", &script]), b""))
            .await
            .expect("in time");
    let lost = result.expect_err("no result");
    assert!(!format!("{lost:?}").contains("secret 0"), "{lost:?}");
    assert!(!kept.out.windows(6).any(|w| w == b"secret"), "nothing of the host's file");
}

#[tokio::test]
async fn a_terminal_is_the_commands_own() {
    let mut g = guest(SHELLS[0], true).await;
    let mut c = command(&[
        "sh",
        "-c",
        "stty size; echo TERM=$TERM; printf 'name? '; read n; echo \"hello $n\"; tty >/dev/null && exit 5",
    ]);
    c.terminal = Some(Terminal { size: WindowSize { rows: 33, cols: 99 }, term: "xterm-256color".into() });
    let mut kept = Kept::default();
    let (typist, mut stdin) = tokio::io::duplex(64);
    let typing = async {
        use tokio::io::AsyncWriteExt;
        let mut typist = typist;
        typist.write_all(b"you\n").await.expect("typed");
        // A person stays at the keyboard.
        std::future::pending::<()>().await;
    };
    let result = {
        let mut io = Io { stdin: Some(&mut stdin), sink: &mut kept, control: None };
        tokio::select! {
            result = g.session.exec(c, &mut io) => result,
            () = typing => unreachable!(),
            () = tokio::time::sleep(Duration::from_secs(60)) => panic!("no end"),
        }
    };
    let said = String::from_utf8_lossy(&kept.out).replace('\r', "");
    assert_eq!(code(result), Exit::Code(5), "{said}");
    // (The echo of what is typed may land between any two lines.)
    assert!(["33 99\n", "TERM=xterm-256color\n", "hello you\n"].iter().all(|t| said.contains(t)), "{said}");
    assert!(!said.contains(":b:") && !said.ends_with('<'), "{said}");
    let (result, kept) = run(&mut g, command(&["echo", "after"]), b"").await;
    assert_eq!((code(result), kept.out.as_slice()), (Exit::Code(0), &b"after\n"[..]));
}

#[tokio::test]
async fn a_command_runs_as_another_user() {
    let passwd = fs_err::read_to_string("/etc/passwd").unwrap_or_default();
    let Some(nobody) =
        passwd.lines().find(|l| l.starts_with("nobody:")).filter(|_| rustix::process::geteuid().is_root())
    else {
        return;
    };
    let number = nobody.split(':').nth(2).expect("number");
    for user in ["nobody", number] {
        let mut g = guest(SHELLS[1], true).await;
        let mut c = command(&["id", "-un"]);
        c.user = Some(user.to_owned());
        let (result, kept) = run(&mut g, c, b"").await;
        assert_eq!((code(result), String::from_utf8_lossy(&kept.out).trim()), (Exit::Code(0), "nobody"));
        // The standard streams can be opened by name, and what is the workspace's copy is the user's own.
        let layer = tempfile::tempdir().expect("directory");
        std::fs::create_dir_all(layer.path().join("old/deep")).expect("directories");
        std::fs::write(layer.path().join("old/.file"), "x").expect("file");
        std::os::unix::fs::symlink("/", layer.path().join("root")).expect("link");
        let mut g = guest(SHELLS[1], true).await;
        g.session.layer = Some(layer.path().to_string_lossy().into_owned());
        let script = "cat /dev/stdin >/dev/stdout; echo error >/dev/stderr; cd \"$1\" && echo y >>old/.file && mkdir old/deep/new new";
        let mut c = command(&["sh", "-c", script, "sh", &layer.path().to_string_lossy()]);
        c.user = Some(user.to_owned());
        let (result, kept) = run(&mut g, c, b"in").await;
        let said = (String::from_utf8_lossy(&kept.out), String::from_utf8_lossy(&kept.err));
        assert_eq!((code(result), said), (Exit::Code(0), ("in".into(), "error\n".into())));
        assert!(layer.path().join("old/deep/new").is_dir());
    }
}

/// Runs a command, and answers what it asks for with what `answer` makes of it.
async fn run_asking(
    guest: &mut Guest,
    command: GuestCommand,
    mut answer: impl FnMut(&Question) -> Option<Outcome>,
) -> (Exit, Kept, Vec<Question>) {
    let asks = guest.session.asks.clone();
    let mut asked = Vec::new();
    let (result, kept) = {
        let mut running = std::pin::pin!(run(guest, command, b""));
        let mut changes = asks.changes();
        loop {
            for (number, question) in asks.take_asks().asks {
                if let Some(outcome) = answer(&question) {
                    asks.answer(number, outcome);
                }
                asked.push(question);
            }
            tokio::select! {
                ended = &mut running => break ended,
                Ok(()) = changes.changed() => {}
                () = tokio::time::sleep(Duration::from_secs(120)) => panic!("nothing happens after {asked:?}"),
            }
        }
    };
    asked.extend(asks.take_asks().asks.into_iter().map(|(_, question)| question));
    (code(result), kept, asked)
}

/// What a disk has to say: more than a terminal's line, with what a shell would make something of.
fn counts() -> String {
    (0..60).map(|n| format!("reads-{n} $(id) `id` \\n 'x' \"y\" %s\n")).collect()
}

#[tokio::test]
async fn a_command_asks_and_is_answered() {
    for argv in SHELLS {
        for exchange in [true, false] {
            let mut g = guest(argv, exchange).await;
            let script = "command -v belljar-ctl >&2; belljar-ctl mark here 'and  there' || exit 1; belljar-ctl disk d0 counts || exit 2; \
                          belljar-ctl disk d1 error; echo \"code $?\"; belljar-ctl explode 2>/dev/null; echo \"code $?\"; \
                          echo 'nmi' >\"$BELLJAR_CTL_DIR/mine\"; until [ -e \"${BELLJAR_CTL_DIR%/*}/answers/mine\" ]; do sleep 0.1; done; \
                          cat \"${BELLJAR_CTL_DIR%/*}/answers/mine\"; ls -A \"$BELLJAR_CTL_DIR\"; echo 'mark late' >\"$BELLJAR_CTL_DIR/late\"";
            let (exit, kept, asked) = run_asking(&mut g, command(&["sh", "-c", script]), |question| {
                Some(match question {
                    Question::Disk(text) if text == "d0 counts" => Outcome::Done(counts()),
                    Question::Disk(_) => Outcome::Refused("there is no such disk".to_owned()),
                    _ => Outcome::Done(String::new()),
                })
            })
            .await;
            let said = String::from_utf8_lossy(&kept.out);
            let errors = String::from_utf8_lossy(&kept.err);
            assert_eq!(exit, Exit::Code(0), "{argv:?} {exchange}: {said} {errors}");
            assert_eq!(said, format!("{}code 1\ncode 2\nok\n", counts()), "{argv:?} {exchange}");
            assert!(errors.contains("/belljar-ctl\n") && errors.ends_with("there is no such disk\n"), "{errors}");
            let wanted = [
                Question::Mark("here and  there".into()),
                Question::Disk("d0 counts".into()),
                Question::Disk("d1 error".into()),
                Question::Machine("nmi".into()),
                Question::Mark("late".into()),
            ];
            assert_eq!(asked, wanted, "{argv:?} {exchange}");
            assert_eq!(g.session.take_notes(), [""; 0], "{argv:?} {exchange}");
            assert_eq!(fs_err::read_dir(g.dir.path()).expect("list").count(), 0, "nothing is left behind");
        }
    }
}

#[tokio::test]
async fn programs_that_ask_at_the_same_time_have_answers_of_their_own() {
    let mut g = guest(SHELLS[1], true).await;
    let script = "for n in 1 2 3 4 5 6 7 8; do (for m in 1 2 3; do [ \"$(belljar-ctl disk d$n counts)\" = \"d$n counts\" ] || echo wrong; done) & done; wait";
    let answer = |question: &Question| match question {
        Question::Disk(text) => Some(Outcome::Done(text.clone())),
        _ => None,
    };
    let (exit, kept, asked) = run_asking(&mut g, command(&["sh", "-c", script]), answer).await;
    assert_eq!((exit, String::from_utf8_lossy(&kept.out).as_ref(), asked.len()), (Exit::Code(0), "", 24));
}

#[tokio::test]
async fn what_is_no_order_costs_no_result_and_is_told() {
    for exchange in [true, false] {
        let mut g = guest(SHELLS[0], exchange).await;
        let secret = tempfile::NamedTempFile::new().expect("file");
        fs_err::write(secret.path(), "mark secret\n").expect("write");
        let script = format!(
            "cd \"$BELLJAR_CTL_DIR\"; ln -s '{}' link; mkfifo pipe; mkdir dir; printf 'mark unended' >unended; printf 'mark a\\nmark b\\n' >two; sleep 1; \
             belljar-ctl mark well",
            secret.path().display()
        );
        let answer = |_: &Question| Some(Outcome::Done(String::new()));
        let (exit, kept, asked) = run_asking(&mut g, command(&["sh", "-c", &script]), answer).await;
        assert_eq!(exit, Exit::Code(0), "{exchange} {}", String::from_utf8_lossy(&kept.err));
        assert_eq!(asked, [Question::Mark("well".into())], "{exchange}");
        let notes = g.session.take_notes();
        for name in ["link", "pipe", "dir", "unended", "two"] {
            assert!(notes.iter().any(|note| note.contains(&format!("\"{name}\""))), "{exchange} {name}: {notes:#?}");
        }
        assert_eq!(g.session.asks.take_asks().lost, crate::session::agent::LostAsks::default());
    }
}

#[tokio::test]
async fn a_machine_that_goes_down_ends_what_runs_with_all_that_it_said() {
    for exchange in [true, false] {
        let mut g = guest(SHELLS[1], exchange).await;
        let asks = g.session.asks.clone();
        let script = "echo before; belljar-ctl reboot here; echo after; sleep 1000";
        let (exit, kept, asked) = run_asking(&mut g, command(&["sh", "-c", script]), |question| {
            assert!(matches!(question, Question::Machine(_)));
            asks.go_down(false);
            None
        })
        .await;
        assert_eq!(exit, Exit::Signal { number: 9, core: false }, "{exchange}");
        assert_eq!(String::from_utf8_lossy(&kept.out), "before\n");
        assert_eq!(asked, [Question::Machine("reboot here".into())]);
        // What was written is brought to the host while a command runs, too.
        let asks = g.session.asks.clone();
        let mut told = None;
        let (exit, ..) = run_asking(&mut g, command(&["sh", "-c", "belljar-ctl mark now; sleep 3"]), |_| {
            told = Some(asks.sync());
            Some(Outcome::Done(String::new()))
        })
        .await;
        assert_eq!((exit, told.expect("asked").await.expect("told")), (Exit::Code(0), None), "{exchange}");
    }
}
