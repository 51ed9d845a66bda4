//! The system calls that rustix does not offer. All `unsafe` of the agent is here.
#![expect(unsafe_code, reason = "fork, exec and signal handling have no safe interface")]

use std::ffi::{CStr, CString, c_char, c_int};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicPtr, AtomicU8, Ordering};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::Pid;
use rustix::thread::UnshareFlags;

/// The last system call's error.
fn errno() -> Errno {
    std::io::Error::last_os_error().raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error)
}

fn check(result: i32) -> Result<i32, Errno> {
    if result < 0 { Err(errno()) } else { Ok(result) }
}

/// Makes a child process; `None` in the child.
pub(crate) fn fork() -> Result<Option<Pid>, Errno> {
    // SAFETY: the agent has one thread, so the child has all that the parent had.
    let pid = check(unsafe { libc::fork() })?;
    Ok(Pid::from_raw(pid))
}

/// Ends the process at once, without the parent's exit handlers.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: no pointers; nothing of the parent is to be tidied.
    unsafe { libc::_exit(code) }
}

/// Strings as the kernel wants them for `execve`.
pub(crate) struct Strings<'a> {
    pointers: Vec<*const c_char>,
    // The pointers live as long as what they point to.
    _strings: std::marker::PhantomData<&'a CStr>,
}

impl<'a> Strings<'a> {
    pub(crate) fn new(strings: impl IntoIterator<Item = &'a CString>) -> Self {
        let mut pointers: Vec<_> = strings.into_iter().map(|string| string.as_ptr()).collect();
        pointers.push(std::ptr::null());
        Self { pointers, _strings: std::marker::PhantomData }
    }
}

/// Gives the process a mount namespace of its own.
pub(crate) fn own_mount_namespace() -> Result<(), Errno> {
    // SAFETY: the agent has one thread, which shares neither descriptors nor its directories with another process.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }
}

/// These bytes as strings for the kernel, without any that has a NUL in it.
pub(crate) fn c_strings(list: impl IntoIterator<Item = Vec<u8>>) -> Vec<CString> {
    list.into_iter().filter_map(|string| CString::new(string).ok()).collect()
}

/// This process's own environment, to be handed on.
pub(crate) fn own_environment() -> Vec<CString> {
    use std::os::unix::ffi::OsStringExt;
    c_strings(std::env::vars_os().map(|(key, value)| [key.into_vec(), value.into_vec()].join(&b'=')))
}

/// Becomes another program; comes back only with an error.
pub(crate) fn execve(path: &CStr, argv: &Strings<'_>, env: &Strings<'_>) -> Errno {
    // SAFETY: both lists end with a null pointer, and their strings are alive by `Strings`'s lifetime.
    unsafe { libc::execve(path.as_ptr(), argv.pointers.as_ptr(), env.pointers.as_ptr()) };
    errno()
}

fn set_of(signals: &[i32]) -> libc::sigset_t {
    // SAFETY: a signal set is plain data, and `sigemptyset` makes it a valid one.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        for &signal in signals {
            libc::sigaddset(&mut set, signal);
        }
        set
    }
}

/// Blocks these signals and gives a descriptor from which they can be read.
pub(crate) fn signal_fd(signals: &[i32]) -> Result<OwnedFd, Errno> {
    let set = set_of(signals);
    // SAFETY: `set` is a valid set; the new descriptor is nobody else's.
    unsafe {
        check(libc::sigprocmask(libc::SIG_SETMASK, &set, std::ptr::null_mut()))?;
        let fd = check(libc::signalfd(-1, &set, libc::SFD_NONBLOCK | libc::SFD_CLOEXEC))?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// The next signal from [`signal_fd`], if one waits.
pub(crate) fn next_signal(fd: BorrowedFd<'_>) -> Option<i32> {
    // `struct signalfd_siginfo` begins with the number; it is 128 bytes by its interface.
    let mut info = [0; 128];
    let read = rustix::io::read(fd, &mut info).ok()?;
    (read == info.len()).then(|| i32::from_ne_bytes(std::array::from_fn(|i| info[i])))
}

fn dispose(signal: i32, handler: libc::sighandler_t) {
    // SAFETY: only SIG_DFL and SIG_IGN are given, no function is ever called.
    unsafe { libc::signal(signal, handler) };
}

/// For the agent: every signal as a new process has it, but a closed pipe is an error and no death.
pub(crate) fn own_signals() {
    for signal in 1..=64_i64 {
        // SAFETY: the kernel's `struct sigaction` in zeros: the default action, no flags, an empty mask of 8 bytes. By the system
        // call itself, as the C library keeps two signals to itself, which a parent may have left ignored all the same.
        unsafe {
            let default = [0_u64; 8];
            let none = std::ptr::null_mut::<u64>();
            libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), none, 8_usize);
        }
    }
    dispose(libc::SIGPIPE, libc::SIG_IGN);
}

/// For a command: every signal as a new process has it.
pub(crate) fn command_signals() {
    dispose(libc::SIGPIPE, libc::SIG_DFL);
    let none = set_of(&[]);
    // SAFETY: `none` is a valid set.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut()) };
}

/// Sends a signal; a negative process id means a process group.
pub(crate) fn kill(pid: i32, signal: i32) -> Result<(), Errno> {
    // SAFETY: no pointers.
    check(unsafe { libc::kill(pid, signal) }).map(drop)
}

/// One descriptor to wait for.
pub(crate) fn poll_fd(fd: &impl AsRawFd, events: i16) -> libc::pollfd {
    libc::pollfd { fd: fd.as_raw_fd(), events, revents: 0 }
}

/// Waits until something happens or the time is over.
pub(crate) fn poll(fds: &mut [libc::pollfd], timeout: Option<Duration>) {
    let timeout = timeout.map_or(-1, |timeout| {
        // Rounded up, lest the last millisecond be spent in a busy loop.
        i32::try_from(timeout.as_micros().div_ceil(1000)).unwrap_or(i32::MAX)
    });
    // SAFETY: the pointer and the count are those of one slice.
    let result = unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, timeout) };
    if result < 0 {
        for fd in fds {
            fd.revents = 0;
        }
    }
}

/// Takes over a descriptor that the starter of this process left open.
pub(crate) fn inherit(fd: RawFd) -> Result<OwnedFd, Errno> {
    // SAFETY: no pointers; fails where the descriptor is not open.
    check(unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) })?;
    // SAFETY: it is open, and only the caller, who got the number from the command line, takes it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Leaves a descriptor open in the program that this process becomes.
pub(crate) fn pass_on(fd: RawFd) -> Result<(), Errno> {
    // SAFETY: no pointers; fails where the descriptor is not open.
    check(unsafe { libc::fcntl(fd, libc::F_SETFD, 0) }).map(drop)
}

/// Closes every descriptor above standard error, but for one.
pub(crate) fn close_others(keep: RawFd) {
    close_all_but(&[keep]);
}

/// Closes every descriptor above standard error, but for some. Only for a process that is about to have nothing else.
pub(crate) fn close_all_but(keep: &[RawFd]) {
    let Ok(list) = std::fs::read_dir("/proc/self/fd") else {
        return;
    };
    let open: Vec<RawFd> = list
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|fd| *fd > 2 && !keep.contains(fd))
        .collect();
    for fd in open {
        // SAFETY: called before the agent has opened anything of its own, or by a child that uses nothing of its parent's; the directory's
        // descriptor is closed already, and closing it again does nothing.
        unsafe { libc::close(fd) };
    }
}

/// What chip a serial port has: 0 where there is none behind the device node.
pub(crate) fn serial_type(fd: BorrowedFd<'_>) -> Result<i32, Errno> {
    // `struct serial_struct` begins with the type and is smaller than this.
    let mut info = [0_i32; 64];
    // SAFETY: the kernel writes a `struct serial_struct`, for which there is room.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCGSERIAL as _, info.as_mut_ptr()) })?;
    Ok(info[0])
}

/// What is behind a loop device: the numbers of the file system that has it and of the block device that it is, which is 0, or the first one again, where it is a
/// file.
pub(crate) fn loop_status(device: BorrowedFd<'_>) -> Result<(u64, u64), Errno> {
    const LOOP_GET_STATUS64: u64 = 0x4c05;
    // `struct loop_info64` begins with the file system's number, the file's and the device's, and is smaller than this.
    let mut info = [0_u64; 64];
    // SAFETY: the kernel writes a `struct loop_info64`, for which there is room.
    check(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_GET_STATUS64 as _, info.as_mut_ptr()) })?;
    Ok((info[0], info[2]))
}

/// Mixes bytes into the kernel's random numbers, counts them as random, and has the generator start from them at once.
pub(crate) fn reseed(seed: &[u8; 32]) -> Result<(), Errno> {
    const RNDADDENTROPY: u64 = 0x4008_5203;
    const RNDRESEEDCRNG: u64 = 0x5207;
    /// `struct rand_pool_info` with its bytes.
    #[repr(C)]
    struct Pool {
        entropy_bits: c_int,
        size: c_int,
        bytes: [u8; 32],
    }
    let device = rustix::fs::open("/dev/urandom", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    let pool = Pool { entropy_bits: 8 * 32, size: 32, bytes: *seed };
    // SAFETY: the kernel reads a `struct rand_pool_info` and as many bytes behind it as it says.
    check(unsafe { libc::ioctl(device.as_raw_fd(), RNDADDENTROPY as _, &raw const pool) })?;
    // SAFETY: takes no argument. Kernels before 4.18 do not know it, and draw from the pool sooner by themselves.
    check(unsafe { libc::ioctl(device.as_raw_fd(), RNDRESEEDCRNG as _, 0) }).map(drop)
}

/// Sets the hardware address of a network card.
pub(crate) fn set_mac(card: &[u8], mac: &[u8; 6]) -> Result<(), Errno> {
    const ARPHRD_ETHER: libc::sa_family_t = 1;
    let mut request = card_request(card)?;
    // SAFETY: `ifreq` is plain data, of which this is the member that the request is about.
    let address = unsafe { &mut request.ifr_ifru.ifru_hwaddr };
    address.sa_family = ARPHRD_ETHER;
    for (to, from) in address.sa_data.iter_mut().zip(mac) {
        *to = *from as c_char;
    }
    ask_card(libc::SIOCSIFHWADDR, &mut request)
}

/// The hardware address of a network card.
pub(crate) fn mac(card: &[u8]) -> Result<[u8; 6], Errno> {
    let mut request = card_request(card)?;
    ask_card(libc::SIOCGIFHWADDR, &mut request)?;
    // SAFETY: `ifreq` is plain data, of which the kernel has filled in this member.
    let address = unsafe { &request.ifr_ifru.ifru_hwaddr };
    let mut mac = [0; 6];
    for (to, from) in mac.iter_mut().zip(&address.sa_data) {
        *to = *from as u8;
    }
    Ok(mac)
}

/// Whether a network card has an IPv4 address (netdevice(7)).
pub(crate) fn has_ipv4(card: &[u8]) -> Result<bool, Errno> {
    match ask_card(libc::SIOCGIFADDR, &mut card_request(card)?) {
        Ok(()) => Ok(true),
        Err(Errno::ADDRNOTAVAIL) => Ok(false),
        Err(errno) => Err(errno),
    }
}

fn card_request(card: &[u8]) -> Result<libc::ifreq, Errno> {
    if card.len() >= libc::IFNAMSIZ {
        return Err(Errno::INVAL);
    }
    // SAFETY: `ifreq` is plain data, for which zeros are a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(card) {
        *to = *from as c_char;
    }
    Ok(request)
}

fn ask_card(what: libc::c_ulong, request: &mut libc::ifreq) -> Result<(), Errno> {
    // SAFETY: the kernel reads and writes `ifreq`, which lives across the call. The socket is ours.
    unsafe {
        let socket = check(libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0))?;
        let socket = OwnedFd::from_raw_fd(socket);
        check(libc::ioctl(socket.as_raw_fd(), what as _, request)).map(drop)
    }
}

/// Has the kernel pass on to this socket only what a classic BPF program lets through (socket(7), `SO_ATTACH_FILTER`).
pub(crate) fn attach_filter(socket: &OwnedFd, steps: &[libc::sock_filter]) -> Result<(), Errno> {
    let length = u16::try_from(steps.len()).map_err(|_| Errno::INVAL)?;
    let program = libc::sock_fprog { len: length, filter: steps.as_ptr().cast_mut() };
    let size = libc::socklen_t::try_from(size_of::<libc::sock_fprog>()).unwrap_or(0);
    // SAFETY: the kernel reads the program, of which the pointer and the length are those of one slice, and keeps a copy.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            size,
        )
    };
    check(done).map(drop)
}

/// Brings the loopback interface up.
pub(crate) fn loopback_up() -> Result<(), Errno> {
    // SAFETY: `ifreq` is plain data; the kernel reads it, and it lives across both calls. The socket is ours.
    unsafe {
        let socket = check(libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0))?;
        let socket = OwnedFd::from_raw_fd(socket);
        let mut request: libc::ifreq = std::mem::zeroed();
        request.ifr_name[0] = b'l' as c_char;
        request.ifr_name[1] = b'o' as c_char;
        request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as i16;
        check(libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &request))?;
    }
    Ok(())
}

/// Where the kernel finds the process's first argument.
/// What its first byte was before [`be_spared`].
static FIRST_BYTE: AtomicU8 = AtomicU8::new(b'b');
static FIRST_ARGUMENT: AtomicPtr<c_char> = AtomicPtr::new(std::ptr::null_mut());

/// Remembers where the first argument is.
#[cfg(not(test))]
pub(crate) fn remember_arguments(argv: *const *const c_char) {
    // SAFETY: the C library gives an array that ends with a null pointer.
    FIRST_ARGUMENT.store(unsafe { *argv }.cast_mut(), Ordering::Relaxed);
}

/// Has systemd spare this process when it ends all others (<https://systemd.io/ROOT_STORAGE_DAEMONS>), or not any more.
pub(crate) fn be_spared(spared: bool) {
    let first = FIRST_ARGUMENT.load(Ordering::Relaxed);
    // SAFETY: the argument is a string of this process's own, which nobody else looks at; its first byte is its end at most, and that stays.
    unsafe {
        if first.is_null() || *first == 0 {
            return;
        }
        let byte = first.cast::<u8>();
        if spared && *byte != b'@' {
            FIRST_BYTE.store(byte.read(), Ordering::Relaxed);
            byte.write(b'@');
        } else if !spared && *byte == b'@' {
            byte.write(FIRST_BYTE.load(Ordering::Relaxed));
        }
    }
}

/// Flag of `kexec_file_load(2)` (the kernel's `include/uapi/linux/kexec.h`).
const KEXEC_FILE_UNLOAD: libc::c_ulong = 1;

/// Number of `kexec_file_load(2)`, on processors on which the kernel has it.
const KEXEC_FILE_LOAD: Option<libc::c_long> = if cfg!(target_arch = "x86_64") {
    Some(320)
} else if cfg!(target_arch = "aarch64") || cfg!(target_arch = "riscv64") {
    Some(294)
} else if cfg!(target_arch = "powerpc64") {
    Some(382)
} else if cfg!(target_arch = "s390x") {
    Some(381)
} else {
    None
};

/// Loads a kernel, its initramfs and its words, to be started by `reboot(2)`.
pub(crate) fn kexec_file_load(kernel: BorrowedFd<'_>, initrd: BorrowedFd<'_>, line: &CStr) -> Result<(), Errno> {
    let number = KEXEC_FILE_LOAD.ok_or(Errno::NOSYS)?;
    let words = line.to_bytes_with_nul();
    // SAFETY: the descriptors are open, and the words end with the NUL that is counted with them; the kernel only reads.
    let done =
        unsafe { libc::syscall(number, kernel.as_raw_fd(), initrd.as_raw_fd(), words.len(), words.as_ptr(), 0_usize) };
    check(c_int::try_from(done).unwrap_or(-1)).map(drop)
}

/// Forgets the kernel that was loaded, if one was.
pub(crate) fn kexec_file_unload() {
    if let Some(number) = KEXEC_FILE_LOAD {
        // SAFETY: nothing is pointed to.
        unsafe { libc::syscall(number, -1, -1, 0_usize, std::ptr::null::<u8>(), KEXEC_FILE_UNLOAD) };
    }
}

/// `struct timex` of `adjtimex(2)` (the kernel's `include/uapi/linux/timex.h`), in which a `long` is as wide as the kernel's on each processor.
#[repr(C)]
struct Timex {
    modes: libc::c_uint,
    offset: libc::c_long,
    frequency: libc::c_long,
    errors: [libc::c_long; 2],
    status: c_int,
    constants: [libc::c_long; 3],
    time: [libc::c_long; 2],
    tick: libc::c_long,
    rest: [libc::c_long; 24],
}

/// Has the clock go faster by so many millionths, or slower: by the length of a tick, and what is left of it by the frequency.
pub(crate) fn set_clock_rate(millionths: i32) -> Result<(), Errno> {
    const FREQUENCY_AND_TICK: libc::c_uint = 0x0002 | 0x4000;
    // Microseconds of a tick of `USER_HZ`, each of which is a hundred millionths.
    const TICK: i32 = 10_000;
    const A_TICK: i32 = 100;
    let ticks = millionths.div_euclid(A_TICK);
    let mut timex = Timex {
        modes: FREQUENCY_AND_TICK,
        offset: 0,
        frequency: libc::c_long::from(millionths.rem_euclid(A_TICK) << 16),
        errors: [0; 2],
        status: 0,
        constants: [0; 3],
        time: [0; 2],
        tick: libc::c_long::from(TICK + ticks),
        rest: [0; 24],
    };
    // SAFETY: it is the kernel's structure, with room behind it for all that comes after the tick.
    let state = unsafe { libc::syscall(libc::SYS_adjtimex, &raw mut timex) };
    check(c_int::try_from(state).unwrap_or(-1)).map(drop)
}

/// Makes this process known by a name, deaf to all signals that can be blocked, and spared by systemd when it ends the system
/// (<https://systemd.io/ROOT_STORAGE_DAEMONS>: a first argument that begins with `@`). What it writes back needs no writing back to get memory.
pub(crate) fn be_a_relay(name: &str) {
    const PR_SET_IO_FLUSHER: c_int = 57;
    if let Ok(name) = CString::new(name) {
        let _ = rustix::thread::set_name(&name);
    }
    let first = FIRST_ARGUMENT.load(Ordering::Relaxed);
    // SAFETY: the argument is a string of this process's own, which nobody else looks at, and no byte is written behind its end. A signal
    // set is plain data; no pointer is kept.
    unsafe {
        if !first.is_null() {
            let room = CStr::from_ptr(first).count_bytes();
            let name = std::iter::once(&b'@').chain(name.as_bytes()).chain(std::iter::repeat(&0));
            for (at, byte) in name.take(room).enumerate() {
                first.cast::<u8>().add(at).write(*byte);
            }
        }
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&mut all);
        libc::sigprocmask(libc::SIG_SETMASK, &all, std::ptr::null_mut());
        libc::prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0);
    }
}
