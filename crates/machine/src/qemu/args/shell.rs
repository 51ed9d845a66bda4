//! A command line as text that a person can paste into a shell.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt;

/// Quotes arguments for a shell and joins them with spaces.
///
/// Plain words stay as they are; others get single quotes, which every shell has. Control characters and
/// bytes that are not UTF-8 are written as escapes in `$'…'` (bash, zsh, ksh, mksh, busybox): text that is shown on a
/// terminal must not be able to move its cursor.
#[must_use]
pub fn to_shell(args: &[OsString]) -> String {
    let mut out = String::new();
    for (i, arg) in args.iter().enumerate() {
        if i > 0 {
            out.push(' ');
        }
        quote(arg.as_bytes(), &mut out);
    }
    out
}

fn quote(arg: &[u8], out: &mut String) {
    match std::str::from_utf8(arg) {
        Ok(text) if !text.is_empty() && text.chars().all(is_plain) => out.push_str(text),
        Ok(text) if !text.chars().any(is_unprintable) => {
            out.push('\'');
            out.push_str(&text.replace('\'', r"'\''"));
            out.push('\'');
        }
        _ => {
            out.push_str("$'");
            for chunk in arg.utf8_chunks() {
                for c in chunk.valid().chars() {
                    escape(c, out);
                }
                for byte in chunk.invalid() {
                    let _ = write!(out, "\\{byte:03o}");
                }
            }
            out.push('\'');
        }
    }
}

fn escape(c: char, out: &mut String) {
    match c {
        '\\' | '\'' => out.extend(['\\', c]),
        '\n' => out.push_str("\\n"),
        '\t' => out.push_str("\\t"),
        // Three octal digits never swallow a character that follows, `\x` in some shells does.
        c if c.is_ascii_control() => {
            let _ = write!(out, "\\{:03o}", c as u32);
        }
        c if is_unprintable(c) => {
            let mut bytes = [0; 4];
            for byte in c.encode_utf8(&mut bytes).bytes() {
                let _ = write!(out, "\\{byte:03o}");
            }
        }
        c => out.push(c),
    }
}

fn is_plain(c: char) -> bool {
    c.is_ascii_alphanumeric() || "%+,-./:=@_".contains(c)
}

/// Control characters, and the formatting ones that reorder or hide what is beside them.
fn is_unprintable(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}
