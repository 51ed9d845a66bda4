//! A guest as a process: QEMU, console, access, share, session.
//!
//! [`backend`] is what whoever runs tests goes through, and [`guest::Guest`] what it gets there. Of a machine in QEMU [`plan::prepare`] resolves
//! what was asked for, [`lease::lease`] gives a guest with a session, and [`running::QemuGuest`] runs commands in it.

pub mod access;
pub mod backend;
mod balloon;
mod beside;
mod boot;
pub mod bounds;
mod bringing;
pub mod command;
mod companion;
mod conceal;
pub mod console;
mod derive;
mod desk;
mod enter;
pub mod first_process;
#[doc(hidden)]
pub mod fuzz;
mod get_in;
pub mod guest;
mod harmed;
pub mod host;
mod hotplug;
mod lab;
mod launch;
pub mod lease;
mod limits;
mod lost;
mod memory_dump;
mod no_way_in;
pub mod orders;
mod pictures;
pub mod plan;
mod plan_choices;
mod plan_devices;
pub mod plan_direct;
pub mod plan_drivers;
mod plan_error;
pub mod plan_firmware;
pub mod plan_grub;
pub mod plan_image;
mod plan_launch;
mod plan_modules;
mod plan_obstacles;
mod plan_shares;
mod plan_source;
mod plan_template;
mod plug;
mod proc_stat;
pub mod qemu;
mod replaced;
mod restart;
pub mod running;
pub mod screen;
pub mod session;
pub mod share;
pub mod spec;
mod ssh;
pub mod template;
mod tpm;
pub mod tree;
mod volume;
mod watch;

pub use belljar_proto::message::{MountMode, WindowSize};
pub use lost::{Cause, Lost, QemuEnd, QemuStart, for_people};
pub use ssh::PASSWORD_PROGRAM;
