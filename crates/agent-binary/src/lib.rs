//! The agent as a static program, embedded.
//!
//! `build.rs` builds `agent` with a cargo of its own, so that one `belljar` file holds all, and `cargo build` and `cargo install` need no
//! further steps. The program needs no shared library and no loader: it runs in any Linux guest of the same architecture.

/// The program: an ELF file, to be written to an initramfs or a share.
pub static AGENT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/belljar-agent"));

/// An agent.
#[derive(Clone, Copy, Debug)]
pub struct Agent {
    /// The program, see [`AGENT`].
    pub program: &'static [u8],
    /// What tells it from others, see [`fingerprint`].
    pub fingerprint: &'static str,
}

/// The agent for guests with this processor, named as `uname -m` does; none if there is none for it here.
#[must_use]
pub fn agent_for(processor: &str) -> Option<Agent> {
    // It is built for the processor that its host is built for.
    (processor == std::env::consts::ARCH).then(|| Agent { program: AGENT, fingerprint: fingerprint() })
}

/// Tells one agent from another: part of the key of everything cached that has the agent in it. Hexadecimal digits.
#[must_use]
pub fn fingerprint() -> &'static str {
    env!("BELLJAR_AGENT_FINGERPRINT")
}

#[cfg(test)]
mod tests {
    use super::*;

    const PT_LOAD: u32 = 1;
    const PT_DYNAMIC: u32 = 2;
    const PT_INTERP: u32 = 3;

    fn number(at: usize, size: usize) -> u64 {
        AGENT[at..at + size].iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte))
    }

    /// Types of the program headers of a 64-bit ELF file.
    fn segments() -> Vec<u32> {
        assert_eq!(&AGENT[..4], b"\x7fELF");
        assert_eq!(AGENT[4], 2, "64 bits");
        let (start, size, count) = (number(32, 8), number(54, 2), number(56, 2));
        (0..count).map(|at| number((start + at * size) as usize, 4) as u32).collect()
    }

    #[test]
    fn the_agent_needs_no_loader() {
        let segments = segments();
        assert!(segments.contains(&PT_LOAD));
        assert!(!segments.contains(&PT_INTERP), "dynamically linked");
        assert!(!segments.contains(&PT_DYNAMIC), "has relocations to be made at its start");
    }

    #[test]
    fn the_agent_is_small() {
        assert!(AGENT.len() < 2 * 1024 * 1024, "{} bytes", AGENT.len());
    }

    #[test]
    fn the_fingerprint_is_that_of_the_file() {
        let fnv = AGENT.iter().fold(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d_u128, |hash, &byte| {
            (hash ^ u128::from(byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013B)
        });
        assert_eq!(fingerprint(), format!("{fnv:032x}"));
    }
}
