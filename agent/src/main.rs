//! The static program that Belljar runs inside a guest.
//!
//! As the guest's first process it makes a system out of an initramfs ([`init`]); started from a root shell it goes into the
//! background ([`serve`]). Either way it then talks to Belljar over a port ([`agent`]).
//!
//! It has one thread, and no Rust runtime before `main`: the runtime wants `/dev/null`, which the first process of a bare initramfs
//! does not have, and every instruction counts in an emulated guest.
#![cfg_attr(not(test), no_main)]
#![cfg_attr(test, expect(dead_code, reason = "the entry point is not part of the tests"))]

mod agent;
mod ask;
mod beside;
mod booted;
mod clock;
mod command;
mod container;
mod devices;
mod disk_names;
mod disk_state;
mod disk_use;
mod guards;
mod identity;
mod init;
mod job;
mod kexec;
mod kmsg;
mod late;
mod leftovers;
mod link;
mod look;
mod modules;
mod mount_table;
mod mounts;
mod network;
mod owner;
mod plain;
mod port;
mod refusal;
mod renew;
mod root;
mod serve;
mod setup;
mod share;
mod shutdown;
mod soft_reboot;
mod spawn;
mod still;
mod sys;
mod systemd;
mod text;
mod trust;
mod users;
mod watchdogs;

use std::ffi::c_int;
use std::os::unix::ffi::OsStrExt;

const USAGE: &str = "usage: belljar-agent serve [--foreground] | version";

/// Entry point, as for a C program.
#[cfg(not(test))]
#[expect(unsafe_code, reason = "the C library calls this by its name")]
// SAFETY: this is the program's only `main`.
#[unsafe(no_mangle)]
extern "C" fn main(argc: c_int, argv: *const *const std::ffi::c_char) -> c_int {
    sys::remember_arguments(argv);
    let args: Vec<&[u8]> = (1..usize::try_from(argc).unwrap_or(0))
        // SAFETY: the C library gives `argc` pointers to strings that live as long as the process.
        .map(|at| unsafe { std::ffi::CStr::from_ptr(*argv.add(at)) }.to_bytes())
        .collect();
    // SAFETY: as above; there may be no first one.
    let called = if argc > 0 { unsafe { std::ffi::CStr::from_ptr(*argv) }.to_bytes() } else { b"" };
    if let Some(name) = ask::ctl::name_of(called) {
        return ask::ctl::run(name, &args);
    }
    run(&args)
}

fn run(args: &[&[u8]]) -> c_int {
    sys::own_signals();
    if let [b"serve", b"--renewed", fd] = args {
        return with_fd(fd, renew::go_on);
    }
    if let [b"serve", b"--container", path] = args {
        return container::serve(std::ffi::OsStr::from_bytes(path).as_ref(), false);
    }
    if let [b"serve", b"--container", path, b"--systemd"] = args {
        return container::serve(std::ffi::OsStr::from_bytes(path).as_ref(), true);
    }
    if let [b"places", paths @ ..] = args {
        return container::places(paths);
    }
    if let [b"version" | b"--version"] = args {
        let version = concat!("belljar-agent ", env!("CARGO_PKG_VERSION"), "\n");
        let _ = rustix::io::write(rustix::stdio::stdout(), version.as_bytes());
        return 0;
    }
    if let [b"sum"] = args {
        return sum();
    }
    // The kernel passes words of its command line that it does not know to the first process: they mean nothing here.
    if rustix::process::getpid().is_init() {
        init::run();
    }
    match args {
        [b"serve"] => serve::detached(),
        [b"serve", b"--foreground"] => serve::foreground(),
        // The following are for Belljar itself, and for its tests.
        [b"serve", b"--beside"] => beside::go_on(),
        [b"serve", b"--daemon", fd] => with_fd(fd, serve::daemon),
        [b"serve", b"--fd", fd] => with_fd(fd, |fd| serve::on_fd(fd, None)),
        [b"serve", b"--fd", fd, b"--ask", path] => {
            with_fd(fd, |fd| serve::on_fd(fd, Some(std::ffi::OsStr::from_bytes(path).as_ref())))
        }
        _ => {
            text::say(USAGE);
            2
        }
    }
}

/// `sum`: prints what `cksum` says of this program, for a guest that has nothing of the kind.
fn sum() -> c_int {
    serve::need_proc();
    let Ok(program) = std::fs::read("/proc/self/exe") else {
        text::say("sum: cannot read this program");
        return 1;
    };
    let line = format!("{} {}\n", belljar_share_disk::layout::cksum(&program), program.len());
    let _ = rustix::io::write(rustix::stdio::stdout(), line.as_bytes());
    0
}

fn with_fd(number: &[u8], run: impl FnOnce(std::os::fd::OwnedFd) -> c_int) -> c_int {
    let fd = std::str::from_utf8(number)
        .ok()
        .and_then(|number| number.parse().ok())
        .and_then(|number| sys::inherit(number).ok());
    match fd {
        Some(fd) => run(fd),
        None => {
            text::say(USAGE);
            2
        }
    }
}
