//! Against the real programs: `qemu-img`, `qemu-system-x86_64` and, where asked for with `--ignored`, the kernels
//! installed on this host.

mod disk;
mod kernels;
