//! Loads a kernel that is to be started in the place of the one that runs (`kexec_file_load(2)`), with this program in its initramfs: whatever
//! started the guest at first, the agent comes with it, as by Belljar's way in of that kind ([`crate::beside`]).

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use belljar_proto::initramfs::{InitramfsSpec, build};
use belljar_proto::message::{INIT_AGENT_PATH, InitRoot};
use rustix::fs::{MemfdFlags, Mode, OFlags};
use rustix::io::Errno;

use crate::{sys, text};

/// The first process of an initramfs whose kernel is told of no other.
const INIT: &str = "/init";
/// What the kernel says of whether one is loaded.
const LOADED: &str = "/sys/kernel/kexec_loaded";
/// Where distributions keep the kernel that runs, before and after its release (`uname -r`).
const KERNELS: &[(&str, &str)] =
    &[("/boot/vmlinuz-", ""), ("/boot/vmlinux-", ""), ("/boot/Image-", ""), ("/lib/modules/", "/vmlinuz")];
/// The same of its initramfs.
const INITRAMFSES: &[(&str, &str)] =
    &[("/boot/initrd.img-", ""), ("/boot/initramfs-", ".img"), ("/boot/initrd-", ""), ("/lib/modules/", "/initrd")];

/// Which kernel is to be loaded.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Its file; none is that of the kernel that runs.
    pub(crate) kernel: Option<PathBuf>,
    /// Its initramfs; none is that of the kernel that runs.
    pub(crate) initrd: Option<PathBuf>,
    /// What comes behind the words of the kernel that runs.
    pub(crate) append: Vec<u8>,
}

/// What somebody asks for: `[MARK] [loaded | kernel=FILE initrd=FILE append=WORDS]`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    mark: Vec<u8>,
    /// What is to be loaded; nothing where the test has done that itself.
    pub(crate) wanted: Option<Wanted>,
}

impl Asked {
    /// Reads the words.
    ///
    /// # Errors
    /// Says what there is instead.
    pub(crate) fn read(words: &[&[u8]]) -> Result<Self, String> {
        let mut asked = Self { mark: Vec::new(), wanted: Some(Wanted::default()) };
        let (mut marks, mut told) = (0, false);
        let path = |bytes: &[u8]| Some(PathBuf::from(std::ffi::OsStr::from_bytes(bytes)));
        for word in words {
            let value = |key: &str| word.strip_prefix(key.as_bytes());
            let wanted = asked.wanted.get_or_insert_default();
            if let Some(file) = value("kernel=") {
                (wanted.kernel, told) = (path(file), true);
            } else if let Some(file) = value("initrd=") {
                (wanted.initrd, told) = (path(file), true);
            } else if let Some(words) = value("append=") {
                (wanted.append, told) = (words.to_vec(), true);
            } else if *word != b"loaded" {
                marks += 1;
                asked.mark = word.to_vec();
            }
        }
        let loaded = words.contains(&b"loaded".as_slice());
        if marks > 1 || (loaded && told) {
            return Err("kexec takes a mark with which the test is started again, and either loaded, or kernel=FILE, initrd=FILE and append=WORDS"
                .to_owned());
        }
        asked.wanted = asked.wanted.filter(|_| !loaded);
        Ok(asked)
    }

    /// The line by which it is asked for, once what is wanted has been loaded.
    pub(crate) fn line(&self) -> Vec<u8> {
        let mark = [&b" "[..], &self.mark].concat();
        [&b"kexec"[..], if self.mark.is_empty() { b"" } else { &mark }, b" loaded"].concat()
    }
}

/// Whether a kernel is loaded.
pub(crate) fn is_loaded() -> bool {
    fs::read_to_string(LOADED).is_ok_and(|loaded| loaded.trim_end() == "1")
}

/// Loads a kernel.
///
/// # Errors
/// Why it cannot be, for a person.
pub(crate) fn load(wanted: &Wanted) -> Result<(), String> {
    let release = text::lossy(rustix::system::uname().release().to_bytes());
    let kernel = file_of("kernel", wanted.kernel.as_deref(), KERNELS, &release)?;
    if wanted.kernel.is_some() && wanted.initrd.is_none() {
        return Err("kernel=FILE wants initrd=FILE, the initramfs that goes with it".to_owned());
    }
    let initrd = file_of("initrd", wanted.initrd.as_deref(), INITRAMFSES, &release)?;
    let line = fs::read("/proc/cmdline").map_err(|error| format!("read /proc/cmdline: {}", text::io(&error)))?;
    let (line, init) = kernel_line(&line, &wanted.append);
    let initrd =
        with_agent(&initrd, init).map_err(|error| format!("add the agent to {}: {error}", initrd.display()))?;
    let open = |path: &Path| File::open(path).map_err(|error| format!("open {}: {}", path.display(), text::io(&error)));
    let line = CString::new(line).map_err(|_| "append has a NUL in it".to_owned())?;
    sys::kexec_file_load(open(&kernel)?.as_fd(), initrd.as_fd(), &line)
        .map_err(|errno| format!("load {}: {}{}", kernel.display(), text::errno(errno), hint(errno)))
}

/// Forgets the kernel that was loaded last.
pub(crate) fn unload() {
    sys::kexec_file_unload();
}

fn hint(errno: Errno) -> &'static str {
    match errno {
        Errno::NOSYS => ": the kernel that runs is built without kexec_file_load (CONFIG_KEXEC_FILE)",
        Errno::PERM => {
            ": it takes root, and a kernel that is neither locked down (Secure Boot) nor told not to (sysctl kernel.kexec_load_disabled)"
        }
        Errno::NOEXEC => ": it is no kernel that this one can start",
        Errno::INVAL => ": its words may be too long, or it is no kernel that this one can start",
        Errno::NOMEM => ": the guest has not memory enough for it",
        _ => "",
    }
}

/// The file that is told, or that of the kernel that runs.
fn file_of(key: &str, told: Option<&Path>, places: &[(&str, &str)], release: &str) -> Result<PathBuf, String> {
    if let Some(told) = told {
        return match fs::metadata(told) {
            Ok(file) if file.is_file() => Ok(told.to_owned()),
            Ok(_) => Err(format!("{key}={}: it is no file", told.display())),
            Err(error) => Err(format!("{key}={}: {}", told.display(), text::io(&error))),
        };
    }
    let places: Vec<String> = places.iter().map(|(before, after)| format!("{before}{release}{after}")).collect();
    let found = places.iter().find(|place| fs::metadata(place).is_ok_and(|file| file.is_file()));
    found.map(PathBuf::from).ok_or_else(|| {
        format!("none of {} is there: say which file it is, by kernel=FILE and initrd=FILE", places.join(", "))
    })
}

/// The words for a kernel that comes after one with these words, and the first process of its initramfs. What a boot loader has added for
/// itself goes, as what led to the agent.
fn kernel_line<'a>(running: &'a [u8], append: &'a [u8]) -> (Vec<u8>, &'a str) {
    let words = |line: &'a [u8]| line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    let mut init = INIT;
    let mut line = Vec::new();
    for word in words(running).chain(words(append)) {
        if let Some(told) = word.strip_prefix(b"rdinit=") {
            if told != INIT_AGENT_PATH.as_bytes() {
                init = std::str::from_utf8(told).unwrap_or(INIT);
            }
        } else if !word.starts_with(b"BOOT_IMAGE=") && !word.starts_with(b"initrd=") {
            line.extend_from_slice(word);
            line.push(b' ');
        }
    }
    line.extend_from_slice(format!("rdinit={INIT_AGENT_PATH}").as_bytes());
    (line, init)
}

/// An initramfs behind an archive with this program, in memory.
fn with_agent(initrd: &Path, init: &str) -> io::Result<OwnedFd> {
    let agent = fs::read("/proc/self/exe")?;
    let spec =
        InitramfsSpec { agent: &agent, root: InitRoot::OfGuest { init: init.to_owned() }, modules: &[], alone: false };
    let mut all = File::from(rustix::fs::memfd_create("belljar-initramfs", MemfdFlags::CLOEXEC)?);
    build(&spec, BufWriter::new(&all))?;
    copy_within(File::open(initrd)?, &mut all, most_bytes())?;
    // The kernel takes no file that somebody has open to write to.
    let path = format!("/proc/self/fd/{}", all.as_raw_fd());
    Ok(rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}

/// How large an initramfs may be: it is in memory twice, and once more unpacked.
fn most_bytes() -> u64 {
    let system = rustix::system::sysinfo();
    #[expect(clippy::useless_conversion, reason = "it is no u64 on each processor")]
    let memory = u64::from(system.totalram).saturating_mul(u64::from(system.mem_unit));
    memory / 3
}

/// Copies a file that may be so long; nothing of one that is longer, or that turns out to be.
fn copy_within(from: impl Read, to: &mut impl Write, most: u64) -> io::Result<()> {
    if io::copy(&mut from.take(most + 1), to)? > most {
        return Err(io::Error::other(format!("it is larger than {} MiB, a third of the guest's memory", most >> 20)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(words: &[&str]) -> Result<Asked, String> {
        Asked::read(&words.iter().map(|word| word.as_bytes()).collect::<Vec<_>>())
    }

    #[test]
    fn an_initramfs_has_a_limit() {
        let copied = |bytes: &[u8]| {
            let mut copy = Vec::new();
            copy_within(bytes, &mut copy, 3).map(|()| copy)
        };
        assert_eq!(copied(b"abc").unwrap(), b"abc");
        assert!(copied(b"abcd").unwrap_err().to_string().contains("a third of the guest's memory"));
        assert!(copy_within(io::repeat(7), &mut io::sink(), 1 << 20).is_err());
        assert!(most_bytes() > 1 << 20);
    }

    #[test]
    fn what_is_asked_for_is_read() {
        assert_eq!(asked(&[]).unwrap().line(), b"kexec loaded");
        assert_eq!(asked(&["m", "loaded"]), Ok(Asked { mark: b"m".to_vec(), wanted: None }));
        let all = asked(&["kernel=/k", "m", "initrd=/i", "append=a b"]).unwrap();
        assert_eq!(all.line(), b"kexec m loaded");
        let wanted = Wanted { kernel: Some("/k".into()), initrd: Some("/i".into()), append: b"a b".to_vec() };
        assert_eq!(all.wanted, Some(wanted));
        for words in [&["a", "b"][..], &["loaded", "append=x"]] {
            assert!(asked(words).unwrap_err().contains("either loaded"), "{words:?}");
        }
    }

    #[test]
    fn the_next_kernel_has_the_words_of_this_one_and_the_agent() {
        let (line, init) =
            kernel_line(b"BOOT_IMAGE=/boot/vmlinuz root=/dev/vda1 quiet rdinit=/belljar/agent\n", b"panic=1  x");
        assert_eq!(String::from_utf8(line).unwrap(), "root=/dev/vda1 quiet panic=1 x rdinit=/belljar/agent");
        assert_eq!(init, "/init");
        let (line, init) = kernel_line(b"initrd=\\a rdinit=/sbin/mine", b"");
        assert_eq!((&line[..], init), (&b"rdinit=/belljar/agent"[..], "/sbin/mine"));
    }

    #[test]
    fn an_initramfs_has_the_agent_before_it() {
        let dir = tempfile::tempdir().unwrap();
        let initrd = dir.path().join("initrd");
        fs::write(&initrd, b"the guest's own").unwrap();
        let all = with_agent(&initrd, "/init").unwrap();
        let bytes = fs::read(format!("/proc/self/fd/{}", all.as_raw_fd())).unwrap();
        assert!(bytes.starts_with(b"070701") && bytes.ends_with(b"the guest's own"));
        assert_eq!((bytes.len() - b"the guest's own".len()) % 512, 0);
    }

    #[test]
    fn a_kernel_that_is_not_there_is_told() {
        let none = file_of("kernel", None, &[("/no/such/vmlinuz-", ".x")], "6.1").unwrap_err();
        assert!(none.contains("/no/such/vmlinuz-6.1.x is there") && none.contains("kernel=FILE"), "{none}");
        let gone = file_of("initrd", Some(Path::new("/no/such")), INITRAMFSES, "6.1").unwrap_err();
        assert!(gone.starts_with("initrd=/no/such: ENOENT"), "{gone}");
        assert!(file_of("kernel", Some(Path::new("/proc")), KERNELS, "6.1").unwrap_err().contains("no file"));
        let kernel = Wanted { kernel: Some("/proc/self/exe".into()), ..Wanted::default() };
        assert!(load(&kernel).unwrap_err().contains("wants initrd=FILE"));
    }
}
