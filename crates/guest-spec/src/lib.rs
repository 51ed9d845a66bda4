//! A guest as it is asked for. Each setting of a guest has its word, its default and its rules here, once: `belljar.toml` and the
//! command line both make a [`GuestSpec`], and the machine is made from it.
//!
//! Nothing here looks at the host: whether a file is there is found out when the guest is made.

mod devices;
mod disk;
pub mod fault;
mod guards;
mod image_ref;
mod login;
pub mod machine_order;
pub mod rules;
pub mod scheduled;
mod spec;
pub mod values;
mod words;

pub use devices::{
    Devices, Display, MAX_SERIAL_PORTS, NumaNode, Sound, Topology, Watchdog, check_numa, check_pmem, port_name,
};
pub use disk::{
    DirectoryContent, DiskConflict, DiskContent, DiskKey, DiskSpec, DiskTraits, MAX_PATHS, SectorSize, Wwn,
};
pub use guards::{Allowed, Guard, GuardAction, Guards, Judgement, guard_option, says_something};
pub use image_ref::{CONTAINER_PREFIX, ImageRef};
pub use login::{Credentials, Login, Password, Secret};
pub use spec::{
    BootSource, ContainerSource, DEFAULT_MEMORY, DEFAULT_MOUNT_AT, GuestSpec, Hardware, Source, Surroundings,
    Unresolved, in_home,
};
pub use words::*;
