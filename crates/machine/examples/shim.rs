//! The program that the tests give to [`belljar_machine::qemu::sandbox::Shim`], as Belljar is in real life.

use std::process::ExitCode;

use belljar_machine::qemu::sandbox::shim_main;

#[expect(clippy::print_stderr, reason = "a program's edge")]
fn main() -> ExitCode {
    let Err(error) = shim_main(std::env::args_os().skip(1));
    eprintln!("shim: {error}");
    ExitCode::from(125)
}
