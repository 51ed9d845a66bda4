//! `belljar doctor`: what this host, or an image, can do, and how to mend what it cannot. It asks the code that a run asks.

mod image;

use std::{
    fmt::Write as _,
    io::{self, IsTerminal},
    path::{Path, PathBuf},
};

use belljar_image::{
    kernel::{self, Discovery, Userland},
    processor::Processor,
};
use belljar_machine::{
    backend::container::ContainerBackend,
    host::HostContext,
    plan_grub,
    qemu::{
        args::Accel,
        platform::{self, Platform},
        probe,
    },
};
use belljar_model::exit_code;
use bytesize::ByteSize;

use crate::{args::DoctorArgs, env, run, settings, write_out};

/// Memory below which a guest of the default size drives the host into swap.
const LITTLE_MEMORY: u64 = 1536 << 20;
/// Space below which logs and layers may not fit.
const LITTLE_SPACE: u64 = 2 << 30;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// All is well.
    Good,
    /// It works, but not as well as it could.
    Note,
    /// A run cannot do without it.
    Bad,
}

#[derive(Debug)]
struct Finding {
    state: State,
    about: &'static str,
    what: String,
    mend: Option<String>,
    /// Whether it is about the image, which says nothing of the host.
    of_image: bool,
}

impl Finding {
    fn good(about: &'static str, what: impl Into<String>) -> Self {
        Self { state: State::Good, about, what: what.into(), mend: None, of_image: false }
    }

    fn note(about: &'static str, what: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { state: State::Note, about, what: what.into(), mend: Some(mend.into()), of_image: false }
    }

    /// `what` says how to mend it.
    fn bad(about: &'static str, what: impl Into<String>) -> Self {
        Self { state: State::Bad, about, what: what.into(), mend: None, of_image: false }
    }
}

/// Prints the findings; 125 where a run cannot work.
pub(crate) fn doctor(args: &DoctorArgs) -> Result<u8, String> {
    let cache = settings::cache_dir()?;
    let mut findings = host(args, &cache);
    if let Some(image) = &args.image {
        findings.extend(image::look_at(image, args.qemu.as_deref()));
    }
    let color = io::stdout().is_terminal() && env::get(env::NO_COLOR).is_none();
    write_out(render(&findings, color).as_bytes())?;
    let broken = findings.iter().any(|f| f.state == State::Bad);
    Ok(if broken { exit_code::CANNOT_RUN } else { exit_code::OK })
}

fn host(args: &DoctorArgs, cache: &Path) -> Vec<Finding> {
    let mut findings = Vec::new();
    // With --fresh nothing that was remembered is read.
    let fresh = args.fresh.then(tempdir).flatten();
    let memory = fresh.as_deref().unwrap_or(cache);
    let platform = platform::default();
    match probe::find_qemu(platform, args.qemu.as_deref(), env::get("PATH").as_deref(), memory) {
        Err(error) => findings.push(Finding::bad("QEMU", error.to_string())),
        Ok(qemu) => {
            findings.push(Finding::good("QEMU", format!("{} ({})", qemu.path.display(), qemu.version)));
            if !qemu.has_9p {
                findings.push(Finding::bad(
                    "9p",
                    "this QEMU was built without 9p (virtio-9p); mend: install your distribution's full QEMU",
                ));
            }
            if !qemu.has_sandbox {
                findings.push(Finding::note(
                    "sandbox",
                    "this QEMU was built without seccomp",
                    "it works, with one wall less between the guest and this host",
                ));
            }
            match probe::choose_accel(platform, None, &qemu, &settings::shim(), memory) {
                Ok(choice) if choice.accel == Accel::Kvm => findings.push(Finding::good("KVM", choice.why)),
                Ok(choice) => findings.push(Finding::note(
                    "KVM",
                    format!("not used: {}", choice.why),
                    choice.mend.unwrap_or_else(|| "guests are emulated, about ten times slower".into()),
                )),
                Err(error) => findings.push(Finding::bad("KVM", error.to_string())),
            }
        }
    }
    findings.push(others());
    findings.extend(engines(args, memory));
    if let Some(dir) = fresh {
        forget(&dir, cache);
    }
    findings.push(match which::which("qemu-img") {
        Ok(path) => Finding::good("qemu-img", path.display().to_string()),
        Err(_) => Finding::note(
            "qemu-img",
            "not found",
            "disk images and --disk file= need it: install qemu-utils (Debian) or qemu-img (Fedora)",
        ),
    });
    findings.push(grub());
    let found = kernel::discover(&[PathBuf::from("/")], &platform::processors());
    findings.extend(kernels(&found, &platform.processor));
    findings.push(free_memory());
    findings.push(free_space(cache));
    findings
}

/// The processors besides this host's that guests can have.
fn others() -> Finding {
    let is_other = |platform: &&&'static Platform| !platform.is_hosts();
    let mut lines = Vec::new();
    let mut lacking = Vec::new();
    for &platform in platform::PLATFORMS.iter().filter(is_other) {
        let name = platform.processor.name;
        match probe::find_program(platform, None, env::get("PATH").as_deref()) {
            Err(_) => lacking.push(format!("{name} ({})", platform.packages)),
            Ok((qemu, _)) => {
                let session = if platform.agent().is_some() { "with an agent" } else { "by a shell on the console" };
                lines.push(format!("{name}: {}, {session}", qemu.display()));
            }
        }
    }
    if !lacking.is_empty() {
        lines.push(format!("no QEMU for {}", lacking.join(", ")));
    }
    let ways: Vec<String> = platform::PLATFORMS.iter().filter_map(|platform| platform.how_to_have_agent()).collect();
    lines.extend(ways);
    Finding::good("others", lines.join("\n"))
}

/// The container engines. No machine needs one, so that none is bad.
fn engines(args: &DoctorArgs, memory: &Path) -> Vec<Finding> {
    let look = || -> Result<_, String> {
        let host = settings::host_context(None, args.engine.as_deref(), None)?;
        let backend = ContainerBackend::new(HostContext { cache_dir: memory.to_owned(), ..host });
        run::runtime()?.block_on(backend.look())
    };
    match look() {
        Err(why) => vec![Finding::note("engine", why, "guests that are containers need one; machines do not")],
        Ok(engines) => {
            let find = |(works, said)| match works {
                true => Finding::good("engine", said),
                false => {
                    Finding::note("engine", said, "guests that are containers need one that works; machines do not")
                }
            };
            engines.into_iter().map(find).collect()
        }
    }
}

/// The GRUB that starts images which Belljar itself cannot read. Hardly an image needs it.
fn grub() -> Finding {
    let (there, missing) = plan_grub::installed(env::get("PATH").as_deref());
    let there: Vec<_> = there.iter().map(|dir| dir.display().to_string()).collect();
    if there.is_empty() {
        let mend = "images that nobody gets into, and that Belljar cannot read, may be started by it (--access grub)";
        return Finding::note("GRUB", missing.join("\n"), mend);
    }
    Finding::good("GRUB", there.into_iter().chain(missing).collect::<Vec<_>>().join("\n"))
}

/// A place for what is found now, so that it replaces what was remembered.
fn tempdir() -> Option<PathBuf> {
    let name = format!("belljar-doctor-{}", std::process::id());
    let dir = std::env::temp_dir().join(name);
    fs_err::create_dir(&dir).ok()?;
    Some(dir)
}

fn forget(fresh: &Path, cache: &Path) {
    // What could not be copied is found out again by the next run.
    drop(fs_err::create_dir_all(cache));
    if let Ok(entries) = fs_err::read_dir(fresh) {
        for entry in entries.flatten() {
            drop(fs_err::copy(entry.path(), cache.join(entry.file_name())));
        }
    }
    drop(fs_err::remove_dir_all(fresh));
}

fn kernels(found: &Discovery, processor: &Processor) -> Vec<Finding> {
    match found.choose(Userland::Directory, processor) {
        Err(error) => vec![Finding::bad("kernel", error.to_string())],
        Ok(chosen) => {
            let release = chosen.kernel.release.as_ref().map_or("of unknown release", |r| r.as_str());
            let mut findings =
                vec![Finding::good("kernel", format!("{} ({release}), with 9p", chosen.kernel.path.display()))];
            for passed in found.passed_over(chosen, Userland::Directory, processor) {
                findings.push(Finding::note(
                    "kernel",
                    format!("{}: {}", passed.path.display(), passed.why),
                    "passed over for the one above",
                ));
            }
            findings
        }
    }
}

fn free_memory() -> Finding {
    let available = fs_err::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
        line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()
    });
    match available.map(|kib| kib << 10) {
        None => Finding::note("memory", "unknown", "/proc/meminfo says nothing of it"),
        Some(bytes) if bytes < LITTLE_MEMORY => Finding::note(
            "memory",
            format!("{} free", ByteSize(bytes)),
            "a guest takes 1 GiB by default: give it less with --memory, or end something else",
        ),
        Some(bytes) => Finding::good("memory", format!("{} free", ByteSize(bytes))),
    }
}

fn free_space(cache: &Path) -> Finding {
    let there = cache.ancestors().find(|dir| dir.exists()).unwrap_or(Path::new("/"));
    match rustix::fs::statvfs(there) {
        Err(error) => {
            Finding::note("space", format!("unknown at {}: {error}", there.display()), "check that it can be read")
        }
        Ok(stat) => {
            let bytes = stat.f_bavail.saturating_mul(stat.f_frsize);
            let text = format!("{} free at {}", ByteSize(bytes), there.display());
            if bytes < LITTLE_SPACE {
                Finding::note(
                    "space",
                    text,
                    "what guests write to their disks goes there: make room, or set BELLJAR_STATE_DIR and BELLJAR_CACHE_DIR",
                )
            } else {
                Finding::good("space", text)
            }
        }
    }
}

fn render(findings: &[Finding], color: bool) -> String {
    let mut out = String::new();
    for finding in findings {
        let (word, code) = match finding.state {
            State::Good => ("ok", "32"),
            State::Note => ("note", "33"),
            State::Bad => ("bad", "31"),
        };
        let word = if color { format!("\x1b[{code}m{word:<4}\x1b[0m") } else { format!("{word:<4}") };
        let what = finding.what.replace('\n', "\n                ");
        // Writing to a string cannot fail.
        let _ = writeln!(out, "{word}  {:<8}  {what}", finding.about);
        if let Some(mend) = &finding.mend {
            let _ = writeln!(out, "                {}", mend.replace('\n', "\n                "));
        }
    }
    let (image, host): (Vec<_>, Vec<_>) = findings.iter().filter(|f| f.state == State::Bad).partition(|f| f.of_image);
    out.push_str(match (host.len(), image.len()) {
        (0, 0) if findings.iter().any(|f| f.of_image && f.state == State::Note) => {
            "\nbelljar run -- CMD will work here; with this image, the notes say what may be in its way.\n"
        }
        (0, 0) => "\nbelljar run -- CMD will work here.\n",
        (0, _) => "\nbelljar run -- CMD will work here, but not with this image until what is marked bad is mended.\n",
        _ => "\nbelljar run -- CMD cannot work here until what is marked bad is mended.\n",
    });
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_how_to_mend() {
        let findings = [
            Finding::good("QEMU", "/usr/bin/qemu-system-x86_64 (7.2.22)"),
            Finding::note("KVM", "not used: permission denied", "add yourself to the group kvm"),
            Finding::bad("kernel", "none found\nmend: install one"),
        ];
        let expected = "\
ok    QEMU      /usr/bin/qemu-system-x86_64 (7.2.22)
note  KVM       not used: permission denied
                add yourself to the group kvm
bad   kernel    none found
                mend: install one

belljar run -- CMD cannot work here until what is marked bad is mended.
";
        assert_eq!(render(&findings, false), expected);
        let image = [Finding::good("QEMU", "x"), Finding { of_image: true, ..Finding::bad("boot", "nothing") }];
        assert!(render(&image, false).contains("will work here, but not with this image"));
        assert!(render(&findings[..2], false).ends_with("will work here.\n"));
        assert!(render(&findings, true).contains("\x1b[31mbad \x1b[0m"));
    }
}
