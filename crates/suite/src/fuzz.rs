//! Bodies of the fuzz targets in `fuzz/`: any bytes, and what must hold of them. The property tests run them too, so that they
//! are run where there is no fuzzer.

use std::path::Path;

use crate::{config::Config, filter::Filter, header};

/// A `belljar.toml`: what is refused is refused with a reason.
pub fn config(data: &[u8]) {
    if let Err(wrong) = Config::parse("/fuzz/belljar.toml", &String::from_utf8_lossy(data)) {
        assert!(!wrong.to_string().is_empty());
    }
}

/// The first bytes of a test file.
pub fn header(data: &[u8]) {
    match header::read(Path::new("t"), Path::new("/fuzz"), data) {
        Ok(_) => {}
        Err(wrong) => assert!(!wrong.to_string().is_empty()),
    }
}

/// A filter: what is written is read back as the same.
pub fn filter(data: &[u8]) {
    match String::from_utf8_lossy(data).parse::<Filter>() {
        Ok(filter) => assert_eq!(filter.to_string().parse::<Filter>().as_ref(), Ok(&filter)),
        Err(wrong) => assert!(!wrong.to_string().is_empty()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    const WORDS: &str = "(\\[\\[suites\\]\\]\n|\\[guests\\.[a-z]\\]\n|\\[profile\\.[a-z]{1,3}\\]\n|\\[groups\\.a\\]\n|name = |tests = |guests = |timeout = |retries = |disks = |filter = |image = |env = |\"[a-z*/.@() ]{0,8}\"\n?|\\[|\\]|\\{|\\}|, |size = |[0-9]{1,12}\n|true\n|# belljar: |\n|\\PC{0,5}){0,14}";

    proptest! {
        #[test]
        fn config(text in WORDS) {
            super::config(text.as_bytes());
        }

        #[test]
        fn header(text in WORDS) {
            super::header(text.as_bytes());
        }

        #[test]
        fn any_bytes(data in proptest::collection::vec(any::<u8>(), 0..300)) {
            super::config(&data);
            super::header(&data);
            super::filter(&data);
        }
    }
}
