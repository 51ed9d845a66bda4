//! A host directory that is to be a guest's root.
