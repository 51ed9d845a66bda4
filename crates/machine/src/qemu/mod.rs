//! QEMU as a process: its command line, its control channel, its life and death, and what the
//! one that is installed can do.
//!
//! - [`args`]: a [`MachineConfig`](args::MachineConfig) becomes a command line; pure.
//! - [`descriptors`]: what QEMU inherits, under which numbers.
//! - [`firmware`]: UEFI that is installed.
//! - [`platform`]: what differs between processors, in one table.
//! - [`qmp`]: the control channel, over a socket that QEMU inherits.
//! - [`process`]: starting, watching, measuring and killing.
//! - [`sandbox`]: what the process gives up before it becomes QEMU.
//! - [`probe`]: which QEMU, what it has, and whether KVM really runs a guest.

pub mod args;
pub mod descriptors;
pub mod firmware;
pub mod platform;
pub mod probe;
pub mod process;
pub mod qmp;
pub mod sandbox;

pub use self::args::Accel;
