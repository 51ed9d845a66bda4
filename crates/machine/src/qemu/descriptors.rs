//! The descriptors that QEMU inherits beside its standard streams: which number each has there, and what it is for.
//!
//! ```text
//! 3 console   4 agent's port   5 second serial port   6 control channel   7 … all others, in the order in which they were added
//! ```
//!
//! Nobody else writes such a number. A command line is made before anything is started, so it names descriptors that QEMU will have.

use std::{
    fmt,
    fs::File,
    io,
    os::fd::{AsFd, OwnedFd},
};

/// The first number after the standard streams.
const FIRST: i32 = 3;

/// A descriptor, by its number in QEMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fd(i32);

impl fmt::Display for Fd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Fd {
    /// Its file, where QEMU takes nothing but a path. The file is opened anew then.
    #[must_use]
    pub fn path(self) -> String {
        format!("/proc/self/fd/{self}")
    }

    /// The stream of a frozen machine's state that is read from it.
    #[must_use]
    pub fn uri(self) -> String {
        format!("fd:{self}")
    }
}

/// A line of a machine's, whose other end is Belljar's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// The first serial port.
    Console,
    /// The agent's virtio port.
    Agent,
    /// The second serial port.
    Serial1,
    /// QMP.
    Control,
}

impl Line {
    /// How many there are.
    const COUNT: usize = Self::Control as usize + 1;

    /// Its descriptor.
    #[must_use]
    pub const fn fd(self) -> Fd {
        Fd(FIRST + self as i32)
    }
}

/// What a descriptor is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The guest's memory.
    Memory,
    /// The state of a frozen machine's devices.
    State,
    /// What takes the guest's writes to a volume.
    Volume,
    /// What a volume lies over; nobody writes to it.
    Below,
    /// A directory of the host's.
    Directory,
    /// A share's port, whose other end a server of Belljar's has.
    Port,
    /// The line to the server of a lab disk.
    Lab,
    /// The line to the guest's TPM.
    Tpm,
    /// The line to the server of a share.
    Server,
    /// The other end of the virtio port from which a guest reads the agent.
    Program,
    /// Nothing but to be there as long as QEMU is: what keeps directories as they are seen.
    View,
}

/// A descriptor that QEMU opens as `/dev/fdset/SET`, where it is to take it as a file's name. A set may hold several, one for each
/// access mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FdSet {
    /// The descriptor.
    pub fd: Fd,
    /// The set's number.
    pub set: u32,
}

impl FdSet {
    /// The name under which QEMU opens it.
    #[must_use]
    pub fn path(self) -> String {
        format!("/dev/fdset/{}", self.set)
    }
}

/// What is handed over to QEMU beside its lines.
#[derive(Debug, Default)]
pub struct Descriptors {
    list: Vec<Descriptor>,
}

#[derive(Debug)]
struct Descriptor {
    purpose: Purpose,
    fd: OwnedFd,
    /// The set that it is in, if it is in one.
    set: Option<u32>,
}

impl Descriptors {
    /// Hands a descriptor over.
    pub fn add(&mut self, purpose: Purpose, fd: impl Into<OwnedFd>) -> Fd {
        self.push(purpose, fd.into(), None)
    }

    /// Hands a descriptor over, in a set of its own.
    pub fn add_set(&mut self, purpose: Purpose, fd: impl Into<OwnedFd>) -> FdSet {
        let set = (1..).nth(self.sets().len()).unwrap_or(1);
        FdSet { fd: self.push(purpose, fd.into(), Some(set)), set }
    }

    fn push(&mut self, purpose: Purpose, fd: OwnedFd, set: Option<u32>) -> Fd {
        self.list.push(Descriptor { purpose, fd, set });
        Fd(numbers().nth(self.list.len() - 1).unwrap_or(i32::MAX))
    }

    /// The sets.
    #[must_use]
    pub fn sets(&self) -> Vec<FdSet> {
        numbers()
            .zip(&self.list)
            .filter_map(|(n, descriptor)| Some(FdSet { fd: Fd(n), set: descriptor.set? }))
            .collect()
    }

    /// The files that the guest writes to, to be looked at while it runs.
    ///
    /// # Errors
    /// Where there is no further descriptor to be had.
    pub fn written(&self) -> io::Result<Vec<File>> {
        let written = self.list.iter().filter(|descriptor| descriptor.purpose == Purpose::Volume);
        written.map(|descriptor| Ok(descriptor.fd.as_fd().try_clone_to_owned()?.into())).collect()
    }

    /// All of them under their numbers, with QEMU's ends of the lines that its machine has.
    pub(super) fn with_lines(self, ends: impl IntoIterator<Item = (Line, OwnedFd)>) -> Vec<(i32, OwnedFd)> {
        let lines = ends.into_iter().map(|(line, end)| (line.fd().0, end));
        lines.chain(self.without_lines()).collect()
    }

    /// All of them under their numbers.
    pub(super) fn without_lines(self) -> impl Iterator<Item = (i32, OwnedFd)> {
        numbers().zip(self.list).map(|(n, descriptor)| (n, descriptor.fd))
    }
}

/// The numbers after those of the lines.
fn numbers() -> impl Iterator<Item = i32> {
    (FIRST..).skip(Line::COUNT)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> File {
        tempfile::tempfile().unwrap()
    }

    #[test]
    fn each_has_a_number_of_its_own() {
        let mut descriptors = Descriptors::default();
        let view = descriptors.add(Purpose::Directory, file());
        let disk = descriptors.add_set(Purpose::Volume, file());
        let below = descriptors.add_set(Purpose::Below, file());
        let ram = descriptors.add(Purpose::Memory, file());
        assert_eq!([view, disk.fd, below.fd, ram].map(|fd| fd.to_string()), ["7", "8", "9", "10"]);
        assert_eq!((disk.set, below.set), (1, 2));
        assert_eq!(descriptors.sets(), [disk, below]);
        assert_eq!((ram.path(), ram.uri()), ("/proc/self/fd/10".to_owned(), "fd:10".to_owned()));
        assert_eq!(descriptors.written().unwrap().len(), 1, "the guest writes to one of them");

        let lines = [Line::Console, Line::Agent, Line::Serial1, Line::Control];
        let ends = lines.map(|line| (line, file().into()));
        let numbers: Vec<i32> = descriptors.with_lines(ends).into_iter().map(|(number, _)| number).collect();
        assert_eq!(numbers, [3, 4, 5, 6, 7, 8, 9, 10]);
        assert_eq!(lines.map(|line| line.fd().to_string()), ["3", "4", "5", "6"]);
    }
}
