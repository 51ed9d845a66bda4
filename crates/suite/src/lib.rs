//! What is to run where: `belljar.toml`, headers, discovery, filters, the matrix, partition.
pub mod config;
pub mod diagnostic;
pub mod filter;
pub mod glob;
pub mod header;
pub mod settings;
pub mod toml_tree;
pub mod units;
