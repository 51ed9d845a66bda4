//! Real shells of this host on a pseudo-terminal, as login shells and as `sh`.

use super::*;
use std::path::Path;

use write_program::write_program;

struct Guest {
    console: Console,
    _program: pty::PtyGuest,
}

fn start(argv: &[&str], env: &[(&str, &str)]) -> Guest {
    which(argv[0]);
    let (line, program) = pty::spawn(argv, env).expect("a terminal and a program");
    Guest { console: Console::new(line, std::io::sink()), _program: program }
}

/// A test without its shell would test nothing.
fn which(name: &str) -> String {
    if name.starts_with('/') && Path::new(name).exists() {
        return name.to_owned();
    }
    let found = ["/usr/bin", "/bin"].iter().map(|d| format!("{d}/{name}")).find(|p| Path::new(p).exists());
    found.unwrap_or_else(|| panic!("there is no {name} here; `testing/setup test` installs it"))
}

/// All that a shell session must be able to do.
async fn exercise(shell: &mut Shell) {
    let p = &mut patience(60);
    for code in [0u8, 1, 7, 77, 255] {
        let reply = shell.run(&format!("(exit {code})"), p).await.expect("reply");
        assert_eq!((reply.code, reply.text().as_str()), (code, ""), "{reply:?}");
    }
    let reply = shell.run("sh -c 'kill -9 $$'", p).await.expect("reply");
    assert_eq!(reply.code, 137, "{reply:?}");
    let reply = shell.run("echo one; echo 'two  words' >&2; printf three", p).await.expect("reply");
    assert_eq!(reply.output, b"one\ntwo  words\nthree", "{reply:?}");
    // State stays, standard input is empty.
    assert_eq!(shell.run("cd /; x=5; cat; read y", p).await.expect("reply").code, 1);
    assert_eq!(shell.run("echo $x; pwd", p).await.expect("reply").output, b"5\n/\n");
    // Long lines, line breaks, tabs, quotes, bytes beyond ASCII, history characters.
    let long = "x".repeat(5000);
    assert_eq!(shell.run(&format!("echo {long} | wc -c"), p).await.expect("reply").text(), "5001");
    let odd = "cat <<'EOF'\na\tb \\ % %s 'q' \"d\" `no` $no !no ä€\nEOF\n(exit 3)";
    let reply = shell.run(odd, p).await.expect("reply");
    assert_eq!(String::from_utf8_lossy(&reply.output), "a\tb \\ % %s 'q' \"d\" `no` $no !no ä€\n");
    assert_eq!(reply.code, 3);
    // Wide output and colours.
    let reply = shell.run(r"printf '\033[1;31mred\033[0m'; printf '%0300d' 0", p).await.expect("reply");
    assert_eq!(reply.output, [&b"red"[..], &[b'0'; 300]].concat());
    // A syntax error is not a lost answer, and never a code of zero.
    match shell.run("if then ;; fi (", p).await {
        Err(ShellError::Aborted { .. }) => {}
        Ok(reply) => assert_ne!(reply.code, 0, "{reply:?}"),
        Err(e) => panic!("{e}"),
    }
    assert_eq!(shell.run("false", p).await.expect("reply").code, 1);
    // The end of a background process is not the end of the shell, whether it comes while a line runs or between two.
    assert_eq!(shell.run("sleep 0.1 & true", p).await.expect("reply").code, 0);
    assert_eq!(shell.run("sleep 0.3; sleep 0.1 & true", p).await.expect("reply").code, 0);
    // (Nothing tells from outside when it ends; if this is too short the test only sees less.)
    tokio::time::sleep(Duration::from_millis(300)).await;
    // Text that looks like ours does not count.
    let reply = shell.run(r#"echo "<$_b:9:0:9000>"; set | grep _b=; (exit 4)"#, p).await.expect("reply");
    assert_eq!(reply.code, 4);
    assert_eq!(shell.run("seq 20000 | tail -n 1", p).await.expect("reply").text(), "20000");
    let many = shell.run("seq 20000", p).await.expect("reply");
    assert_eq!(many.output.iter().filter(|b| **b == b'\n').count(), 20000);
}

async fn climbs_and_works(argv: &[&str], env: &[(&str, &str)]) {
    let mut guest = start(argv, env);
    let (result, events) = climb_with(&mut guest.console, &quick(), 60).await;
    let mut shell = result.unwrap_or_else(|e| panic!("{argv:?}: {e}\n{events:#?}"));
    assert!(events.iter().any(|e| matches!(e, AccessEvent::Held { rung: "shell", .. })), "{events:?}");
    exercise(&mut shell).await;
}

#[tokio::test]
async fn bash() {
    climbs_and_works(&["bash", "--norc", "-i"], &[]).await;
}

#[tokio::test]
async fn bash_with_colours_and_a_title() {
    let prompt = r"\[\e]0;\u@\h: \w\a\]\[\e[1;32m\]\u@\h\[\e[0m\]:\[\e[34m\]\w\[\e[0m\]\$ ";
    climbs_and_works(&["bash", "--norc", "-i"], &[("PS1", prompt), ("PROMPT_COMMAND", "echo before the prompt")]).await;
}

#[tokio::test]
async fn bash_with_a_prompt_of_its_own_kind() {
    climbs_and_works(&["bash", "--norc", "-i"], &[("PS1", "at your service, master: ")]).await;
}

#[tokio::test]
async fn dash() {
    climbs_and_works(&["dash", "-i"], &[]).await;
}

#[tokio::test]
async fn dash_without_a_prompt() {
    climbs_and_works(&["dash", "-i"], &[("PS1", "")]).await;
}

#[tokio::test]
async fn busybox() {
    climbs_and_works(&["busybox", "sh"], &[]).await;
}

#[tokio::test]
async fn mksh() {
    climbs_and_works(&["mksh"], &[]).await;
}

#[tokio::test]
async fn ksh() {
    climbs_and_works(&["ksh"], &[]).await;
}

#[tokio::test]
async fn zsh() {
    climbs_and_works(&["zsh", "-f"], &[]).await;
}

#[tokio::test]
async fn fish() {
    let home = tempfile::tempdir().expect("directory");
    climbs_and_works(&["fish"], &[("HOME", &home.path().to_string_lossy())]).await;
}

#[tokio::test]
async fn tcsh() {
    climbs_and_works(&["tcsh", "-f"], &[]).await;
}

/// A directory in front of `PATH` in which `sh` is the given program, and programs can be hidden.
fn path_with_sh(shell: &str, hide: &[&str]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("directory");
    std::os::unix::fs::symlink(which(shell), dir.path().join("sh")).expect("link");
    for name in hide {
        let path = dir.path().join(name);
        write_program(&path, "#!/bin/dash\necho \"$0: not found\" >&2\nexit 127\n");
    }
    dir
}

async fn works_with_sh(shell: &str, hide: &[&str]) {
    let dir = path_with_sh(shell, hide);
    let path = format!("{}:/usr/bin:/bin", dir.path().display());
    climbs_and_works(&["bash", "--norc", "-i"], &[("PATH", &path)]).await;
}

#[tokio::test]
async fn sh_is_bash() {
    works_with_sh("bash", &[]).await;
}

#[tokio::test]
async fn sh_is_busybox() {
    works_with_sh("busybox", &[]).await;
}

#[tokio::test]
async fn sh_is_mksh() {
    works_with_sh("mksh", &[]).await;
}

#[tokio::test]
async fn without_stty_the_echo_does_no_harm() {
    for shell in ["dash", "bash", "busybox"] {
        works_with_sh(shell, &["stty", "busybox"]).await;
    }
}

/// A login program for the terminal, as `sh` has it.
const LOGIN: &str = r#"
tries=0
printf '\r\nDebian GNU/Linux 12 debian ttyS0\r\n\r\n'
while :; do
    printf '\033[1mdebian login:\033[0m '; read -r user
    [ -n "$user" ] || continue
    if [ "$PW" ]; then
        stty -echo; printf '%s' "${ASK:-Password: }"; read -r pw; stty echo; printf '\r\n'
    fi
    if [ "$user" = "$WHO" ] && [ "$pw" = "$PW" ]; then break; fi
    printf '\r\n%s\r\n' "${NO-Login incorrect}"
done
echo "Last login: Mon Jan  1 00:00:00 UTC 2024 on ttyS0"
exec ${LOGIN_SHELL:-bash --norc -i}
"#;

#[tokio::test]
async fn a_login_with_a_password() {
    for (ask, login_shell) in [("Password: ", "bash --norc -i"), ("Passwort: ", "tcsh -f"), ("Kode: ", "dash -i")] {
        let env = [("WHO", "root"), ("PW", "s3 cr'et"), ("ASK", ask), ("LOGIN_SHELL", login_shell)];
        let mut guest = start(&["dash", "-c", LOGIN], &env);
        let (result, events) = climb_with(&mut guest.console, &login("root", Some("s3 cr'et")), 60).await;
        let mut shell = result.unwrap_or_else(|e| panic!("{login_shell}: {e}\n{events:#?}"));
        assert!(events.iter().any(|e| matches!(e, AccessEvent::Held { rung: "login", .. })), "{events:?}");
        assert!(!format!("{events:?}").contains("cr'et"));
        assert_eq!(shell.run("exit_code() { return 9; }; exit_code", &mut patience(20)).await.expect("reply").code, 9);
    }
}

#[tokio::test]
async fn a_login_refused_in_any_language_is_told_at_once() {
    for no in ["Login incorrect", "Anmeldung fehlgeschlagen", ""] {
        let env = [("WHO", "root"), ("PW", "right"), ("NO", no)];
        let mut guest = start(&["dash", "-c", LOGIN], &env);
        let (result, events) = climb_with(&mut guest.console, &login("root", Some("wr0ng")), 60).await;
        let error = result.map(|_| ()).expect_err("refused");
        assert!(matches!(error, AccessError::Refused { .. }), "{error}\n{events:#?}");
        assert!(error.to_string().contains("\"root\"") && !error.to_string().contains("wr0ng"), "{error}");
    }
}

#[tokio::test]
async fn a_password_that_is_missing_is_asked_of_the_user() {
    let env = [("WHO", "root"), ("PW", "right")];
    let mut guest = start(&["dash", "-c", LOGIN], &env);
    let (result, _) = climb_with(&mut guest.console, &quick(), 60).await;
    let error = result.map(|_| ()).expect_err("no password");
    assert!(error.to_string().contains("--login root:PASSWORD"), "{error}");
}

#[tokio::test]
async fn root_without_a_password_is_let_in() {
    let mut guest = start(&["dash", "-c", LOGIN], &[("WHO", "root"), ("PW", "")]);
    let (result, events) = climb_with(&mut guest.console, &quick(), 60).await;
    let shell = result.unwrap_or_else(|e| panic!("{e}\n{events:#?}"));
    assert_eq!(shell.root(), Some(rustix::process::geteuid().is_root()));
}

#[tokio::test]
async fn a_command_can_be_interrupted() {
    let mut guest = start(&["bash", "--norc", "-i"], &[]);
    let (result, _) = climb_with(&mut guest.console, &quick(), 60).await;
    let mut shell = result.expect("shell");
    let long = shell.run("sleep 1000", &mut patience(1)).await.expect_err("too long");
    assert!(matches!(long, ShellError::Expect(_)), "{long}");
    shell.interrupt(&mut patience(30)).await.expect("interrupted");
    assert_eq!(shell.run("echo fine", &mut patience(30)).await.expect("reply").text(), "fine");
}
