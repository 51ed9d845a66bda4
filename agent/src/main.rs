//! The static program that Belljar runs inside a guest.

fn main() {}
