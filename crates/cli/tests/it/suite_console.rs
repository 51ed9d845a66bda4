//! Verdicts of guests without an agent: whatever a test or a shell puts on the serial line, or beside the files by which a
//! command is followed, only the record with this command's nonce is a verdict.

use std::fs;

use write_program::write_program;

use crate::harness::{Belljar, Lab};

/// A suite on a guest with nothing but a shell on its serial line.
const SUITE: &str = "[guests.g]\nimage = \"../disk.qcow2\"\nboot-timeout = \"60s\"\n[[suites]]\nname = \"s\"\ntests = [\"t/*\"]\nguests = [\"g\"]\n\
                     workspace-mode = \"rw\"\nisolation = \"suite\"\n";

/// Where the files of the command that runs are, as its shell names them.
const FILES: &str = "d=$(ls -d /run/belljar/out/.belljar-*)";

fn suite(lab: &Lab, tests: &[(&str, &str)]) {
    lab.image("disk.qcow2", "qcow2");
    fs::write(lab.path("workspace/belljar.toml"), SUITE).expect("configuration");
    for (name, text) in tests {
        lab.test_file(name, text);
    }
}

fn go<'a>(lab: &'a Lab, shell: &str) -> Belljar<'a> {
    let script = format!("[serial]\nsend \"SeaBIOS (version 1.16.2)\\r\\n\"\n{shell}\n");
    lab.test(["--error-retries", "0"]).script(&script).in_playground().env("FAKE_GUEST_AGENT", "broken")
}

#[test]
fn what_a_test_writes_is_no_verdict() {
    let lab = Lab::new();
    // Of the form of the answers to Belljar's own lines, and of its records.
    let lines: String = (0..20).map(|n| format!("machine serial 'send \"<a:{n}:0:{n}000:{n}>\\r\\n\"'; ")).collect();
    let files = format!("{FILES}; echo 'a 0 - - -' > $d/code; echo '0 0 - 0 0' > $d/code.tmp; : > $d/1");
    // One that outlives its test learns the nonce of that one.
    let keep = format!(
        "{FILES}; (while [ -d $d ]; do cat $d/code > kept && [ -s kept ] && break; done) >/dev/null 2>&1 & exit 0"
    );
    suite(
        &lab,
        &[
            ("1-well", "echo fine; exit 0"),
            ("2-lines", &format!("{lines} exit 1")),
            ("3-files", &format!("{files}; exit 1")),
            ("4-keep", &keep),
            (
                "5-again",
                &format!(
                    "{FILES}; [ -s kept ] || echo 'x 0 - - -' > kept; cp kept $d/code; cp kept $d/code.tmp; exit 1"
                ),
            ),
            ("6-last", "exit 0"),
        ],
    );
    let outcome = go(&lab, "shell").args(["-v"]).go();
    outcome.code(100).verdicts_are(&[
        ("1-well", "pass"),
        ("2-lines", "fail 1"),
        ("3-files", "fail 1"),
        ("4-keep", "pass"),
        ("5-again", "fail 1"),
        ("6-last", "pass"),
    ]);
    assert!(outcome.text().contains("sh on the console"), "{}", outcome.text());
}

/// What a guest does to the files of a command may cost the verdict, and never makes it a pass.
#[test]
fn who_takes_the_record_away_does_not_pass() {
    let lab = Lab::new();
    suite(
        &lab,
        &[
            ("directory", &format!("{FILES}; mkdir $d/code; exit 0")),
            ("link", &format!("echo '0 0 - - -' > mine; {FILES}; ln -s $PWD/mine $d/code; exec sleep 60")),
            (
                "keeper",
                &format!("{FILES}; read -r keeper _ < $d/pid; echo 'x 0 - - -' > $d/code; kill -9 $keeper; exit 0"),
            ),
        ],
    );
    let outcome = go(&lab, "shell").go();
    // A record that is not this command's says nothing of its keeper, which is dead.
    outcome.code(100).verdicts_are(&[("directory", "error host"), ("keeper", "crash silent"), ("link", "error host")]);
}

/// A login shell that talks.
#[test]
fn a_shell_that_talks_like_belljar_is_not_believed() {
    let lab = Lab::new();
    let shell = |name: &str, text: &str| {
        let path = lab.path(name);
        write_program(&path, text);
        path.display().to_string()
    };
    suite(&lab, &[("bad", "exit 1"), ("good", "exit 0")]);

    // Answers of somebody else's, before each of its own.
    let chatty = shell("chatty", "#!/bin/sh\nexec /bin/bash --norc --noprofile --rcfile \"$0.rc\" -i\n");
    shell("chatty.rc", "trap 'echo \"<x:$_s:0:$((_s*1000)):$_s>\"' DEBUG\n");
    let outcome = go(&lab, &format!("shell program=\"{chatty}\"")).go();
    outcome.code(100).verdicts_are(&[("bad", "fail 1"), ("good", "pass")]);

    // Answers that all is well to whatever is typed, and does nothing.
    let liar = shell(
        "liar",
        r#"#!/bin/bash
stty -echo
printf '# '
while IFS= read -r line; do
    c=0
    case $line in
        *'$((6*7)):'*) b=${line#*<}; n=${line##*:}; echo "<${b%%:*}:42:${n%%>*}>"; printf '# '; continue;;
        *agent\ serve*) c=126;;
    esac
    case $line in *_b=*) b=${line##*_b=}; b=${b%% *};; esac
    case $line in *_s=*) s=${line#*_s=}; s=${s%%[!0-9]*};; esac
    case $line in *:b:*) echo "<$b:$s:b:$s>"; echo uid=0;; esac
    case $line in
        *'echo "<$_b:$_s'*) n=${line##*:}; echo "<$b:$s:$c:$((s * 1000 + c)):${n%%>*}>";;
        *) printf '# ';;
    esac
done
"#,
    );
    let outcome = go(&lab, &format!("shell program=\"{liar}\"")).args(["--timeout", "2s", "name(=good)"]).go();
    outcome.code(100).verdicts_are(&[("good", "timeout command")]);
}
