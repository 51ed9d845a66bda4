//! The scripts that run in the guest, for any POSIX `sh`.
//!
//! In a directory of its own for each command:
//!
//! | file | holds |
//! |---|---|
//! | `cmd` | sets the directory and the environment, and becomes the command |
//! | `keep` | runs `cmd`, waits for it, writes `code` |
//! | `fore` | runs `cmd` on a terminal |
//! | `0`, `1`, `2` | standard input, output and error |
//! | `pid` | `PID GROUP`: the keeper, and 1 if it leads a process group of its own |
//! | `over` | appears where the command has ended, and processes that it left behind have its output open |
//! | `code` | `NONCE CODE HOW SIZE1 SIZE2 END`, appears whole or not at all; HOW is `s` where a signal killed the command, `c` where it dumped core, `d`, `f` or `u` where it was not started ([`Missing`]), else `-`; a size that the guest cannot tell is `-`; END is `w` where the output is whole, `o` where it was left open, `c` where it is cut off |
//! | `said` | what the keeper's shell said of the command's end |
//!
//! A shell gives `128 + N` for a command that signal N killed, and for one that exited with that code; but it says "Killed" only of
//! the first.

use std::time::Duration;

use belljar_model::Exit;

use super::ctl::Places;
use super::{End, Missing};
use crate::access::quote;
use crate::command::GuestCommand;
use crate::session::agent::{LATE_MOST, OutputEnd};

/// Longest `code` file that is read.
pub(super) const CODE_MAX: usize = 256;

/// `cmd`: what the command's own shell runs. `ctl` is where it finds what it may ask for something with.
pub(super) fn command(command: &GuestCommand, ctl: Option<&Places>) -> Vec<u8> {
    let mut out = Vec::new();
    let cwd = command.cwd.as_deref().unwrap_or(b"/");
    out.extend_from_slice(b"cd ");
    out.extend(quote(cwd));
    out.extend_from_slice(b" || exit 126\n");
    // The names that a shell can hold are exported; the rest goes through `env`.
    let mut others = Vec::new();
    for variable in &command.env {
        let name = variable.split(|b| *b == b'=').next().unwrap_or_default();
        if is_name(name) && name.len() < variable.len() {
            out.extend_from_slice(b"export ");
            out.extend_from_slice(name);
            out.push(b'=');
            out.extend(quote(&variable[name.len() + 1..]));
            out.push(b'\n');
        } else if variable.contains(&b'=') {
            others.push(variable);
        }
    }
    if let Some(Places { orders, programs }) = ctl {
        out.extend_from_slice(format!("export BELLJAR_CTL_DIR={}\n", word(orders)).as_bytes());
        if let Some(programs) = programs {
            // What shells without a PATH go by.
            let path = "${PATH-/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin}";
            out.extend_from_slice(format!("PATH=\"{path}\":{}\nexport PATH\n", word(programs)).as_bytes());
        }
    }
    out.extend_from_slice(b"exec");
    if !others.is_empty() {
        out.extend_from_slice(b" env");
        for variable in others {
            out.push(b' ');
            out.extend(quote(variable));
        }
    }
    for word in &command.argv {
        out.push(b' ');
        out.extend(quote(word));
    }
    out.push(b'\n');
    out
}

/// What runs `cmd` as this user: lines that come before, and a simple command, for use where `$d` is the directory.
fn run_as(user: Option<&str>) -> (String, &'static str) {
    match user {
        None => (String::new(), "sh $d/cmd"),
        // `su` takes no numbers. `k` is set where there is such a user.
        Some(user) => (
            format!(
                "u={};k=;while IFS=: read -r n _ i _;do [ \"$n\" = \"$u\" ]&&k=1;[ \"$i\" = \"$u\" ]&&u=$n&&k=1&&break;done </etc/passwd\n",
                word(user)
            ),
            "su -s /bin/sh \"$u\" -c \"$(cat $d/cmd)\"",
        ),
    }
}

/// Gives a directory to `$u` with all below it, once: the top comes last. It is a copy-on-write one, of which the host sees nothing.
fn give(layer: &str) -> String {
    format!(
        "l={};set -- $(ls -ldn \"$l\");[ \"$3\" = \"$(id -u \"$u\")\" ]||{{ for f in \"$l\"/* \"$l\"/.[!.]* \"$l\"/..?*;do \
         [ -e \"$f\" ]||[ -h \"$f\" ]||continue;chown -hR \"$u\" \"$f\";done;chown \"$u\" \"$l\";}}",
        word(layer)
    )
}

/// `fore`: runs the command on the terminal at hand, and gives it one where the shell has none, as one that is the first process
/// of a guest.
pub(super) fn foreground(
    dir: &str,
    user: Option<(&str, Option<&str>)>,
    term: &str,
    rows: u16,
    columns: u16,
) -> Vec<u8> {
    let (user, layer) = user.unzip();
    let (dir, (mut before, run), term) = (word(dir), run_as(user), word(term));
    if user.is_some() {
        // `/dev/stdout` and its like open it anew.
        before.push_str("t=$(tty)&&chown \"$u\" \"$t\" 2>/dev/null\n");
        before.push_str(
            &layer.flatten().map_or_else(String::new, |layer| format!("[ -z \"$k\" ]||{{ {} ;}}\n", give(layer))),
        );
    }
    // A session leader without a terminal that opens one gets it as its own.
    format!(
        "d={dir}\n\
         if [ \"$1\" != again ]&&! ( : </dev/tty ) 2>/dev/null&&command -v setsid >/dev/null 2>&1\n\
         then\n\
         t=$(cat /sys/class/tty/console/active 2>/dev/null);t=${{t##* }}\n\
         [ -n \"$t\" ]&&[ -c /dev/$t ]&&exec setsid sh -c \"exec sh $d/fore again </dev/$t >/dev/$t 2>&1\"\n\
         fi\n\
         stty sane rows {rows} cols {columns} 2>/dev/null\n\
         TERM={term};export TERM\n\
         {before}{run}\n"
    )
    .into_bytes()
}

/// `keep`: waits for the command and tells how it ended, or why it was not started. Gets the nonce on its standard input. `layer` is
/// given to the command's user. `late_quiet` is how long what the command left running may be silent before its output is given up.
pub(super) fn keeper(dir: &str, command: &GuestCommand, layer: Option<&str>, late_quiet: Duration) -> Vec<u8> {
    let dir = word(dir);
    let user = command.user.as_deref();
    let (mut before, run) = run_as(user);
    if user.is_some() {
        // `/dev/stdout` and its like open the files anew. Nobody gets through the directory to their names.
        before.push_str(": >>$d/1;: >>$d/2;chmod 666 $d/1 $d/2;chmod 444 $d/0\n");
        before.push_str(
            &layer.map_or_else(String::new, |layer| format!("[ -z \"$k\" ]||{{ {} ;}} 2>>$d/2\n", give(layer))),
        );
    }
    // What is missing is told here, for the words of `cd` and `su` would be the command's own.
    let cwd = quote(command.cwd.as_deref().unwrap_or(b"/"));
    let user_missing = if user.is_none() { "" } else { "[ \"$k\" ]||id \"$u\" >/dev/null 2>&1||h=u\n" };
    // The command gets the signals that its group gets; the keeper outlives them. A group of its own is one whose number is its leader's: field five of `stat`. The name in field two is `sh`'s own.
    // A subshell, since a shell's own words about a command go where that command's errors go. (`su` says "Killed" itself, and not always.)
    let (quiet, most) = (late_quiet.as_secs(), LATE_MOST.as_secs());
    let how = if user.is_none() { "case $(cat $d/said) in *core*)h=c;;?*)h=s;;esac" } else { ":" };
    let before_directory = format!(
        "d={dir}\n\
         read -r nonce\n\
         trap : 1 2 3 10 12 13 14 15\n\
         g=0\n\
         read -r _ _ _ _ f _ </proc/$$/stat 2>/dev/null&&[ \"$f\" = $$ ]&&g=1\n\
         echo \"$$ $g\" >$d/pid\n\
         exec 2>$d/said\n\
         {before}h=-\n\
         {user_missing}w="
    );
    let after_directory = format!(
        "\n\
         [ -d \"$w\" ]||{{ h=d;[ -e \"$w\" ]&&h=f; }}\n\
         c=126\n\
         if [ $h = - ];then\n\
         ( exec {run} <$d/0 >$d/1 2>$d/2 )\n\
         c=$?\n\
         {how}\n\
         fi\n\
         l=w;n=0;q=0;s=\n\
         held(){{ for f in /proc/[0-9]*/fd/*;do [ $f -ef $d/1 ]||[ $f -ef $d/2 ]&&return 0;done;return 1;}}\n\
         while held\n\
         do\n\
         [ $n = 0 ]&&: >$d/over\n\
         [ $q -lt {quiet} ]||{{ l=o;break;}}\n\
         [ $n -lt {most} ]||{{ l=c;break;}}\n\
         t=$(wc -c <$d/1)/$(wc -c <$d/2)\n\
         if [ \"$t\" = \"$s\" ];then q=$((q+1));else q=0;fi\n\
         s=$t;n=$((n+1));sleep 1\n\
         done\n\
         a=-;b=-\n\
         a=$(wc -c <$d/1 2>/dev/null)&&b=$(wc -c <$d/2 2>/dev/null)||{{ a=-;b=-; }}\n\
         sync 2>/dev/null\n\
         echo \"$nonce $c\" $h $a $b $l >$d/code.tmp&&mv $d/code.tmp $d/code\n"
    );
    [before_directory.as_bytes(), &cwd, after_directory.as_bytes()].concat()
}

/// The line that starts the keeper, in a process group of its own where the guest has a way to make one.
///
/// Where the shell has no job control (the first process of a guest), it starts it with SIGINT and SIGQUIT ignored, as POSIX has
/// it, and so is the command.
pub(super) fn start(dir: &str, nonce: &str) -> String {
    let dir = word(dir);
    format!(
        "_d={dir};if command -v setsid >/dev/null 2>&1;then _g=setsid;else _g=;fi;\
         echo {nonce}|$_g sh $_d/keep >/dev/null 2>&1 &"
    )
}

/// The line that sends a signal to what the command started, and not to its keeper, which has to tell how it ends. Fails where
/// there was nothing to send it to.
pub(super) fn signal(dir: &str, signal: i32) -> String {
    let dir = word(dir);
    // Of a keeper's group where it leads one, else its children. Without /proc the group as a whole, keeper included.
    format!(
        "_p=;_k=1;read -r _p _g <{dir}/pid;if [ -n \"$_p\" ];then if [ -e /proc/$_p/stat ];then for _f in /proc/[0-9]*/stat;do \
         read -r _q _o _o _r _t _o <$_f&&[ $_q != $_p ]&&{{ [ $_r = $_p ]||{{ [ $_g = 1 ]&&[ $_t = $_p ];}};}}&&\
         kill -{signal} $_q&&_k=0;done;elif [ $_g = 1 ];then kill -{signal} -$_p&&_k=0;fi;fi 2>/dev/null;[ $_k = 0 ]"
    )
}

/// The line that ends all of it, keeper included.
pub(super) fn kill(dir: &str) -> String {
    let first = signal(dir, 9);
    format!("{first};[ -n \"$_p\" ]&&if [ $_g = 1 ];then kill -9 -$_p;else kill -9 $_p;fi 2>/dev/null")
}

/// The line that succeeds while the keeper lives. Of a code that is there it says nothing: somebody else may have put it there.
pub(super) fn alive(dir: &str) -> String {
    let dir = word(dir);
    format!("{{ read -r _p _g <{dir}/pid&&kill -0 $_p; }} 2>/dev/null")
}

/// Reads a `code` file; `None` while it is not whole, or not this attempt's.
pub(super) fn read_code(text: &[u8], nonce: &str) -> Option<End> {
    let text = std::str::from_utf8(text).ok()?;
    let mut words = text.strip_suffix('\n')?.split(' ');
    if words.next()? != nonce {
        return None;
    }
    let number = |w: &str| (w.len() < 19 && w.bytes().all(|b| b.is_ascii_digit())).then(|| w.parse::<u64>().ok())?;
    // ksh93 says 256 + N for signal N.
    let code = number(words.next()?).filter(|c| *c < 512)?;
    let code = if code > 255 { (code & 0x7f) | 0x80 } else { code };
    let mut missing = None;
    let (signal, core) = match words.next()? {
        "-" => (None, false),
        how @ ("d" | "f" | "u") => {
            missing = Some(match how {
                "d" => Missing::Directory,
                "f" => Missing::NoDirectory,
                _ => Missing::User,
            });
            (None, false)
        }
        how @ ("s" | "c") => (code.checked_sub(128).filter(|n| (1..=64).contains(n)), how == "c"),
        _ => return None,
    };
    let exit = match signal.and_then(|n| i32::try_from(n).ok()) {
        Some(number) => Exit::Signal { number, core },
        None => Exit::Code(u8::try_from(code).ok()?),
    };
    let sizes = match (words.next()?, words.next()?) {
        ("-", "-") => None,
        (a, b) => Some((number(a)?, number(b)?)),
    };
    let output = match words.next()? {
        "w" => OutputEnd::Whole,
        "o" => OutputEnd::LeftOpen,
        "c" => OutputEnd::Cut,
        _ => return None,
    };
    words.next().is_none().then_some(End { exit, sizes, missing, output })
}

/// One word for a POSIX shell.
pub(super) fn word(text: &str) -> String {
    String::from_utf8_lossy(&quote(text.as_bytes())).into_owned()
}

/// Whether a shell can hold a variable of this name. Those that the shell itself uses are better passed through `env`.
fn is_name(name: &[u8]) -> bool {
    let starts = name.first().is_some_and(|b| b.is_ascii_alphabetic() || *b == b'_');
    starts && name.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'_') && !matches!(name, b"IFS" | b"UID" | b"PPID")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_code_counts_only_with_its_nonce_and_whole() {
        let end = |exit, sizes, output| Some(End { exit, sizes, missing: None, output });
        let whole = OutputEnd::Whole;
        assert_eq!(read_code(b"abc 7 - 12 0 w\n", "abc"), end(Exit::Code(7), Some((12, 0)), whole));
        assert_eq!(read_code(b"abc 7 - 12 0 o\n", "abc"), end(Exit::Code(7), Some((12, 0)), OutputEnd::LeftOpen));
        assert_eq!(read_code(b"abc 7 - 12 0 c\n", "abc"), end(Exit::Code(7), Some((12, 0)), OutputEnd::Cut));
        assert_eq!(read_code(b"abc 137 - - - w\n", "abc"), end(Exit::Code(137), None, whole));
        let killed = |core| end(Exit::Signal { number: 11, core }, None, whole);
        assert_eq!(read_code(b"abc 139 s - - w\n", "abc"), killed(false));
        assert_eq!(read_code(b"abc 267 c - - w\n", "abc"), killed(true));
        let refused =
            End { exit: Exit::Code(126), sizes: Some((0, 0)), missing: Some(Missing::Directory), output: whole };
        assert_eq!(read_code(b"abc 126 d 0 0 w\n", "abc"), Some(refused));
        // A shell that says something of a command that was not killed.
        assert_eq!(read_code(b"abc 2 s - - w\n", "abc"), end(Exit::Code(2), None, whole));
        for wrong in [
            "abc 7 - 12 0 w",
            "abd 7 - 12 0 w\n",
            "abc 7 - 12\n",
            "abc 7 - 12 0\n",
            "abc  - 12 0 w\n",
            "abc 7 - 12 0 0\n",
            "abc 7 - 12 0 w w\n",
            "abc 700 - 1 1 w\n",
            "abc 7 x 1 1 w\n",
            "",
        ] {
            assert_eq!(read_code(wrong.as_bytes(), "abc"), None, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn a_real_shell_gets_exactly_what_was_meant(
            argv in proptest::collection::vec("[ -~\n\tä\u{1}]{0,12}", 1..5),
            value in "[ -~\n\tä]{0,20}",
        ) {
            let mut words: Vec<Vec<u8>> = vec![b"printf".to_vec(), b"%s|".to_vec()];
            words.extend(argv.iter().map(|a| a.clone().into_bytes()));
            let script = command(&GuestCommand {
                argv: words,
                env: vec![format!("V={value}").into_bytes(), format!("a.b={value}").into_bytes()],
                cwd: Some(b"/usr".to_vec()),
                user: None,
                terminal: None,
                guards: None,
            }, None);
            let output = std::process::Command::new("sh").arg("-c").arg(std::ffi::OsStr::new(
                std::str::from_utf8(&script).expect("utf-8"))).output().expect("sh");
            let expected: String = argv.iter().map(|a| format!("{a}|")).collect();
            prop_assert_eq!(String::from_utf8_lossy(&output.stdout), expected);
        }

        #[test]
        fn any_code_file_is_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            read_code(&bytes, "abc");
            read_code(&[b"abc ", &bytes[..]].concat(), "abc");
        }
    }
}
