//! A guest as a process: QEMU, console, access, share, session.

pub mod session;

pub mod console;

pub mod qemu;
