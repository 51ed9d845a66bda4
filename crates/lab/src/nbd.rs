//! What QEMU's `nbd` node says and is told: the fixed newstyle handshake, requests, and simple replies.
//!
//! Source: the protocol's `doc/proto.md`. Any other option than `NBD_OPT_GO` and `NBD_OPT_ABORT` is answered with `NBD_REP_ERR_UNSUP`, which
//! QEMU is content with.

use belljar_guest_spec::fault::{DiskError, Operation};

/// Longest payload of a request, in bytes: what QEMU sends at most.
pub const MAX_PAYLOAD: u32 = 32 << 20;
/// Longest data of an option.
const MAX_OPTION: u32 = 8192;

const GREETING: &[u8; 16] = b"NBDMAGICIHAVEOPT";
const OPTION: &[u8; 8] = b"IHAVEOPT";
const FIXED_NEWSTYLE: u16 = 1;
const NO_ZEROES: u16 = 2;
const OPT_ABORT: u32 = 2;
const OPT_GO: u32 = 7;
const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;
const REP_ERR_UNSUP: u32 = (1 << 31) | 1;
const INFO_EXPORT: u16 = 0;
const INFO_BLOCK_SIZE: u16 = 3;

const HAS_FLAGS: u16 = 1;
const READ_ONLY: u16 = 1 << 1;
const SEND_FLUSH: u16 = 1 << 2;
const SEND_FUA: u16 = 1 << 3;
const SEND_TRIM: u16 = 1 << 5;
const SEND_WRITE_ZEROES: u16 = 1 << 6;

const REQUEST: u32 = 0x2560_9513;
const REPLY: u32 = 0x6744_6698;
/// Bytes of a request without its payload.
pub(crate) const REQUEST_LENGTH: usize = 28;
const FLAG_FUA: u16 = 1;
const CMD_DISCONNECT: u16 = 2;

/// What a client is told of a disk.
#[derive(Clone, Copy, Debug)]
pub struct Export {
    /// Bytes of it.
    pub size: u64,
    /// Whether nothing can be written to it.
    pub read_only: bool,
}

/// Something that no client sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("what QEMU sent is not of the NBD protocol: {0}")]
pub struct Malformed(&'static str);

/// A request of the client's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request<'a> {
    /// By which the client knows the reply.
    pub cookie: u64,
    /// What is asked for; `None` is something that this server does not know.
    pub operation: Option<Operation>,
    /// Where.
    pub offset: u64,
    /// How many bytes; none for a flush.
    pub length: u32,
    /// Whether it has to be durable when it is answered.
    pub fua: bool,
    /// What is to be written.
    pub payload: &'a [u8],
    /// By which of the disk's paths it has come, counted from 0. The server's loop knows that.
    pub path: u32,
}

/// The next thing that a client said.
#[derive(Debug, PartialEq, Eq)]
pub enum Said<'a> {
    /// Something that was answered at once, or that wants no answer.
    Nothing,
    /// A request.
    Request(Request<'a>),
    /// It goes.
    Goodbye,
}

/// How far the conversation has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Flags,
    Options,
    Requests,
}

/// The server's side of the conversation.
#[derive(Debug)]
pub struct Conversation {
    export: Export,
    phase: Phase,
}

impl Conversation {
    /// Begins one: the greeting goes to `out`.
    pub fn begin(export: Export, out: &mut Vec<u8>) -> Self {
        out.extend_from_slice(GREETING);
        out.extend_from_slice(&(FIXED_NEWSTYLE | NO_ZEROES).to_be_bytes());
        Self { export, phase: Phase::Flags }
    }

    /// Takes the next thing out of `bytes`, all of which the client has sent; gives how many bytes of them it is. Answers to what is no request
    /// go to `out`. `None`: it is not there as a whole.
    ///
    /// # Errors
    /// When it is nothing that a client sends.
    pub fn next<'a>(&mut self, bytes: &'a [u8], out: &mut Vec<u8>) -> Result<Option<(usize, Said<'a>)>, Malformed> {
        match self.phase {
            Phase::Flags => self.flags(bytes),
            Phase::Options => self.option(bytes, out),
            Phase::Requests => request(bytes),
        }
    }

    /// Whether hands are shaken, so that what comes are requests.
    pub fn is_shaken(&self) -> bool {
        self.phase == Phase::Requests
    }

    fn flags(&mut self, bytes: &[u8]) -> Result<Option<(usize, Said<'static>)>, Malformed> {
        let Some(flags) = u32_at(bytes, 0) else { return Ok(None) };
        if flags & !u32::from(FIXED_NEWSTYLE | NO_ZEROES) != 0 {
            return Err(Malformed("flags that the server has not got"));
        }
        self.phase = Phase::Options;
        Ok(Some((4, Said::Nothing)))
    }

    fn option(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<Option<(usize, Said<'static>)>, Malformed> {
        let magic = &bytes[..bytes.len().min(8)];
        if !OPTION.starts_with(magic) {
            return Err(Malformed("an option without its magic"));
        }
        let (Some(option), Some(length)) = (u32_at(bytes, 8), u32_at(bytes, 12)) else { return Ok(None) };
        if length > MAX_OPTION {
            return Err(Malformed("an option that is too long"));
        }
        let taken = 16 + length as usize;
        if bytes.len() < taken {
            return Ok(None);
        }
        let reply = |out: &mut Vec<u8>, kind: u32, data: &[u8]| {
            out.extend_from_slice(&OPTION_REPLY.to_be_bytes());
            out.extend_from_slice(&option.to_be_bytes());
            out.extend_from_slice(&kind.to_be_bytes());
            out.extend_from_slice(&u32::try_from(data.len()).unwrap_or(0).to_be_bytes());
            out.extend_from_slice(data);
        };
        match option {
            OPT_GO => {
                let mut export = INFO_EXPORT.to_be_bytes().to_vec();
                export.extend_from_slice(&self.export.size.to_be_bytes());
                export.extend_from_slice(&self.transmission_flags().to_be_bytes());
                reply(out, REP_INFO, &export);
                let mut blocks = INFO_BLOCK_SIZE.to_be_bytes().to_vec();
                for size in [512, 4096, MAX_PAYLOAD] {
                    blocks.extend_from_slice(&size.to_be_bytes());
                }
                reply(out, REP_INFO, &blocks);
                reply(out, REP_ACK, &[]);
                self.phase = Phase::Requests;
            }
            OPT_ABORT => {
                reply(out, REP_ACK, &[]);
                return Ok(Some((taken, Said::Goodbye)));
            }
            _ => reply(out, REP_ERR_UNSUP, &[]),
        }
        Ok(Some((taken, Said::Nothing)))
    }

    fn transmission_flags(&self) -> u16 {
        let writable = SEND_FLUSH | SEND_FUA | SEND_TRIM | SEND_WRITE_ZEROES;
        HAS_FLAGS | if self.export.read_only { READ_ONLY } else { writable }
    }
}

fn request(bytes: &[u8]) -> Result<Option<(usize, Said<'_>)>, Malformed> {
    let Some(magic) = u32_at(bytes, 0) else { return Ok(None) };
    if magic != REQUEST {
        return Err(Malformed("a request without its magic"));
    }
    let Some(head) = bytes.first_chunk() else { return Ok(None) };
    if kind(head) == CMD_DISCONNECT {
        return Ok(Some((REQUEST_LENGTH, Said::Goodbye)));
    }
    let Some(request) = of_head(head) else { return Ok(None) };
    let payload = if request.operation == Some(Operation::Write) { request.length } else { 0 };
    if payload > MAX_PAYLOAD {
        return Err(Malformed("a write that is too long"));
    }
    let taken = REQUEST_LENGTH + payload as usize;
    let Some(payload) = bytes.get(REQUEST_LENGTH..taken) else { return Ok(None) };
    Ok(Some((taken, Said::Request(Request { payload, ..request }))))
}

fn kind(head: &[u8; REQUEST_LENGTH]) -> u16 {
    u16::from_be_bytes([head[6], head[7]])
}

/// The head of a write of which `bytes` have the beginning and not all.
pub(crate) fn part_of_write(bytes: &[u8]) -> Option<&[u8; REQUEST_LENGTH]> {
    bytes.first_chunk().filter(|_| missing(bytes) > 0)
}

/// The request of a head, without what it writes.
pub(crate) fn of_head(head: &[u8; REQUEST_LENGTH]) -> Option<Request<'static>> {
    let (cookie, offset, length) = (u64_at(head, 8)?, u64_at(head, 16)?, u32_at(head, 24)?);
    let fua = u16::from_be_bytes([head[4], head[5]]) & FLAG_FUA != 0;
    let operation = match kind(head) {
        0 => Some(Operation::Read),
        1 => Some(Operation::Write),
        3 => Some(Operation::Flush),
        4 => Some(Operation::Discard),
        6 => Some(Operation::Zero),
        _ => None,
    };
    Some(Request { cookie, operation, offset, length, fua, payload: &[], path: 0 })
}

/// Bytes that are missing until what `bytes` begins with is there as a whole, as far as can be told.
pub fn missing(bytes: &[u8]) -> usize {
    let write = u32_at(bytes, 0) == Some(REQUEST) && bytes.get(6..8) == Some(&[0, 1]);
    let length = u32_at(bytes, 24).filter(|length| write && *length <= MAX_PAYLOAD);
    length.map_or(0, |length| (REQUEST_LENGTH + length as usize).saturating_sub(bytes.len()))
}

/// The head of the answer to a request: what was read follows.
pub fn reply(cookie: u64, error: Option<DiskError>, out: &mut Vec<u8>) {
    out.extend_from_slice(&REPLY.to_be_bytes());
    out.extend_from_slice(&error.map_or(0, number).to_be_bytes());
    out.extend_from_slice(&cookie.to_be_bytes());
}

/// An error as the protocol has it (`doc/proto.md`, "Error values").
fn number(error: DiskError) -> u32 {
    match error {
        DiskError::NotPermitted => 1,
        DiskError::Io => 5,
        DiskError::NoMemory => 12,
        DiskError::Invalid => 22,
        DiskError::NoSpace => 28,
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4).map(|bytes| u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from(u32_at(bytes, at)?) << 32 | u64::from(u32_at(bytes, at + 4)?))
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    const EXPORT: Export = Export { size: 1 << 20, read_only: false };

    /// What a client says to begin with.
    pub(crate) fn hello() -> Vec<u8> {
        let mut bytes = 3u32.to_be_bytes().to_vec();
        // A question for structured replies, which QEMU asks first; then the export without a name.
        for (option, data) in [(8u32, &[][..]), (OPT_GO, &[0, 0, 0, 0, 0, 1, 0, 3][..])] {
            bytes.extend_from_slice(OPTION);
            bytes.extend_from_slice(&option.to_be_bytes());
            bytes.extend_from_slice(&(data.len() as u32).to_be_bytes());
            bytes.extend_from_slice(data);
        }
        bytes
    }

    /// A request as a client sends it.
    pub(crate) fn asked(kind: u16, flags: u16, cookie: u64, offset: u64, length: u32, payload: &[u8]) -> Vec<u8> {
        let mut bytes = REQUEST.to_be_bytes().to_vec();
        bytes.extend_from_slice(&flags.to_be_bytes());
        bytes.extend_from_slice(&kind.to_be_bytes());
        bytes.extend_from_slice(&cookie.to_be_bytes());
        bytes.extend_from_slice(&offset.to_be_bytes());
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.extend_from_slice(payload);
        bytes
    }

    /// All that is said in `bytes`, cut at `cut`.
    fn all(bytes: &[u8], cut: usize) -> (Vec<String>, Vec<u8>) {
        let (mut out, mut said) = (Vec::new(), Vec::new());
        let mut conversation = Conversation::begin(EXPORT, &mut out);
        let mut at = 0;
        for end in [cut.min(bytes.len()), bytes.len()] {
            while at < end {
                match conversation.next(&bytes[at..end], &mut out) {
                    Ok(Some((taken, what))) => {
                        at += taken;
                        said.push(format!("{what:?}"));
                    }
                    Ok(None) => break,
                    Err(error) => {
                        said.push(error.to_string());
                        return (said, out);
                    }
                }
            }
        }
        (said, out)
    }

    #[test]
    fn a_client_shakes_hands_and_asks() {
        let mut bytes = hello();
        bytes.extend(asked(1, 1, 7, 4096, 3, b"abc"));
        bytes.extend(asked(0, 0, 8, 512, 1024, b""));
        bytes.extend(asked(9, 0, 9, 0, 0, b""));
        bytes.extend(asked(2, 0, 0, 0, 0, b""));
        let (said, out) = all(&bytes, 0);
        assert_eq!(said.len(), 7, "{said:?}");
        assert!(
            said[3].contains("cookie: 7") && said[3].contains("Write") && said[3].contains("fua: true"),
            "{}",
            said[3]
        );
        assert!(said[5].contains("operation: None"), "{}", said[5]);
        assert_eq!(said[6], "Goodbye");
        assert_eq!(&out[..18], b"NBDMAGICIHAVEOPT\0\x03");
        // The first option is unsupported; then the export, the block sizes, and the end.
        assert_eq!(out[18 + 8 + 4..][..4], REP_ERR_UNSUP.to_be_bytes());
        let export = [&[0, 0][..], &(1u64 << 20).to_be_bytes(), &0x6du16.to_be_bytes()].concat();
        assert_eq!(out[18 + 20 + 20..][..12], export);
        assert_eq!(out.len(), 18 + 20 + 32 + 34 + 20);
    }

    #[test]
    fn what_no_client_sends_is_malformed() {
        for (what, bytes) in [
            ("flags", 9u32.to_be_bytes().to_vec()),
            ("option without", [&3u32.to_be_bytes()[..], b"IHAVEOPX"].concat()),
            (
                "option that is too long",
                [&3u32.to_be_bytes()[..], OPTION, &7u32.to_be_bytes(), &9000u32.to_be_bytes()].concat(),
            ),
            ("request without", [&hello()[..], b"abcd"].concat()),
            ("write that is too long", [hello(), asked(1, 0, 0, 0, MAX_PAYLOAD + 1, b"")].concat()),
        ] {
            let said = all(&bytes, 0).0;
            assert!(said.last().unwrap().contains(what), "{what}: {said:?}");
        }
    }

    #[test]
    fn how_much_is_missing_of_a_write_is_known() {
        let write = asked(1, 0, 0, 0, 100_000, b"abc");
        assert_eq!((missing(&write), missing(&write[..27]), missing(&asked(0, 0, 0, 0, 9, b""))), (99_997, 0, 0));
    }

    proptest! {
        #[test]
        fn it_does_not_matter_how_it_arrives(cut in 0usize..200, requests in prop::collection::vec((0u16..9, 0u16..4, any::<u64>(), 0u32..64), 0..5), junk in prop::collection::vec(any::<u8>(), 0..40)) {
            let mut bytes = hello();
            for (kind, flags, offset, length) in requests {
                let payload = vec![1; if kind == 1 { length as usize } else { 0 }];
                bytes.extend(asked(kind, flags, offset, offset, length, &payload));
            }
            bytes.extend(junk);
            prop_assert_eq!(all(&bytes, cut), all(&bytes, bytes.len()));
        }

        #[test]
        fn junk_is_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            all(&bytes, 0);
            let _ = missing(&bytes);
        }
    }
}
