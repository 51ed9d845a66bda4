//! Guests that are entered over SSH: by the host's `ssh`, which is told to touch nothing of the user's, and not before other ways in.

use std::{fs, os::unix::fs::PermissionsExt as _};

use write_program::write_program;

use crate::harness::{Lab, Outcome};

/// A key without a passphrase, as far as that is looked at.
const KEY: &str = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQ==\n-----END OPENSSH PRIVATE KEY-----\n";

/// What the lab's own `ssh` does when it has logged in.
const STARTS: &str = "exec 4<>/dev/tcp/127.0.0.1/$port; echo LOGIN >&4; exit 0";

/// The lab's own `ssh`: a shell script, which keeps what it was told. Gives the `PATH` in which it is found.
fn client(lab: &Lab, text: &str) -> String {
    let dir = lab.path("programs");
    fs::create_dir_all(&dir).expect("directory");
    let text = format!(
        "#!/bin/bash\ncd {}; printf '%s\\n' \"$@\" >words; env >env; cat >input; [ -z \"$SSH_ASKPASS\" ] || \"$SSH_ASKPASS\" 'password: ' >asked\n\
         while [ \"$1\" != -p ]; do shift; done; port=$2\n{text}\n",
        dir.display()
    );
    write_program(dir.join("ssh"), text);
    fs::write(lab.path("key"), KEY).expect("key");
    fs::set_permissions(lab.path("key"), fs::Permissions::from_mode(0o600)).expect("mode");
    format!("{}:{}", dir.display(), std::env::var("PATH").unwrap_or_default())
}

/// A guest on whose console nobody gets in, with an agent that somebody has to start.
fn guest(options: &str) -> String {
    format!(
        "[options]\n{options}\n[serial]\nsend \"\\r\\nbooting\\r\\n\"\ndrain\n[agent]\nwait ssh 80000\nagent pid1=off\n"
    )
}

fn run<'a>(lab: &'a Lab, script: &str, path: &str, options: &[&str]) -> Outcome<'a> {
    let key = lab.path("key").display().to_string();
    let options = options.iter().map(|word| if *word == "KEY" { key.as_str() } else { word });
    lab.run_image(script).args(["-v"]).args(options).env("PATH", path).sh("echo in; exit 7").go()
}

#[test]
fn a_tilde_that_no_shell_replaced_is_told_of() {
    let lab = Lab::new();
    let outcome = lab.run_image(&guest("")).args(["--access", "ssh", "--ssh-key", "~/.ssh/no-such"]).sh("true").go();
    outcome
        .code(125)
        .complains("~/.ssh/no-such: there is no such file; a shell takes a ~ within quotes")
        .complains("write $HOME");
}

#[test]
fn the_agent_is_started_with_a_key_and_nothing_of_the_users_is_touched() {
    let lab = Lab::new();
    let path = client(&lab, STARTS);
    let outcome = run(&lab, &guest(""), &path, &["--access", "ssh", "--ssh-key", "KEY"]);
    outcome
        .code(7)
        .says("in\n")
        .complains("access: ssh (it was started over SSH; the key of the guest's server is not checked)");
    let read = |name: &str| fs::read_to_string(lab.path("programs").join(name)).expect("kept");
    let words = read("words");
    for word in
        ["BatchMode=yes", "IdentityAgent=none", "UserKnownHostsFile=/dev/null", "StrictHostKeyChecking=no", "/dev/null"]
    {
        assert!(words.lines().any(|line| line == word), "{word}: {words}");
    }
    assert!(words.contains("-l\nroot\n"), "{words}");
    let env = read("env");
    assert!(!env.contains("SSH_AUTH_SOCK") && !env.contains("HOME=") && !env.contains("SSH_ASKPASS"), "{env}");
    // The first line is the password, which there is none of.
    let input = read("input");
    assert!(input.starts_with('\n') && input.contains("belljar.program") && input.contains("serve"), "{input}");
    assert!(lab.seen().contains("forward-removed"), "the way in is closed: {}", lab.seen());
}

#[test]
fn a_password_goes_to_who_asks_for_it_and_nowhere_else() {
    let lab = Lab::new();
    let path = client(&lab, STARTS);
    let outcome = run(&lab, &guest(""), &path, &["--access", "ssh", "--login", "u:hunter2"]);
    outcome.code(7);
    let read = |name: &str| fs::read_to_string(lab.path("programs").join(name)).expect("kept");
    assert_eq!(read("asked"), "hunter2\n");
    assert!(read("words").contains("PreferredAuthentications=password,keyboard-interactive"));
    assert!(!read("words").contains("hunter2"));
    assert!(read("input").starts_with("hunter2\n"));
    assert!(lab.runs().iter().all(|run| !run.join("ssh-password").exists()));
    let events = fs::read_to_string(lab.runs()[0].join("events.jsonl")).expect("log");
    assert!(!events.contains("hunter2"), "{events}");
}

#[test]
fn what_goes_wrong_is_told() {
    let key = ["--access", "ssh", "--ssh-key", "KEY"];
    for (text, said) in [
        (
            "echo $'u@h: \\e[31mPermission denied (publickey).' >&2; exit 255",
            "did not let root in: u@h: Permission denied (publickey).",
        ),
        ("exit 97", "is not root, and sudo does not make it root"),
        ("echo no such thing; exit 126", "the agent did not start there: exit code 126, no such thing"),
    ] {
        let lab = Lab::new();
        let path = client(&lab, text);
        let outcome = run(&lab, &guest(""), &path, &key);
        outcome.code(125).complains(said);
        assert!(!outcome.stderr.contains('\u{1b}'), "{}", outcome.stderr);
    }
    // Nobody answers, and nobody ends.
    let lab = Lab::new();
    let path = client(&lab, "sleep 1000");
    let limit = [&key[..], &["--boot-timeout", "4s"]].concat();
    let outcome = run(&lab, &guest("sshd ignore"), &path, &limit);
    outcome
        .code(124)
        .complains("was to be started over SSH, did not announce itself")
        .complains("no SSH server has answered at the guest's port 22");
    run(&lab, &guest(""), &path, &limit).code(124).complains("the guest's SSH server was asked to let root in");
}

#[test]
fn what_cannot_be_is_refused_before_anything_is_started() {
    let lab = Lab::new();
    let path = client(&lab, STARTS);
    fs::write(lab.path("public"), "ssh-ed25519 AAAA x").expect("key");
    fs::write(lab.path("locked"), KEY.replace("BG5vbmU", "CmFlczI1Ni1jdHI")).expect("key");
    for name in ["public", "locked"] {
        fs::set_permissions(lab.path(name), fs::Permissions::from_mode(0o600)).expect("mode");
    }
    let of_lab = |name: &str| lab.path(name).display().to_string();
    for (options, said) in [
        (vec!["--access".to_owned(), "ssh".into()], "needs something to log in with"),
        (vec!["--access".to_owned(), "ssh".into(), "--ssh-key".into(), of_lab("public")], "but a public one"),
        (
            vec!["--access".to_owned(), "ssh".into(), "--ssh-key".into(), of_lab("locked")],
            "has a passphrase, and nobody is asked for one",
        ),
        (vec!["--access".to_owned(), "ssh".into(), "--ssh-key".into(), of_lab("nothing")], "cannot read the key"),
        (
            vec!["--access".to_owned(), "ssh".into(), "--ssh-key".into(), of_lab("key"), "--nic".into(), "none".into()],
            "needs a network card",
        ),
    ] {
        let words: Vec<&str> = options.iter().map(String::as_str).collect();
        run(&lab, &guest(""), &path, &words).code(125).complains(said);
    }
    run(&lab, &guest(""), &path, &["--access", "console", "--ssh-key", "KEY"])
        .code(2)
        .complains("has no effect with --access console");
    assert!(!lab.seen().contains("-nodefaults"), "{}", lab.seen());
}

/// With a key and nothing asked for it is the last way in: one that holds before leaves it alone.
#[test]
fn others_come_first() {
    let lab = Lab::new();
    let path = client(&lab, STARTS);
    let script = "[serial]\nsend \"\\r\\ndebian login: \"\ndrain\n[agent]\nagent pid1=off\n";
    run(&lab, script, &path, &["--ssh-key", "KEY"]).code(7).complains("access: credentials");
    assert!(!lab.path("programs/words").exists());
    // Where none holds, its time comes.
    let outcome = run(&lab, &guest(""), &path, &["--ssh-key", "KEY", "--boot-timeout", "6s"]);
    outcome.code(124).complains("over SSH: an SSH server answers in the guest, and other ways in are waited for");
    assert!(!lab.path("programs/words").exists());
}

#[test]
fn kill_leaves_no_client() {
    let lab = Lab::new();
    let path = client(&lab, "echo up >up; exec sleep 1000");
    let key = lab.path("key");
    let mut run = lab
        .run_image(&guest(""))
        .args(["--access", "ssh", "--ssh-key"])
        .args([&key])
        .env("PATH", path)
        .sh("true")
        .spawn();
    while !lab.path("programs/up").exists() {
        assert!(run.still_there_after(std::time::Duration::from_millis(20)));
    }
    // Which also sees to it that nothing is left.
    run.kill();
}
