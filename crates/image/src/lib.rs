//! What a guest boots from: disk images, kernels, initramfs, root directories.
//!
//! Everything here is synchronous, is told every path, never reads the environment, and prints nothing.
//! What it reads may be hostile (an image from the network, a kernel of somebody else's): every read is bounded.
//!
//! - [`disk`]: what an image is, a throw-away layer over it, and the block nodes that QEMU is to open.
//! - [`kernel`]: the kernels installed on this host, what they can do, which of them to take.
//! - [`modules`]: a kernel's modules, in the order in which they must be inserted.
//! - [`vmlinux`]: the kernel proper out of a bzImage, which boots faster.
//! - [`initramfs`]: an initramfs of our own, or an addition to somebody else's.
//! - [`processor`]: what a guest's processor runs.
//! - [`rootdir`]: a host directory that is to be a guest's root.
//! - [`boot`]: the last four put together.
//! - [`grub`]: a disk from which GRUB starts what a guest's own GRUB would start.
//! - [`cache`]: files that the next run can use again.
//! - [`stamp`]: how it is known that such a file is as it was.

pub mod boot;
pub mod cache;
pub mod disk;
pub mod grub;
pub mod initramfs;
pub mod kernel;
pub mod modules;
pub mod processor;
pub mod rootdir;
pub mod seed;
pub mod sparse;
pub mod stamp;
pub mod vmlinux;

mod bounded;
pub use bounded::open as open_without_waiting;
mod decompress;
mod fat;
