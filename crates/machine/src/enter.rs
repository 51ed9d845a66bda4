//! From a root shell on the console to the agent, or to what can be done without it.
//!
//! Few commands are typed, each answers with its exit code, and none is longer than a terminal's line.

mod typed;

use std::{fmt::Write as _, sync::Arc};

use belljar_guest_spec::WorkspaceMode;
use belljar_model::{CrashKind, EventKind, Phase};
use belljar_proto::message::{Identity, Mount, PROGRAM_PORT_NAME};
use belljar_share_disk::layout::{self, BLOCK, DISK_SIZE, MAGIC, PROGRAM_AT};

use crate::{
    Cause, Lost,
    access::{AccessError, AccessEvent, Act, Shell, ShellError, ShellReply, quote},
    boot::Tell,
    console::{AlarmKind, ExpectError},
    limits::Limits,
    plan::AgentPlace,
    qemu::{
        args::{Program, ProgramSource},
        platform::Platform,
    },
    session::console::Exchange,
    share::{self, Kind},
    spec::ShareSpec,
};

/// What came of starting the agent.
#[derive(Debug)]
pub(crate) enum AgentStart {
    /// It runs and will announce itself.
    Started,
    /// The guest cannot run it.
    CannotRun {
        /// What was seen.
        why: String,
        /// Whether it runs, and the port is another's: that of an agent that came by itself in this moment.
        port_taken: bool,
    },
}

/// The agent's exit code where there is a port that it cannot open.
const PORT_UNOPENED: u8 = 1;

/// The exit code of what fetches the agent where there was none that runs, as of shells.
const NO_PROGRAM: u8 = 126;
/// The same where what was fetched is damaged (`EUCLEAN`).
const DAMAGED: u8 = 117;

/// Commands that take the agent from its virtio port to where it can run, run it, and leave nothing behind: it needs neither a share nor a disk.
/// They end with its exit code, and with 126 if there was none that runs. No single quotation mark is in them. The port's name has to be looked
/// up, since not every guest has an udev that links it; its bytes can be read once. In a guest that boots it may take `seconds` until the port is
/// there.
pub(crate) fn from_port(arguments: &str, seconds: u32) -> String {
    let tries = (0..=seconds).map(|second| second.to_string()).collect::<Vec<_>>().join(" ");
    format!(
        "modprobe -q virtio_console; c=126; f=; for t in {tries}; do for p in /sys/class/virtio-ports/*; do n=; \
         [ -e $p/name ] && read -r n <$p/name; [ \"$n\" = {PROGRAM_PORT_NAME} ] || continue; for d in /run /dev/shm /tmp; do g=$d/.belljar-agent; \
         cat ${{f:-/dev/${{p##*/}}}} >$g || continue; rm -f $f; f=$g; chmod 700 $f; \
         if $f version; then $f {arguments} </dev/null; c=$?; break; fi; done; rm -f $f; break 2; done; [ $t = {seconds} ] || sleep 1; done; (exit $c)"
    )
}

/// The same from the disk of shares, which is known by its size and its first line, on whatever bus it is, and whose file the host has summed up for
/// cksum(1). They end with 117 if it is not as it was put there, and with 126 if there is none. Where there is no cksum, the program's own start tells.
pub(crate) fn from_disk(program: layout::Program, arguments: &str, seconds: u32) -> String {
    let tries = (0..=seconds).map(|second| second.to_string()).collect::<Vec<_>>().join(" ");
    let (first_line, sectors) = (String::from_utf8_lossy(MAGIC.trim_ascii_end()).into_owned(), DISK_SIZE / 512);
    let layout::Program { blocks, sum } = program;
    let (at, bytes, magic) = (PROGRAM_AT / BLOCK as u64, blocks * BLOCK as u64, first_line.len());
    format!(
        "modprobe -qa ahci ata_piix nvme sd_mod; c=126; for t in {tries}; do for b in /sys/block/*; do s=; [ -e $b/size ] && read -r s <$b/size; \
         [ \"$s\" = {sectors} ] || continue; n=/dev/${{b##*/}}; [ \"$(dd if=$n bs={magic} count=1)\" = {first_line} ] || continue; \
         for d in /run /dev/shm /tmp; do f=$d/.belljar-agent; dd if=$n of=$f bs={BLOCK} skip={at} count={blocks} || continue; c=117; \
         case $(cksum <$f) in \"\"|\"{sum} {bytes}\"*) chmod 700 $f; c=126; if $f version; then $f {arguments} </dev/null; c=$?; rm -f $f; break 3; fi;; \
         esac; rm -f $f; done; break 2; done; [ $t = {seconds} ] || sleep 1; done; (exit $c)"
    )
}

/// Commands that take the agent from where this machine has it, and run it.
pub(crate) fn fetch(program: ProgramSource, arguments: &str, seconds: u32) -> String {
    match program {
        ProgramSource::Port => from_port(arguments, seconds),
        ProgramSource::Disk(program) => from_disk(program, arguments, seconds),
    }
}

/// What came of starting the agent where the machine has it.
enum Fetched {
    /// It was started, or could not be for a reason that is its own.
    Ran(ShellReply),
    /// The guest does not get at it, for this reason.
    Missing(String),
}

/// Has the shell start the agent. `kind` carries the control share, if there is one.
pub(crate) async fn start_agent(
    shell: &mut Shell,
    place: AgentPlace,
    (program, platform): (&Program, &Platform),
    kind: Option<&Kind>,
    limits: &Limits,
    tell: Tell<'_>,
) -> Result<AgentStart, Lost> {
    let agent = place.path().zip(platform.agent());
    let Some((path, agent)) = agent else {
        let why = "there is no agent for its processor".into();
        return Ok(AgentStart::CannotRun { why, port_taken: false });
    };
    let missing = match start_fetched(shell, (place, &path), program, kind, limits).await? {
        Fetched::Ran(reply) => return Ok(started(&reply)),
        Fetched::Missing(why) => why,
    };
    let cannot = |also: String| {
        Ok(AgentStart::CannotRun {
            why: format!("{missing}; nor can it be typed over the console: {also}"),
            port_taken: false,
        })
    };
    if let Some(why) = cannot_run(shell, platform, limits).await? {
        return cannot(why);
    }
    match typed::type_agent(shell, agent.program, &missing, limits, tell).await? {
        typed::Typed::Ran(reply) => Ok(started(&reply)),
        typed::Typed::Cannot(why) => cannot(why),
        typed::Typed::NotNow(why) => {
            shell.makeshift = Some(format!("its agent could not be typed this time: {why}"));
            cannot(why)
        }
    }
}

/// Why the agent would not run in this guest, or have no port, if that is known.
async fn cannot_run(shell: &mut Shell, platform: &Platform, limits: &Limits) -> Result<Option<String>, Lost> {
    if shell.root() == Some(false) {
        return Ok(Some("the shell is not root's".to_owned()));
    }
    let reply = run(shell, "uname -m", limits).await?;
    let machine = reply.text();
    if reply.code == 0 && machine != platform.processor.name {
        let machine = crate::console::sanitize::sanitize_line(&reply.output);
        return Ok(Some(format!(
            "it is a program for {}, and the guest's kernel says that it is for {machine}",
            platform.processor.name
        )));
    }
    // Without /sys it can only be tried; it looks for the second serial port itself.
    let ports = "[ ! -d /sys/class ]||[ -d /sys/class/virtio-ports ]";
    if platform.second_serial.is_none() && run(shell, ports, limits).await?.code != 0 {
        return Ok(Some(
            "it would have no port to speak on, neither a virtio port nor a second serial port".to_owned(),
        ));
    }
    Ok(None)
}

/// Starts the agent from where the machine has it.
async fn start_fetched(
    shell: &mut Shell,
    (place, path): (AgentPlace, &str),
    program: &Program,
    kind: Option<&Kind>,
    limits: &Limits,
) -> Result<Fetched, Lost> {
    let fetched = |reply: ShellReply| match reply.code {
        NO_PROGRAM | DAMAGED => Fetched::Missing(why_not(&reply)),
        _ => Fetched::Ran(reply),
    };
    let mut agent = path.to_owned();
    if place == AgentPlace::ControlShare {
        let mut last = None;
        if let ProgramSource::Disk(program) = program.source() {
            let reply = run(shell, &from_disk(program, "serve", 0), limits).await?;
            if reply.code != NO_PROGRAM || kind.is_none() {
                return Ok(fetched(reply));
            }
            last = Some(reply);
        }
        if let Some(kind) = kind {
            match mount(shell, kind, share::CONTROL_TAG, share::CONTROL_PATH, "ro", limits).await {
                Err(Lost { cause: Cause::NoShares(_), .. }) => {
                    if let Some(reply) = last {
                        return Ok(fetched(reply));
                    }
                    let mut reply = run(shell, &from_port("serve", 0), limits).await?;
                    if let Some(program) = program.on_disk.filter(|_| reply.code == NO_PROGRAM) {
                        reply = run(shell, &from_disk(program, "serve", 0), limits).await?;
                    }
                    return Ok(fetched(reply));
                }
                mounted => mounted?,
            }
        }
    }
    if place == AgentPlace::Initramfs && run(shell, &format!("test -x {agent}"), limits).await?.code != 0 {
        // The initramfs has given way to another root since.
        let gone = "the root is another than the initramfs with the agent";
        let Some(kind) = kind else { return Ok(Fetched::Missing(gone.to_owned())) };
        match mount(shell, kind, share::CONTROL_TAG, share::CONTROL_PATH, "ro", limits).await {
            Err(Lost { cause: Cause::NoShares(_), .. }) => {
                return Ok(Fetched::Missing(format!(
                    "{gone}, and the guest's kernel has no {} to get it by",
                    kind.what
                )));
            }
            mounted => mounted?,
        }
        agent = format!("{}/{}", share::CONTROL_PATH, share::AGENT_FILE);
    }
    Ok(Fetched::Ran(run(shell, &format!("{agent} serve </dev/null"), limits).await?))
}

/// What it means that the guest did not run the agent.
fn why_not(reply: &ShellReply) -> String {
    let said = crate::console::sanitize::sanitize_line(&reply.output);
    if reply.code == DAMAGED {
        format!("what the guest read from the disk of shares is not the agent that is on it: {said}")
    } else {
        format!("the agent does not run in this guest: exit code {}, {said}", reply.code)
    }
}

/// What the answer to the agent's start says.
fn started(reply: &ShellReply) -> AgentStart {
    if reply.code == 0 {
        return AgentStart::Started;
    }
    AgentStart::CannotRun { why: why_not(reply), port_taken: reply.code == PORT_UNOPENED }
}

/// Mounts the shares without the agent; gives where files for both sides are, or why nobody needs them to be anywhere.
pub(crate) async fn mount_by_shell(
    shell: &mut Shell,
    spec: &ShareSpec,
    kind: &Kind,
    limits: &Limits,
) -> Result<Result<Exchange, Cause>, Lost> {
    match mount(shell, kind, share::OUT_TAG, share::OUT_PATH, "rw", limits).await {
        Ok(()) => {}
        Err(Lost { cause: cause @ (Cause::NoShares(_) | Cause::Mount(_)), .. }) if !spec.required() => {
            return Ok(Err(cause));
        }
        Err(lost) => return Err(lost),
    }
    if let Some(workspace) = &spec.workspace {
        let at = &workspace.mount_at;
        match workspace.mode {
            WorkspaceMode::Rw => mount(shell, kind, share::WORKSPACE_TAG, at, "rw", limits).await?,
            WorkspaceMode::Ro => mount(shell, kind, share::WORKSPACE_TAG, at, "ro", limits).await?,
            WorkspaceMode::Cow => {
                const LOWER: &str = "/run/belljar/lower";
                const LAYER: &str = "/run/belljar/layer";
                mount(shell, kind, share::WORKSPACE_TAG, LOWER, "ro", limits).await?;
                let q = shell_word(at);
                let line = format!(
                    "o=lowerdir={LOWER},upperdir={LAYER}/u,workdir={LAYER}/w;mkdir -p {LAYER} {q} && \
                     mount -t tmpfs tmpfs {LAYER} && mkdir {LAYER}/u {LAYER}/w && {{ modprobe overlay; \
                     mount -t overlay -o $o,redirect_dir=on,metacopy=on overlay {q} 2>/dev/null || \
                     mount -t overlay -o $o overlay {q}; }}"
                );
                let reply = run(shell, &line, limits).await?;
                if reply.code != 0 {
                    let said = crate::console::sanitize::sanitize_line(&reply.output);
                    return Err(Cause::Mount(format!(
                        "the guest could not lay a writable layer over the workspace: {said}\nuse --workspace-mode ro or rw"
                    ))
                    .into());
                }
            }
        }
    }
    Ok(Ok(Exchange { host: spec.out.clone(), guest: share::OUT_PATH.into() }))
}

/// Makes the directory of `$BELLJAR_OUT` in a guest that shares none; gives what there is to say of it.
pub(crate) async fn make_out_dir(shell: &mut Shell, limits: &Limits) -> Result<String, Lost> {
    let line = format!("{} && chmod 1777 {}", make_dir(share::OUT_PATH), share::OUT_PATH);
    let reply = run(shell, &line, limits).await?;
    let said = crate::console::sanitize::sanitize_line(&reply.output);
    Ok(if reply.code == 0 {
        "none was asked for".to_owned()
    } else {
        format!("none was asked for, and the guest has no place for {}: {said}", share::OUT_PATH)
    })
}

/// The command that makes a directory. A root that cannot be written to still has room in memory.
fn make_dir(at: &str) -> String {
    let q = shell_word(at);
    if at.starts_with("/run/") {
        format!("{{ mkdir -p {q} 2>/dev/null || {{ mount -t tmpfs tmpfs /run && mkdir -p {q}; }}; }}")
    } else {
        format!("mkdir -p {q}")
    }
}

async fn mount(shell: &mut Shell, kind: &Kind, tag: &str, at: &str, mode: &str, limits: &Limits) -> Result<(), Lost> {
    let Some(by_shell) = &kind.by_shell else {
        return Err(Cause::Defect(format!("a shell was to mount a share by {}", kind.name)).into());
    };
    let mount = (by_shell.mount)(tag, &shell_word(at), mode);
    let (make, load) = (make_dir(at), by_shell.load);
    let line = format!("{make} && {{ {mount} 2>/dev/null || {{ {load}; {mount}; }}; }}");
    let reply = run(shell, &line, limits).await?;
    if reply.code == 0 {
        return Ok(());
    }
    let said = crate::console::sanitize::sanitize_line(&reply.output);
    let known = run(shell, by_shell.known, limits).await?;
    if known.code != 0 {
        let Kind { what: lacking, advice, .. } = kind;
        let what = share::what(tag);
        return Err(Cause::NoShares(format!(
            "the guest's kernel has no {lacking}, so it cannot be given {what} ({said}). {advice}"
        ))
        .into());
    }
    Err(Cause::Mount(format!("the guest could not mount the share {tag} at {at}: {said}")).into())
}

/// Has the guest let go of what was mounted on the way; gives what is mounted all the same.
pub(crate) async fn quiesce(shell: &mut Shell, mounts: &[Mount], limits: &Limits) -> Result<Vec<String>, Lost> {
    let paths = mounts.iter().rev().map(|mount| mount.path.as_str()).chain([share::CONTROL_PATH]);
    let umount: String = paths.map(|path| format!("umount {} 2>/dev/null;", shell_word(path))).collect();
    run(shell, &format!("{umount} sync || busybox sync"), limits).await?;
    let ours: Vec<&str> = share::KINDS.iter().map(|kind| kind.file_system).collect();
    let ours = ours.join("|");
    let line = format!("while read -r d p t x;do case $t in {ours})echo \"<$p>\";;esac;done </proc/mounts");
    let reply = run(shell, &line, limits).await?;
    if reply.code != 0 {
        // Without /proc it can have mounted nothing, for lack of a shell that knows what to mount.
        return Ok(Vec::new());
    }
    let lines = crate::console::sanitize::sanitize_line(&reply.output);
    Ok(lines.split('<').skip(1).filter_map(|l| l.split_once('>')).map(|(path, _)| path.to_owned()).collect())
}

/// Makes a copy of a frozen guest another guest than its siblings, as well as a shell can.
pub(crate) async fn assume(shell: &mut Shell, identity: &Identity, limits: &Limits) -> Result<(), Lost> {
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let seconds = crate::boot::now_ns() / 1_000_000_000;
    // The kernel mixes what is written here, and takes it from there in its own time.
    let mut line = format!("{{ date -s @{seconds}; echo {} >/dev/urandom;", hex(&identity.seed));
    if identity.machine_id != [0; 16] {
        let _ = write!(line, "[ ! -e /etc/machine-id ]||echo {} >/etc/machine-id;", hex(&identity.machine_id));
    }
    if !identity.host_suffix.is_empty() {
        let _ = write!(line, "hostname \"$(hostname){}\";", identity.host_suffix);
    }
    line.push_str(" } >/dev/null 2>&1");
    run(shell, &line, limits).await.map(drop)
}

/// One word for a POSIX shell.
fn shell_word(text: &str) -> String {
    String::from_utf8_lossy(&quote(text.as_bytes())).into_owned()
}

async fn run(shell: &mut Shell, line: &str, limits: &Limits) -> Result<ShellReply, Lost> {
    shell.run(line, &mut limits.line()).await.map_err(|error| of_shell(&error, Phase::Session))
}

/// What is worth an event of what happened on the way in.
pub(crate) fn event_of(event: &AccessEvent) -> Option<EventKind> {
    match event {
        AccessEvent::Held { rung, root } => Some(EventKind::Choice {
            what: "access".into(),
            chosen: (*rung).into(),
            why: match root {
                Some(true) => "a shell of root answered on the serial console".into(),
                Some(false) => "a shell answered on the serial console, not root's".into(),
                None => "a shell answered on the serial console; the guest cannot say whose".into(),
            },
        }),
        AccessEvent::BecomingRoot { by } => Some(EventKind::Choice {
            what: "root".into(),
            chosen: (*by).into(),
            why: "the shell that was reached is not root's".into(),
        }),
        AccessEvent::Did { line, act: Act::Choose, .. } => Some(EventKind::Choice {
            what: "boot menu".into(),
            chosen: "the choice that it shows".into(),
            why: format!("{line} waited for a key on the serial console, and Enter was pressed"),
        }),
        AccessEvent::Did { .. } | AccessEvent::ShellFound { .. } => None,
    }
}

/// What a failure to get in says about the guest.
pub(crate) fn lost_of_access(error: AccessError, platform: &Platform) -> Lost {
    match error {
        AccessError::Expect(ExpectError::Overdue { what, overdue, tail }) if tail.is_empty() => {
            let console = platform.console;
            let said = format!(
                "{what} did not come on the serial console: {overdue}\nThe console has shown nothing. The guest must have its console \
                 there: console={console} on its kernel's line, and a getty for a login"
            );
            Lost::timeout(Phase::Access, said)
        }
        AccessError::Expect(error) => of_expect(&error, Phase::Access),
        AccessError::Send(error) => Lost::crash(CrashKind::Silent, error.to_string(), Phase::Access),
        AccessError::Shell(error) => of_shell(&error, Phase::Access),
        AccessError::Stuck { alarm, tail } => {
            let seen = format!("{} ({})", alarm.kind.title(), alarm.line);
            Lost::crash(CrashKind::BootFailed, seen, Phase::Boot).with_advice(alarm.kind.advice()).with_tail(tail)
        }
        AccessError::Died { alarm, tail } => {
            let kind = match alarm.kind {
                AlarmKind::PowerDown | AlarmKind::Halt => CrashKind::PowerOff,
                AlarmKind::Restart => CrashKind::Reboot,
                _ => CrashKind::Panic,
            };
            Lost::crash(kind, alarm.line, Phase::Boot).with_advice(alarm.kind.advice()).with_tail(tail)
        }
        AccessError::Refused { .. }
        | AccessError::PasswordWanted { .. }
        | AccessError::PasswordExpired { .. }
        | AccessError::LoginLoop { .. }
        | AccessError::NoShell { .. }
        | AccessError::NotRoot { .. } => Lost::from(Cause::Access(Arc::new(error))).lasting(),
    }
}

pub(crate) fn of_shell(error: &ShellError, phase: Phase) -> Lost {
    match error {
        ShellError::Expect(error) => of_expect(error, phase),
        other => Lost::crash(CrashKind::Silent, other.to_string(), phase),
    }
}

fn of_expect(error: &ExpectError, phase: Phase) -> Lost {
    match error {
        ExpectError::Overdue { what, overdue, tail } => {
            let said = format!("{what} did not come on the serial console: {overdue}");
            Lost::timeout(phase, said).with_tail(tail.clone())
        }
        ExpectError::Closed { what, tail } => {
            let seen = format!("the serial console was closed while {what} was awaited");
            Lost::crash(CrashKind::Silent, seen, phase).with_tail(tail.clone())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, File},
        path::Path,
        process::Command,
    };

    use belljar_share_disk::layout::Header;
    use rustix::fs::SeekFrom;

    use super::*;

    /// What is written into `ran` says how it was started.
    const PROGRAM: &[u8] = b"#!/bin/sh\n[ \"$1\" = version ] && exit 0\necho \"$@\" >ran\nexit 0\n";

    /// A guest's `/sys/block` and `/dev`, with a disk of shares as its second disk.
    struct Lab(tempfile::TempDir);

    impl Lab {
        fn new(program: &[u8]) -> Self {
            let lab = Self(tempfile::tempdir().unwrap());
            for name in ["sda", "sdb"] {
                fs::create_dir_all(lab.path(&format!("sys/{name}"))).unwrap();
            }
            fs::create_dir_all(lab.path("dev")).unwrap();
            fs::create_dir_all(lab.path("run")).unwrap();
            fs::write(lab.path("sys/sda/size"), "4194304\n").unwrap();
            fs::write(lab.path("sys/sdb/size"), format!("{}\n", DISK_SIZE / 512)).unwrap();
            fs::write(lab.path("dev/sda"), [0xff; 4096]).unwrap();
            let header = Header { id: [7; 16], program: program.len() as u64, content: 0, crc: 0 };
            fs::write(lab.path("dev/sdb"), header.to_block()).unwrap();
            let disk = File::options().write(true).open(lab.path("dev/sdb")).unwrap();
            disk.set_len(PROGRAM_AT + (64 << 10)).unwrap();
            rustix::fs::seek(&disk, SeekFrom::Start(PROGRAM_AT)).unwrap();
            rustix::io::write(&disk, program).unwrap();
            lab
        }

        fn path(&self, name: &str) -> std::path::PathBuf {
            self.0.path().join(name)
        }

        /// The exit code of what fetches it, and how it was started then, by a shell that finds programs there.
        fn fetch(&self, shell: &[&str], path: &str, program: layout::Program) -> (Option<i32>, Option<String>) {
            let dir = |name: &str| format!("{}/", self.path(name).display());
            let text = from_disk(program, "serve now", 0);
            let text = text.replace("/sys/block/", &dir("sys")).replace("n=/dev/", &format!("n={}", dir("dev")));
            let text = text.replace("in /run /dev/shm /tmp", &format!("in {0}none {0}run", dir("")));
            let mut command = Command::new(shell[0]);
            command.args(&shell[1..]).args(["-c", &text]).env("PATH", path).current_dir(self.0.path());
            let done = command.status().unwrap();
            let left = fs::read_dir(self.path("run")).unwrap().count();
            assert_eq!(left, 0, "nothing is left behind");
            let ran = fs::read_to_string(self.path("ran")).ok();
            let _ = fs::remove_file(self.path("ran"));
            (done.code(), ran)
        }
    }

    #[test]
    fn a_shell_takes_the_agent_from_the_disk_that_has_it() {
        let path = "/usr/sbin:/usr/bin:/sbin:/bin";
        let program = layout::Program::of(PROGRAM);
        let started = (Some(0), Some("serve now\n".to_owned()));
        for shell in [&["dash"][..], &["bash"], &["busybox", "sh"]] {
            let lab = Lab::new(PROGRAM);
            assert_eq!(lab.fetch(shell, path, program), started, "{shell:?}");
            // Damaged, by what cksum says.
            let other = layout::Program { sum: program.sum ^ 1, ..program };
            assert_eq!(lab.fetch(shell, path, other), (Some(DAMAGED.into()), None), "{shell:?}");
            // Without cksum its own start tells.
            let few = lab.path("bin");
            fs::create_dir(&few).unwrap();
            for name in ["dd", "chmod", "rm", "cat"] {
                let real = ["/usr/bin", "/bin"].iter().map(|dir| Path::new(dir).join(name)).find(|file| file.exists());
                std::os::unix::fs::symlink(real.unwrap(), few.join(name)).unwrap();
            }
            if shell[0] != "busybox" {
                let shell = [format!("/bin/{}", shell[0])];
                assert_eq!(lab.fetch(&[&shell[0]], &few.display().to_string(), other), started, "{shell:?}");
            }
            // A disk of that size with something else on it, and none of that size.
            fs::write(lab.path("dev/sdb"), [0; 8192]).unwrap();
            assert_eq!(lab.fetch(shell, path, program), (Some(NO_PROGRAM.into()), None), "{shell:?}");
            fs::remove_file(lab.path("sys/sdb/size")).unwrap();
            assert_eq!(lab.fetch(shell, path, program), (Some(NO_PROGRAM.into()), None), "{shell:?}");
        }
        let lab = Lab::new(b"\x7fELF for another processor");
        let program = layout::Program::of(b"\x7fELF for another processor");
        assert_eq!(lab.fetch(&["dash"], path, program), (Some(NO_PROGRAM.into()), None));
    }

    #[test]
    fn both_ways_fit_everywhere_that_they_are_written() {
        let program = layout::Program { blocks: 9999, sum: u32::MAX };
        for source in [ProgramSource::Port, ProgramSource::Disk(program)] {
            let text = fetch(source, "serve", 20);
            assert!(!text.contains(['\'', '\n', '%', '\\']), "{text}");
            assert!(text.len() < 1024, "{}: {text}", text.len());
        }
    }
}
