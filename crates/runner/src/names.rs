//! Names of files that are made of names that others chose.

/// The id of a unit, or the name of a suite, as one file name; two of them never come to the same.
pub(crate) fn safe_name(id: &str) -> String {
    const LONGEST: usize = 120;
    let plain = |c: char| c.is_ascii_alphanumeric() || "._@+-:".contains(c);
    let safe: String = id
        .chars()
        .map(|c| {
            if c == '/' {
                '.'
            } else if plain(c) {
                c
            } else {
                '_'
            }
        })
        .collect();
    let suite = id.split('/').next().unwrap_or_default();
    let changed = safe.len() > LONGEST
        || suite.contains('.')
        || id.chars().any(|c| c != '/' && !plain(c))
        || id.matches('/').count() > 1;
    if !changed {
        return safe;
    }
    // Two ids must not come to the same name.
    format!("{}-{:016x}", belljar_model::test_run::keep_start(&safe, LONGEST), hash(id.as_bytes()))
}

/// Tells names apart that would come to the same file name (FNV-1a, 64 bits); nobody gains by a collision.
pub(crate) fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_files_are_plain_and_apart() {
        assert_eq!(safe_name("storage/ext4.sh@debian"), "storage.ext4.sh@debian");
        let odd = safe_name("s/a b@g");
        assert!(odd.starts_with("s.a_b@g-"), "{odd}");
        assert_ne!(odd, safe_name("s/a_b@g"));
        assert_ne!(odd, safe_name("s/a\u{e9}b@g"));
        assert_ne!(safe_name("s/a.b@g"), safe_name("s/a/b@g"));
        assert_ne!(safe_name("s.a/b@g"), safe_name("s/a.b@g"));
        assert!(safe_name(&format!("s/{}@g", "x".repeat(5000))).len() < 200);
        assert!(!safe_name("../../etc@g").contains('/'));
    }
}
