//! Whole reports of made-up runs.

#[path = "../../examples/sample/plausible.rs"]
mod plausible;

mod junit;
mod pages;
mod tap;
mod terminal;
