//! What a fuzzer runs: reading what a guest sends, without doing it. The property tests run it as well, and do what is asked.

use crate::stream::length;
use crate::wire::{Header, Request};

/// Reads a stream of requests.
pub fn requests(mut bytes: &[u8]) {
    while let Ok(Some(length)) = length(bytes) {
        let Some((request, rest)) = bytes.split_at_checked(length) else { return };
        bytes = rest;
        let Ok((header, body)) = Header::split(request) else { return };
        match Request::parse(&header, body) {
            Ok(Request::BatchForget(forgets)) => assert!(forgets.count() <= request.len() / 16),
            Ok(_) => {}
            Err(_) => return,
        }
    }
}
