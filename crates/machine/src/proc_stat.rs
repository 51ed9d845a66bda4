//! `/proc/PID/stat` of the host's kernel (proc_pid_stat(5)).

use std::str::SplitAsciiWhitespace;

/// The fields behind the process's name, which is in parentheses and may contain some: the first is the state, field 3 of the manual page.
pub(crate) fn behind_name(text: &str) -> Option<SplitAsciiWhitespace<'_>> {
    Some(text.rsplit_once(')')?.1.split_ascii_whitespace())
}
