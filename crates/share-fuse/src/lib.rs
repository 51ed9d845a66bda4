//! A directory of the host's for a guest, served to the guest's own kernel over the FUSE protocol.
//!
//! The guest's kernel asks by `/dev/fuse`; a relay in the guest passes the requests through a port of the machine, and [`serve`] reads
//! them from the socket at the port's other end. It needs no device but that port, and of the kernel nothing but `fuse`.
//!
//! The guest is not trusted. What it can do is what the process that serves may do in the directory, and less:
//!
//! | asked for | answer |
//! |---|---|
//! | a name that is empty, `.`, `..` or has a `/` | `EINVAL`: a name leads one step down, never up |
//! | what a symbolic link leads to | the guest follows links itself, among its own files; nothing here ever does |
//! | another owner | success, without effect: files are those of the user who serves |
//! | the set-uid bit; the set-gid bit of a file that is made; a device node | `EPERM` |
//! | the set-gid bit by `chmod(2)` | success; it stays where it is and comes nowhere |
//! | extended attributes but `user.*` | `EOPNOTSUPP` |
//! | a FIFO, a socket or a device of the host's opened | `ENXIO`: the guest's kernel has its own under these names, and never asks |
//! | anything in a share that is for reading only | `EROFS` |
//! | what no kernel sends | the end of the conversation |
//!
//! Files are held by descriptors and not by names (`nodes`), so one that was removed or replaced while it was open is still the same
//! file, and what is renamed on the host leads nowhere else. A directory that the host moves out of the share stays reachable to a guest that had
//! found it before, and nothing beside it does.
//!
//! One thread serves one request after another: the guest has few processors, and a request takes the host microseconds.

pub mod fuzz;
mod nodes;
mod requests;
mod server;
mod stream;
#[cfg(test)]
mod tests;
mod wire;

pub use server::{Answer, Server, Use};
pub use stream::{ServeError, serve};
pub use wire::{MAX_REQUEST, Malformed};
