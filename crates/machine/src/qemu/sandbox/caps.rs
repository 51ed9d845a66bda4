//! Root's capabilities, cut down to what serving files takes.

use rustix::io::{self, Errno};
use rustix::process::geteuid;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set, clear_ambient_capability_set,
    configure_capability_in_ambient_set, remove_capability_from_bounding_set, set_capabilities,
};

/// What is kept: root expects to share directories of other users, and to read their images.
/// All else goes, above all `CHOWN`, `MKNOD`, `FSETID` and `SETFCAP`, by which a file becomes more than
/// a file: the filter forbids these too, but a file that QEMU writes to also loses its set-uid bit only without
/// `FSETID`, and no filter can see the name of an extended attribute.
const KEPT: CapabilitySet =
    CapabilitySet::DAC_OVERRIDE.union(CapabilitySet::DAC_READ_SEARCH).union(CapabilitySet::FOWNER);

/// What a program takes that confines itself to a directory, and gives up then.
const TO_CONFINE: CapabilitySet = CapabilitySet::SYS_CHROOT.union(CapabilitySet::SETPCAP);

/// Has this process keep no capabilities but [`KEPT`]. It becomes no other program.
pub(super) fn drop_for_good() -> io::Result<()> {
    let sets = capabilities(None)?;
    let kept = sets.permitted & KEPT;
    set_capabilities(None, CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() })
}

/// Makes sure that the next program has no capabilities but [`KEPT`], and those only as root.
///
/// The sets of this process stay as they are: what counts is what `exec` makes of them, and that is bounded by the bounding
/// set for root, and by the inheritable and ambient sets for others.
pub(super) fn drop_for_qemu() -> io::Result<()> {
    drop_but(KEPT)
}

/// The same for a program that confines itself: it has [`TO_CONFINE`] too, which it gives up by itself.
pub(super) fn drop_for_confined() -> io::Result<()> {
    drop_but(KEPT.union(TO_CONFINE))
}

/// Has the next program keep [`TO_CONFINE`], for a user who is not root and has them in a user namespace.
pub(super) fn keep_to_confine() -> io::Result<()> {
    let sets = capabilities(None)?;
    set_capabilities(None, CapabilitySets { inheritable: TO_CONFINE, ..sets })?;
    TO_CONFINE.iter().try_for_each(|one| configure_capability_in_ambient_set(one, true))
}

fn drop_but(kept: CapabilitySet) -> io::Result<()> {
    match clear_ambient_capability_set() {
        // Older than 4.3: there is none.
        Ok(()) | Err(Errno::INVAL) => {}
        Err(error) => return Err(error),
    }
    let sets = capabilities(None)?;
    if !sets.inheritable.is_empty() {
        set_capabilities(None, CapabilitySets { inheritable: CapabilitySet::empty(), ..sets })?;
    }
    if geteuid().is_root() {
        for number in 0..64 {
            let one = CapabilitySet::from_bits_retain(1 << number);
            match capability_is_in_bounding_set(one) {
                Ok(true) if !kept.contains(one) => remove_capability_from_bounding_set(one)?,
                Ok(_) => {}
                // Past the last one this kernel knows.
                Err(Errno::INVAL) => break,
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}
