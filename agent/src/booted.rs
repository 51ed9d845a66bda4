//! Whether the guest has booted, where the agent is there before that.
//!
//! Every system ends its boot by offering a login, whatever brought it up: then what waits for one is among the processes. A system without
//! any is taken to have booted when nothing is started any more.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use belljar_proto::message::{BOOT_REST, BootSign};

/// Programs that wait for a login, by their names as the kernel has them (`/proc/PID/comm`). A name that systemd gives before it executes the
/// program is in parentheses, and is none of them yet.
const LOGINS: &[&str] =
    &["agetty", "getty", "mingetty", "mgetty", "fgetty", "ngetty", "login", "sddm", "gdm", "lightdm"];
/// Programs that a person is to mend the system with.
const EMERGENCY: &[&str] = &["sulogin", "systemd-sulogin", "systemd-sulogin-shell"];

/// What goes on with a boot beside the login prompt that it has brought up already, by its name, and how long after the last of its programs it is
/// taken to be done: one begins when another has ended. Who waits for a network that does not come is not waited for for ever.
const PROVISIONING: &str = "cloud-init";
const BETWEEN_STAGES: Duration = Duration::from_secs(5);
const PROVISIONED: Duration = Duration::from_secs(120);

/// How soon is looked again, at least and at most.
const SOONEST: Duration = Duration::from_millis(100);
const LATEST: Duration = Duration::from_secs(1);
/// So much longer than a look took is waited before the next, for the guest has its boot to do.
const SHARE: u32 = 20;

/// The end of a boot that is waited for.
pub(crate) struct BootWatch {
    deadline: Instant,
    next: Instant,
    /// The newest process, and since when.
    newest: Option<(String, Instant)>,
    /// When a program waited for a login first.
    login: Option<Instant>,
    /// When cloud-init ran last.
    provisioning: Option<Instant>,
}

impl BootWatch {
    pub(crate) fn new(limit_ms: u32) -> Self {
        let now = Instant::now();
        Self {
            deadline: now + Duration::from_millis(limit_ms.into()),
            next: now,
            newest: None,
            login: None,
            provisioning: None,
        }
    }

    /// When to look again.
    pub(crate) fn next(&self) -> Instant {
        self.next
    }

    /// What there is to say; nothing as long as the guest boots, or has yet to go down (`goes_down`).
    pub(crate) fn look(&mut self, goes_down: bool) -> Option<BootSign> {
        let now = Instant::now();
        if now < self.next {
            return None;
        }
        let sign = if goes_down { None } else { self.sign(Path::new("/proc"), now) };
        let cost = now.elapsed();
        self.next = Instant::now() + (cost * SHARE).clamp(SOONEST, LATEST);
        sign.or_else(|| (now >= self.deadline).then_some(BootSign::Limit))
    }

    fn sign(&mut self, proc: &Path, now: Instant) -> Option<BootSign> {
        let mut login = None;
        for entry in fs::read_dir(proc).ok()?.flatten() {
            if !entry.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit) {
                continue;
            }
            let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            let name = name.trim_end();
            if EMERGENCY.contains(&name) {
                return Some(BootSign::Emergency(name.to_owned()));
            }
            if LOGINS.contains(&name) {
                login = Some(BootSign::Login(name.to_owned()));
            }
            if name == PROVISIONING {
                self.provisioning = Some(now);
            }
        }
        if login.is_some() {
            let since = *self.login.get_or_insert(now);
            let is_done = self.provisioning.is_none_or(|last| now.duration_since(last) >= BETWEEN_STAGES);
            return login.filter(|_| is_done || now.duration_since(since) >= PROVISIONED);
        }
        // The last word is the number of the process that was started last (proc_loadavg(5)).
        let load = fs::read_to_string(proc.join("loadavg")).ok()?;
        let newest = load.split_whitespace().next_back()?;
        match &self.newest {
            Some((before, since)) if before == newest => {
                (now.duration_since(*since) >= BOOT_REST).then_some(BootSign::Rest)
            }
            _ => {
                self.newest = Some((newest.to_owned(), now));
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    /// A directory like `/proc` with processes of these names.
    fn processes(test: &str, names: &[&str], newest: u32) -> PathBuf {
        let root = std::env::temp_dir().join(format!("belljar-booted-{test}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        for (number, name) in (1..).zip(names) {
            fs::create_dir_all(root.join(number.to_string())).unwrap();
            fs::write(root.join(format!("{number}/comm")), format!("{name}\n")).unwrap();
        }
        fs::create_dir_all(root.join("sys/comm")).unwrap();
        fs::write(root.join("loadavg"), format!("0.00 0.01 0.05 1/93 {newest}\n")).unwrap();
        root
    }

    #[test]
    fn a_login_that_waits_ends_the_boot_and_an_emergency_shell_too() {
        let mut watch = BootWatch::new(1000);
        let now = Instant::now();
        let root = processes("login", &["systemd", "kthreadd", "(agetty)", "agetty-not"], 30);
        assert_eq!(watch.sign(&root, now), None, "it is not executed yet");
        let root = processes("login", &["systemd", "agetty"], 31);
        assert_eq!(watch.sign(&root, now), Some(BootSign::Login("agetty".into())));
        let root = processes("login", &["init", "agetty", "sulogin"], 32);
        assert_eq!(watch.sign(&root, now), Some(BootSign::Emergency("sulogin".into())));
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn cloud_init_goes_on_with_the_boot() {
        let mut watch = BootWatch::new(1000);
        let begin = Instant::now();
        let (running, done) = (&["systemd", "cloud-init", "agetty"][..], &["systemd", "agetty"][..]);
        let mut sign = |names, at| watch.sign(&processes("provisioning", names, 50), begin + at);
        let login = Some(BootSign::Login("agetty".into()));
        assert_eq!(sign(running, Duration::ZERO), None);
        assert_eq!(sign(done, BETWEEN_STAGES / 2), None, "its next program may be about to start");
        assert_eq!(sign(running, BETWEEN_STAGES), None);
        assert_eq!(sign(done, 2 * BETWEEN_STAGES), login);
        assert_eq!(sign(running, PROVISIONED), login, "it waits for something that does not come");
        fs::remove_dir_all(processes("provisioning", &[], 50)).unwrap();
    }

    #[test]
    fn a_guest_without_any_login_has_booted_when_nothing_is_started() {
        let mut watch = BootWatch::new(1000);
        let begin = Instant::now();
        let root = processes("rest", &["init", "sh"], 40);
        assert_eq!(watch.sign(&root, begin), None);
        assert_eq!(watch.sign(&root, begin + BOOT_REST / 2), None);
        let root = processes("rest", &["init", "sh"], 41);
        assert_eq!(watch.sign(&root, begin + BOOT_REST), None, "something was started");
        assert_eq!(watch.sign(&root, begin + 2 * BOOT_REST), Some(BootSign::Rest));
        fs::remove_dir_all(root).unwrap();
    }
}
