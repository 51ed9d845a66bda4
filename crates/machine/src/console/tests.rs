use super::*;
use std::sync::{Mutex, PoisonError};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

/// A log that can be read back.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn bytes(&self) -> Vec<u8> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl io::Write for Log {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(buf);
        Ok(buf.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn pair() -> (Console, DuplexStream, Log) {
    let (ours, guest) = tokio::io::duplex(4096);
    let log = Log::default();
    (Console::new(ours, log.clone()), guest, log)
}

fn patience() -> Patience {
    Patience::new(Duration::from_secs(60))
}

#[tokio::test(start_paused = true)]
async fn a_prompt_without_newline_is_found_and_never_again() {
    let (mut console, mut guest, log) = pair();
    guest.write_all(b"\x1b[1mdebian login:\x1b[0m ").await.expect("write");
    let pattern = [Pattern::literal("login:")];
    let m = console.expect(&pattern, &mut patience()).await.expect("prompt");
    assert_eq!(m.before, b"debian ");
    let mut short = Patience::new(Duration::from_secs(5));
    let e = console.expect(&pattern, &mut short).await.expect_err("only once");
    assert!(e.to_string().contains("login:"), "{e}");
    assert!(e.to_string().contains("| debian login:"), "{e}");
    assert_eq!(log.bytes(), b"\x1b[1mdebian login:\x1b[0m ");
}

#[tokio::test(start_paused = true)]
async fn bytes_renew_patience_but_not_for_ever() {
    let (mut console, mut guest, _) = pair();
    let chatter = tokio::spawn(async move {
        while guest.write_all(b".").await.is_ok() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    });
    let mut p = Patience::new(Duration::from_secs(100)).idle(Duration::from_secs(3));
    let e = console.expect(&[Pattern::literal("never")], &mut p).await.expect_err("overdue");
    assert!(matches!(e, ExpectError::Overdue { overdue: Overdue { limit: Limit::Total(_), .. }, .. }), "{e}");
    drop(console);
    chatter.await.expect("ends when the console is dropped");
}

#[tokio::test(start_paused = true)]
async fn a_prompt_at_rest_needs_silence() {
    let (mut console, mut guest, _) = pair();
    guest.write_all(b"Last login:").await.expect("write");
    let teller = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(100)).await;
        guest.write_all(b" yesterday\r\ndebian login: ").await.expect("write");
        guest
    });
    let m = console
        .expect(&[Pattern::at_rest("login:", Duration::from_millis(300))], &mut patience())
        .await
        .expect("prompt");
    assert_eq!(m.before, b"Last login: yesterday\r\ndebian ");
    teller.await.expect("teller");
}

#[tokio::test(start_paused = true)]
async fn queries_are_answered_and_a_flood_of_them_is_not() {
    let (console, mut guest, _) = pair();
    guest.write_all(b"/ # \x1b[6n").await.expect("write");
    let mut answer = [0; 6];
    guest.read_exact(&mut answer).await.expect("answer");
    assert_eq!(&answer, b"\x1b[1;5R");
    for _ in 0..1000 {
        guest.write_all(b"\x1b[5n").await.expect("write");
    }
    guest.write_all(b"done\n").await.expect("write");
    let mut last = console.view().last_line();
    last.wait_for(|l| l == "/ # done").await.expect("drained");
    drop(console);
    let mut rest = Vec::new();
    guest.read_to_end(&mut rest).await.expect("read");
    assert!(rest.len() <= 31 * 4, "{}", rest.len());
}

#[tokio::test(start_paused = true)]
async fn nobody_reading_does_not_stop_the_guest() {
    let (console, mut guest, log) = pair();
    let line = [b"x".repeat(997).as_slice(), b"\r\n"].concat();
    for _ in 0..6000 {
        guest.write_all(&line).await.expect("write");
    }
    drop(guest);
    let view = console.view();
    view.closed().await;
    assert_eq!(view.bytes_seen(), 6000 * 999);
    assert_eq!(log.bytes().len(), 6000 * 999);
    assert_eq!(view.tail(1000).len(), 500);
    assert!(console.unread().len() <= 2 << 20);
}

#[tokio::test(start_paused = true)]
async fn what_belljars_own_shell_says_is_left_out_of_the_last_lines() {
    let (console, mut guest, log) = pair();
    console.leave_out("old234");
    console.leave_out("abc234");
    let said = "kernel: oops\r\n<abc234:6:0:6000:18>\r\n<abc234:7:b:7>  <old234:1:b:1>\r\nx <abc234:6:0:6000:18>\r\n<abc234:7:b:7>said\r\n<other9:1:b:1>\r\n<abc234:8:0";
    guest.write_all(said.as_bytes()).await.expect("write");
    drop(guest);
    let view = console.view();
    view.closed().await;
    let shown = ["kernel: oops", "x <abc234:6:0:6000:18>", "<abc234:7:b:7>said", "<other9:1:b:1>"];
    assert_eq!(view.tail(15), shown);
    assert_eq!(log.bytes(), said.as_bytes(), "the log has all");
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_does_not_read_does_not_stop_us() {
    let (ours, mut guest) = tokio::io::duplex(64);
    let mut console = Console::new(ours, io::sink());
    let stuck = console.send(&[b'x'; 900]);
    assert!(tokio::time::timeout(Duration::from_secs(1), stuck).await.is_err());
    guest.write_all(b"still here\n").await.expect("write");
    let m = console.expect(&[Pattern::literal("here")], &mut patience()).await.expect("read");
    assert_eq!(m.before, b"still ");
}

#[tokio::test(start_paused = true)]
async fn the_log_has_a_limit_and_the_console_goes_on() {
    let (ours, mut guest) = tokio::io::duplex(64);
    let log = Log::default();
    let options = ConsoleOptions { log_limit: 10, ..ConsoleOptions::default() };
    let mut console = Console::with_options(ours, log.clone(), options);
    guest.write_all(b"0123456789abc").await.expect("write");
    guest.write_all(b"the end").await.expect("write");
    console.expect(&[Pattern::literal("the end")], &mut patience()).await.expect("read");
    assert_eq!(log.bytes(), b"0123456789\n[belljar: the log ends here, at 10 bytes]\n");
    assert!(console.view().log_fault().is_some_and(|f| f.to_string().contains("limit of 10 bytes")));
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_under_the_log_is_told_and_does_no_harm() {
    struct Full;
    impl io::Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::Error::from(io::ErrorKind::StorageFull))
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let (ours, mut guest) = tokio::io::duplex(64);
    let mut console = Console::new(ours, Full);
    guest.write_all(b"hello\n").await.expect("write");
    console.expect(&[Pattern::literal("hello")], &mut patience()).await.expect("read");
    assert!(console.view().log_fault().is_some());
}

#[tokio::test(start_paused = true)]
async fn the_end_of_the_line_is_told_at_once() {
    let (mut console, mut guest, _) = pair();
    guest.write_all(b"goodbye\n").await.expect("write");
    drop(guest);
    let e = console.expect(&[Pattern::literal("never")], &mut patience()).await.expect_err("closed");
    assert!(matches!(&e, ExpectError::Closed { tail, .. } if tail == &["goodbye"]), "{e}");
    assert_eq!(console.send(b"x\n").await, Err(SendError::Closed));
}

#[tokio::test(start_paused = true)]
async fn lines_a_terminal_would_cut_are_refused() {
    let (mut console, _guest, _) = pair();
    assert_eq!(console.send(&[b'x'; 1001]).await, Err(SendError::LineTooLong(1001)));
}

#[tokio::test(start_paused = true)]
async fn alarms_come_with_their_line() {
    let (console, mut guest, _) = pair();
    guest.write_all(b"root:~# [   12.345678] Kernel panic - not sync").await.expect("write");
    guest.write_all(b"ing: sysrq triggered crash\r\n").await.expect("write");
    let alarm = console.alarms().next_of(Severity::Fatal).await;
    assert_eq!(alarm.kind, AlarmKind::Panic);
    assert!(alarm.line.ends_with("sysrq triggered crash"), "{}", alarm.line);
    guest.write_all(b"(initramfs) ").await.expect("write");
    let alarm = console.view().alarms().next_of(Severity::Stuck).await;
    assert_eq!(alarm.kind, AlarmKind::Panic, "from the first one on");
    let mut alarms = console.alarms();
    alarms.next().await;
    assert_eq!(alarms.next().await.kind, AlarmKind::InitramfsShell);
}

#[tokio::test(start_paused = true)]
async fn a_tap_gets_raw_bytes_and_the_queries() {
    let (mut console, mut guest, _) = pair();
    let mut tap = console.tap();
    guest.write_all(b"\x1b[6n\x1b[31mred").await.expect("write");
    assert_eq!(tap.recv().await.as_deref(), Some(&b"\x1b[6n\x1b[31mred"[..]));
    drop(tap);
    guest.write_all(b"\x1b[5n\x1b[5n").await.expect("write");
    let mut answer = [0; 4];
    guest.read_exact(&mut answer).await.expect("answer");
    assert_eq!(&answer, b"\x1b[0n");
}
