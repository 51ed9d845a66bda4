//! The agent as a process of this machine, over a socket: what a host sees of it, byte by byte.

mod peer;

mod asking;
mod commands;
mod files;
mod flow;
mod sessions;
