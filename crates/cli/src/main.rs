//! Functional tests of operating-system features, each in its own throw-away machine.

fn main() {}
