//! Requests out of a stream of bytes, and the replies into it.

use std::io;
use std::io::{Read, Write};

use crate::server::{Answer, Server};
use crate::wire::{HEADER, MAX_REQUEST, Malformed};

/// Why the conversation ended before the guest was through.
#[derive(Debug)]
pub enum ServeError {
    /// The stream broke.
    Stream(io::Error),
    /// Bytes came that no kernel sends.
    Malformed,
    /// The guest knows of as many files, or has as many open, as this process may hold.
    Full(usize),
}

impl std::fmt::Display for ServeError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Stream(error) => write!(f, "the port of the share: {error}"),
            Self::Malformed => f.write_str("the guest sent what no kernel sends"),
            Self::Full(most) => write!(
                f,
                "the guest has {most} files of it open or in mind, as many as may be held for it, and would take all others for not there; \
                 raise the limit of open files (ulimit -Hn), share fewer files, or use --share 9p"
            ),
        }
    }
}

impl std::error::Error for ServeError {}

impl From<Malformed> for ServeError {
    fn from(Malformed: Malformed) -> Self {
        Self::Malformed
    }
}

/// Answers what comes on the stream, until it ends or the guest is through.
///
/// # Errors
/// See [`ServeError`].
pub fn serve(mut server: Server, stream: &mut (impl Read + Write)) -> Result<(), ServeError> {
    let mut buffer = vec![0; MAX_REQUEST];
    // What was read and not yet answered.
    let (mut start, mut end) = (0, 0);
    loop {
        let length = match length(&buffer[start..end])? {
            Some(length) if length <= end - start => length,
            length => {
                // The rest of a request must have room behind what is there of it.
                if buffer.len() - start < length.unwrap_or(HEADER) {
                    buffer.copy_within(start..end, 0);
                    (start, end) = (0, end - start);
                }
                match stream.read(&mut buffer[end..]) {
                    Ok(0) => return Ok(()),
                    Ok(read) => end += read,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(ServeError::Stream(error)),
                }
                continue;
            }
        };
        match server.answer(&buffer[start..start + length])? {
            Answer::Reply(reply) => {
                stream.write_all(&reply).map_err(ServeError::Stream)?;
                server.reuse(reply);
            }
            Answer::Nothing => {}
            Answer::End => return Ok(()),
            Answer::Full(most) => return Err(ServeError::Full(most)),
        }
        start += length;
        if start == end {
            (start, end) = (0, 0);
        }
    }
}

/// Bytes of the request that begins here, if they are known yet.
pub(crate) fn length(begun: &[u8]) -> Result<Option<usize>, Malformed> {
    let Some(bytes) = begun.first_chunk::<4>() else { return Ok(None) };
    let length = usize::try_from(u32::from_le_bytes(*bytes)).map_err(|_| Malformed)?;
    if (HEADER..=MAX_REQUEST).contains(&length) { Ok(Some(length)) } else { Err(Malformed) }
}
