//! The kernel's list of mounts, which both sides go by: the host for what is hidden, the agent for what a test has left mounted.

/// One mount, as far as it matters where files are seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Number of its file system, such as `8:1`.
    pub device: String,
    /// What of the file system is mounted.
    pub root: Vec<u8>,
    /// Where it is mounted.
    pub at: Vec<u8>,
    /// The file system's type.
    pub kind: String,
}

/// Reads `mountinfo` (proc_pid_mountinfo(5)); a line that is none is passed over.
#[must_use]
pub fn parse(list: &[u8]) -> Vec<Mount> {
    let line = |line: &[u8]| {
        let mut words = line.split(|byte| *byte == b' ').filter(|word| !word.is_empty());
        let text = |word: &[u8]| String::from_utf8_lossy(word).into_owned();
        let device = text(words.nth(2)?);
        let (root, at) = (unescape(words.next()?), unescape(words.next()?));
        words.find(|word| *word == b"-")?;
        Some(Mount { device, root, at, kind: text(words.next()?) })
    };
    list.split(|byte| *byte == b'\n').filter_map(line).collect()
}

/// Undoes `\040` and its like.
fn unescape(word: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = word;
    while let Some((&first, more)) = rest.split_first() {
        let octal = more.get(..3).filter(|_| first == b'\\').and_then(|digits| core::str::from_utf8(digits).ok());
        let byte = octal.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        bytes.push(byte.unwrap_or(first));
        rest = if byte.is_some() { &more[3..] } else { more };
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn optional_fields_escapes_and_what_is_no_line() {
        let list = b"36 35 98:0 /a\\040b /mnt\\134x rw,noatime master:1 shared:2 - ext3 /dev/root rw\n\xff\n1 2 3 - x\n37 36 0:5 / /\\9 rw - proc  rw\n";
        let mount = |device: &str, root: &[u8], at: &[u8], kind: &str| Mount {
            device: device.into(),
            root: root.into(),
            at: at.into(),
            kind: kind.into(),
        };
        assert_eq!(parse(list), [mount("98:0", b"/a b", b"/mnt\\x", "ext3"), mount("0:5", b"/", b"/\\9", "proc")]);
    }

    proptest::proptest! {
        #[test]
        fn nothing_makes_it_panic(list: Vec<u8>) {
            let _ = parse(&list);
        }
    }
}
