//! Scripts that a test writes and starts.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

/// Writes an executable file, or puts it in place of the one that is there.
///
/// Who writes it by itself cannot always start it: whatever another thread starts in the meantime has the descriptor
/// until its `execve`, and for so long the kernel refuses to execute what is open for writing
/// (`ETXTBSY`, execve(2)). Here a process of its own writes it, which starts nothing.
///
/// # Panics
/// When it cannot be written.
#[expect(clippy::expect_used, reason = "only tests call it")]
pub fn write_program(path: impl AsRef<Path>, text: impl AsRef<[u8]>) {
    let path = path.as_ref();
    let mut writer = Command::new("sh")
        .args(["-c", r#"rm -f -- "$1" && exec install -m 755 /dev/stdin "$1""#, "sh"])
        .arg(path)
        .stdin(Stdio::piped())
        .spawn()
        .expect("sh");
    writer.stdin.take().expect("its input is a pipe").write_all(text.as_ref()).expect("its input");
    assert!(writer.wait().expect("sh").success(), "cannot write the program {}", path.display());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_can_be_started_whatever_else_is_started() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("program");
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| (0..100).for_each(|_| drop(Command::new("true").status())));
            }
            for n in 0..100 {
                write_program(&path, format!("#!/bin/sh\nexit {}\n", n % 2));
                let ended = Command::new(&path).status().expect("it can be started");
                assert_eq!(ended.code(), Some(n % 2));
            }
        });
    }
}
