//! The kernels installed on this host. Not every host has one, so that these run only when asked for.
