//! What a side writes down for itself, of any length.

use serde::{Serialize, de::DeserializeOwned};

/// As bytes; none of what cannot be written down.
#[must_use]
pub fn to_bytes<T: Serialize>(value: &T) -> Option<Vec<u8>> {
    postcard::to_allocvec(value).ok()
}

/// What was written down.
#[must_use]
pub fn from_bytes<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    postcard::from_bytes(bytes).ok()
}
