//! Results that tests write: TAP 13 and 14, JUnit XML, libtest, kselftest.
//!
//! All parsers take bytes of a guest: they never fail, need bounded memory, and say in [`Results::problems`] what they did not
//! like. What was cut off, contradicts itself or passes nothing is no pass; [`judge`] weighs it with how the command ended.

#[doc(hidden)]
pub mod fuzz;
pub mod junit;
pub mod libtest;
mod lines;
mod results;
pub mod tap;

pub use results::{MAX_CASES, Results, judge};
