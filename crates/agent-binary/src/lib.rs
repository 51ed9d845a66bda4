//! The agent as a static program for each processor that it could be built for, embedded.
//!
//! `build.rs` builds `agent` with a cargo of its own, so that one `belljar` file holds all, and `cargo build` and `cargo install` need no
//! further steps. The program needs no shared library and no loader: it runs in any Linux guest with its processor. There is always one for the processor that
//! Belljar itself is built for, and one for each further processor whose standard library Rust has.

/// An agent.
#[derive(Clone, Copy, Debug)]
pub struct Agent {
    /// The processor that it is for, as `uname -m` names it.
    pub processor: &'static str,
    /// The program: an ELF file, to be written to an initramfs or a share.
    pub program: &'static [u8],
    /// What tells it from others: part of the key of everything cached that has the agent in it. Hexadecimal digits.
    pub fingerprint: &'static str,
}

/// Every agent that is embedded; that for the processor that Belljar is built for is the first.
pub static AGENTS: &[Agent] = include!(concat!(env!("OUT_DIR"), "/agents.rs"));

/// A processor for which the agent can be built.
struct Processor {
    name: &'static str,
    /// How the names of its targets begin in Rust.
    rust: &'static str,
}

/// Processors for which the agent can be built, of which `build.rs` has the same list.
const PROCESSORS: &[Processor] = include!("processors.rs");

/// The agent for guests with this processor, named as `uname -m` does; none if there is none for it here.
#[must_use]
pub fn agent_for(processor: &str) -> Option<Agent> {
    AGENTS.iter().find(|agent| agent.processor == processor).copied()
}

/// How to have an agent for a processor, for a person; none if there is one, or there can be none.
#[must_use]
pub fn how_to_have(processor: &str) -> Option<String> {
    let Processor { rust, .. } = PROCESSORS.iter().find(|known| known.name == processor)?;
    agent_for(processor).is_none().then(|| {
        format!(
            "belljar has one for {processor} if it is built where Rust's standard library for that is (rustup target add {rust}-unknown-linux-musl)"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PT_LOAD: u32 = 1;
    const PT_DYNAMIC: u32 = 2;
    const PT_INTERP: u32 = 3;

    /// Types of the program headers of a 64-bit ELF file.
    fn segments(program: &[u8]) -> Vec<u32> {
        let number = |at: usize, size: usize| {
            program[at..at + size].iter().rev().fold(0_u64, |number, &byte| number << 8 | u64::from(byte))
        };
        assert_eq!(&program[..4], b"\x7fELF");
        assert_eq!(program[4], 2, "64 bits");
        let (start, size, count) = (number(32, 8), number(54, 2), number(56, 2));
        (0..count).map(|at| number((start + at * size) as usize, 4) as u32).collect()
    }

    #[test]
    fn the_first_is_for_this_processor() {
        assert_eq!(AGENTS[0].processor, std::env::consts::ARCH);
    }

    #[test]
    fn each_is_for_the_processor_that_it_says() {
        for agent in AGENTS {
            // Numbers of the ELF specification (e_machine).
            let machine = match agent.processor {
                "x86_64" => 62,
                "aarch64" => 183,
                "riscv64" => 243,
                other => panic!("{other}: which number has it?"),
            };
            assert_eq!(u16::from_le_bytes([agent.program[18], agent.program[19]]), machine, "{}", agent.processor);
            assert_eq!(AGENTS.iter().filter(|other| other.processor == agent.processor).count(), 1);
            assert_eq!(how_to_have(agent.processor), None);
        }
    }

    #[test]
    fn what_is_lacking_can_be_had() {
        for Processor { name, rust } in PROCESSORS.iter().filter(|known| agent_for(known.name).is_none()) {
            let how = how_to_have(name).unwrap();
            assert!(how.contains(&format!("rustup target add {rust}-unknown-linux-musl")), "{how}");
        }
        assert_eq!(how_to_have("pdp11"), None);
    }

    #[test]
    fn no_agent_needs_a_loader() {
        for agent in AGENTS {
            let segments = segments(agent.program);
            assert!(segments.contains(&PT_LOAD));
            assert!(!segments.contains(&PT_INTERP), "dynamically linked");
            assert!(!segments.contains(&PT_DYNAMIC), "has relocations to be made at its start");
        }
    }

    #[test]
    fn agents_are_small() {
        for agent in AGENTS {
            assert!(agent.program.len() < 2 * 1024 * 1024, "{}: {} bytes", agent.processor, agent.program.len());
        }
    }

    #[test]
    fn a_fingerprint_is_that_of_the_file() {
        for agent in AGENTS {
            let fnv = agent.program.iter().fold(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d_u128, |hash, &byte| {
                (hash ^ u128::from(byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013B)
            });
            assert_eq!(agent.fingerprint, format!("{fnv:032x}"));
        }
    }
}
