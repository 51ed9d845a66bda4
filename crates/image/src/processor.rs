//! A processor that guests have, as far as what they boot from has to be made for it. Which there are is said by whoever makes the
//! machines.

use crate::kernel::Arch;

/// What a guest's processor runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Processor {
    /// Its name, as `uname -m` has it.
    pub name: &'static str,
    /// What kernels and programs are for it.
    pub arch: Arch,
    /// Others, whose kernels and programs it runs as well.
    pub also_runs: &'static [Arch],
    /// The package of Debian's generic kernel for it.
    pub kernel_package: &'static str,
}

impl Processor {
    /// Whether it runs kernels and programs that are for `arch`.
    #[must_use]
    pub fn runs(&self, arch: Arch) -> bool {
        arch == self.arch || self.also_runs.contains(&arch)
    }
}

/// For a person: what guests can be.
pub(crate) fn list(processors: &[&Processor]) -> String {
    processors.iter().map(|processor| processor.arch.to_string()).collect::<Vec<_>>().join(", ")
}

/// The processor of the tests' guests.
#[cfg(test)]
pub(crate) const X86_64: Processor =
    Processor { name: "x86_64", arch: Arch::X86_64, also_runs: &[Arch::X86], kernel_package: "linux-image-amd64" };
