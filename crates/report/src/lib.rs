//! Events made readable: terminal and files.
