//! What a program under the shim can leave behind, and how it ends.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::shim;

/// Runs a script of the shell under the shim, in a directory of its own.
fn under_shim(dir: &Path, script: &str) -> Output {
    let mut command = shim().command(Path::new("/bin/sh"));
    command.args(["-c", script]).current_dir(dir).output().expect("the shim starts")
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn what_is_left_is_plain_files_of_the_caller() {
    let dir = tempfile::tempdir().unwrap();
    let script = r#"
        umask 022
        echo x > file && chown 12:34 file && chown -h 12:34 file && echo chown-ok
        chmod 644 file && chmod 4755 file || echo setuid-refused
        chmod 2755 file && echo setgid-ignored
        mkdir -m 1777 sticky && mkdir sub && chmod g+s sub && echo dir-ok
        mknod null c 1 3 || echo char-refused
        mknod loop b 7 0 || echo block-refused
        mknod fifo p && echo fifo-ok
        ln -s /etc/shadow link && ln file hard && echo links-ok
    "#;
    let output = under_shim(dir.path(), script);
    let said = text(&output);
    for word in [
        "chown-ok",
        "setuid-refused",
        "setgid-ignored",
        "dir-ok",
        "char-refused",
        "block-refused",
        "fifo-ok",
        "links-ok",
    ] {
        assert!(said.lines().any(|l| l == word), "{word} is missing from:\n{said}");
    }

    let me = fs::metadata(dir.path()).unwrap().uid();
    let mut names = Vec::new();
    for entry in fs::read_dir(dir.path()).unwrap() {
        let entry = entry.unwrap();
        let meta = entry.metadata().unwrap();
        names.push(entry.file_name().into_string().unwrap());
        assert_eq!(meta.uid(), me, "{names:?}");
        assert_eq!(meta.permissions().mode() & 0o6000, 0, "{names:?}");
        assert!(!meta.file_type().is_char_device() && !meta.file_type().is_block_device(), "{names:?}");
    }
    names.sort();
    assert_eq!(names, ["fifo", "file", "hard", "link", "sticky", "sub"]);
    assert_eq!(fs::metadata(dir.path().join("file")).unwrap().permissions().mode() & 0o7777, 0o644);
    assert_eq!(fs::metadata(dir.path().join("sticky")).unwrap().permissions().mode() & 0o7777, 0o1777);
}

/// Descriptors come to be where they are wanted, whatever has the number here, and nothing else is open.
#[test]
fn descriptors_get_their_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| {
        let path = dir.path().join(name);
        fs::write(&path, name).unwrap();
        fs::File::open(path).unwrap().into()
    };
    let given = vec![(5, file("five")), (3, file("three")), (40, file("forty"))];
    let mut command = shim().command_with(Path::new("/bin/sh"), given).unwrap();
    let output =
        command.args(["-c", "cat <&3; cat /dev/fd/5 /dev/fd/40; cat; ls /proc/self/fd; readlink /proc/self/fd/0"]);
    let said = text(&output.output().expect("the shim starts"));
    let (read, open) = said.split_once("0\n").expect("a list");
    assert_eq!(read, "threefiveforty");
    assert!(open.ends_with("/dev/null\n"), "{said}");
    // Whoever started the tests may have left some open too. The list itself is read from 3 there, and from 4 here.
    let without = text(&under_shim(dir.path(), "ls /proc/self/fd; echo /dev/null"));
    let more: Vec<&str> = open.lines().filter(|number| !without.lines().any(|n| n == *number)).collect();
    assert_eq!(more, ["4", "40", "5"], "{said}{without}");
}

/// As after Belljar was killed: what was to come does not come, and nothing waits for it.
#[test]
fn without_its_descriptors_nothing_is_started() {
    let parent = std::process::id().to_string();
    let output = Command::new(shim().program)
        .args(["--parent", &parent, "--descriptors", "3,4", "--", "/bin/echo", "started"])
        .stdin(Stdio::null())
        .output()
        .expect("the shim starts");
    assert!(!output.status.success());
    assert!(text(&output).contains("cannot take over its descriptors before starting QEMU"), "{}", text(&output));
    assert!(output.stdout.is_empty());
}

/// Each call by its number, as no program makes them all.
#[test]
#[cfg(target_arch = "x86_64")]
fn every_call_is_answered_as_the_table_says() {
    // Lines of: name, number, arguments in Perl, what comes back (errno, or `ok`).
    let cases = [
        ("chmod", 90, "$f, 04700", "EPERM"),
        ("chmod sgid", 90, "$f, 02700", "ok"),
        ("chmod both", 90, "$f, 06700", "EPERM"),
        ("chmod plain", 90, "$f, 01644", "ok"),
        ("fchmod", 91, "$fd, 04700", "EPERM"),
        ("fchmod sgid", 91, "$fd, 02700", "ok"),
        ("fchmodat", 268, "-100, $f, 04700", "EPERM"),
        ("fchmodat2", 452, "-100, $f, 04700, 0", "EPERM"),
        ("chmod, by x32", 0x4000_0000 + 90, "$f, 04700", "EPERM"),
        ("chown", 92, "$f, 12, 34", "ok"),
        ("fchown", 93, "$fd, 12, 34", "ok"),
        ("lchown", 94, "$f, 12, 34", "ok"),
        ("fchownat", 260, "-100, $f, 12, 34, 0", "ok"),
        ("open, creating", 2, "$n, 0101, 04600", "EPERM"),
        ("open, creating sgid", 2, "$n, 0101, 02600", "EPERM"),
        ("open, noise in the mode", 2, "$f, 0, 04600", "ok"),
        ("openat, creating", 257, "-100, $n, 0101, 04600", "EPERM"),
        ("openat, nameless", 257, "-100, $d, 020200002, 04600", "EPERM"),
        ("openat, a directory", 257, "-100, $d, 0200000, 04600", "ok"),
        ("openat, plain", 257, "-100, $n, 0101, 0600", "ok"),
        ("creat", 85, "$n, 04600", "EPERM"),
        ("mkdir", 83, "$m, 04700", "EPERM"),
        ("mkdirat sgid", 258, "-100, $m, 02700", "ok"),
        ("mknod char", 133, "$x, 020600, 259", "EPERM"),
        ("mknodat block", 259, "-100, $x, 060600, 1792", "EPERM"),
        ("mknodat set-uid", 259, "-100, $x, 0104600, 0", "EPERM"),
        ("mknodat plain", 259, "-100, $x, 0100600, 0", "ok"),
        ("openat2", 437, "-100, $f, $pad, 24", "ENOSYS"),
        ("io_uring_setup", 425, "8, $pad", "ENOSYS"),
    ];
    let mut script = String::from(
        "use POSIX qw(:errno_h); my ($f,$n,$d,$m,$x,$pad)=map{$_.\"\"}qw(f n . m x),\"\\0\"x256; \
         open(my $h,'>',$f); my $fd=fileno($h); \
         sub t { my $r=syscall($_[0],@_[1..$#_]); my $e=$!+0; \
           print $r>=0?'ok':$e==EPERM?'EPERM':$e==ENOSYS?'ENOSYS':\"errno $e\",\"\\n\" }\n",
    );
    for (_, number, args, _) in cases {
        script.push_str(&format!("t({number}, {args});\n"));
    }
    let dir = tempfile::tempdir().unwrap();
    let output = shim().command(Path::new("perl")).args(["-e", &script]).current_dir(dir.path()).output().unwrap();
    let said: Vec<String> = text(&output).lines().map(str::to_owned).collect();
    let got: Vec<_> = cases.iter().zip(&said).map(|(case, said)| (case.0, said.as_str())).collect();
    let want: Vec<_> = cases.iter().map(|case| (case.0, case.3)).collect();
    assert_eq!(got, want, "{said:#?}");
    let meta = fs::metadata(dir.path().join("f")).unwrap();
    assert_eq!(meta.uid(), fs::metadata(dir.path()).unwrap().uid());
    assert_eq!(meta.permissions().mode() & 0o7777, 0o1644);
}

#[test]
fn it_runs_without_privileges_core_files_or_our_process_group() {
    let output = under_shim(
        Path::new("/"),
        "grep -E '^(CapInh|CapBnd|CapAmb|NoNewPrivs|Seccomp):' /proc/self/status; ulimit -c; \
         cut -d' ' -f1,5 /proc/$$/stat",
    );
    let said = text(&output);
    let field = |name: &str| {
        let line = said.lines().find(|l| l.starts_with(name)).unwrap_or_else(|| panic!("{name}: {said}"));
        line.split_whitespace().nth(1).unwrap().to_owned()
    };
    assert_eq!(field("NoNewPrivs"), "1");
    assert_eq!(field("Seccomp"), "2");
    assert_eq!(field("CapInh").trim_start_matches('0'), "");
    assert_eq!(field("CapAmb").trim_start_matches('0'), "");
    if rustix::process::geteuid().is_root() {
        // DAC_OVERRIDE, DAC_READ_SEARCH and FOWNER are bits 1, 2 and 3.
        assert_eq!(u64::from_str_radix(&field("CapBnd"), 16).unwrap() & !0b1110, 0);
    }
    let mut last = said.lines().rev();
    let ids: Vec<_> = last.next().unwrap().split(' ').collect();
    assert_eq!(ids[0], ids[1], "it leads its process group");
    assert_eq!(last.next(), Some("0"), "no core files");
}

/// As under `unshare --pid --fork`, or in a container that somebody entered: whoever leads the group has no number there.
#[test]
fn a_process_group_that_is_outside_of_its_pid_namespace_is_left_as_any_other() {
    let shim = shim();
    let script =
        format!("'{}' --parent $$ -- sh -c 'cut -d\" \" -f1,5 /proc/$$/stat'; exit $?", shim.program.display());
    let output = Command::new("unshare")
        .args(["--map-root-user", "--pid", "--fork", "--mount-proc", "sh", "-c", &script])
        .output()
        .unwrap();
    let said = text(&output);
    let ids: Vec<_> = said.trim().split(' ').collect();
    assert!(output.status.success() && ids.len() == 2 && ids[0] == ids[1], "it leads its process group: {said}");
}

#[test]
fn failures_are_told() {
    let output = shim().command(Path::new("/no/such/qemu")).output().unwrap();
    assert_eq!(output.status.code(), Some(125));
    assert!(text(&output).contains("cannot start /no/such/qemu: No such file"), "{}", text(&output));

    // As if whoever asked had died in between.
    let shim = shim();
    let output = Command::new(&shim.program).args(["--parent", "1", "--", "/bin/true"]).output().unwrap();
    assert!(text(&output).contains("process 1 ended"), "{}", text(&output));
}

/// Not even SIGKILL of the parent leaves the child alive.
#[test]
fn it_dies_with_its_parent() {
    let shim = shim();
    // A shell in the place of Belljar: it starts the shim, and is killed.
    let script = format!("'{}' --parent $$ -- /bin/sh -c 'echo $$; exec sleep 1000' & wait", shim.program.display());
    let mut parent =
        Command::new("/bin/sh").args(["-c", &script]).stdout(Stdio::piped()).process_group(0).spawn().unwrap();
    let mut out = BufReader::new(parent.stdout.take().unwrap());
    let mut pid = String::new();
    out.read_line(&mut pid).unwrap();
    let pid = Pid::from_raw(pid.trim().parse().unwrap()).unwrap();
    let watch = pidfd_open(pid, PidfdFlags::empty()).unwrap();
    parent.kill().unwrap();
    assert_eq!(parent.wait().unwrap().signal(), Some(9));
    let limit = Timespec { tv_sec: 60, tv_nsec: 0 };
    let ended = poll(&mut [PollFd::new(&watch, PollFlags::IN)], Some(&limit)).unwrap();
    assert_eq!(ended, 1, "{pid:?} is alive");
}
