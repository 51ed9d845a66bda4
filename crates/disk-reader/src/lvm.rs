//! Logical volumes, as far as they lie on this disk alone and one piece behind the other.

use crate::disk::Part;

/// A logical volume that can be read.
pub(crate) struct Logical {
    pub(crate) group: String,
    pub(crate) name: String,
    pub(crate) part: Part,
}

pub(crate) fn read(physical: &[(&str, &Part)], notes: &mut Vec<String>) -> Vec<Logical> {
    for (name, _) in physical {
        notes.push(format!("{name} is a physical volume of LVM, which cannot be read"));
    }
    Vec::new()
}
