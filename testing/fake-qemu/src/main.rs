//! A QEMU for tests: real QMP and a serial line from a script.

fn main() {}
