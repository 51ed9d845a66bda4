//! A guest as a process: QEMU, console, access, share, session.
