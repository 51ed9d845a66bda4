//! Which of systemd's units have failed, asked of systemd itself on its private socket: no process and no bus is needed for it.
//!
//! When a unit came to be what it is, systemd remembers, on the same clock as the command's begin. So nobody has to have asked before.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crate::text;

/// Where systemd, as the first process, answers root (its `manager_setup_bus`).
const SOCKET: &str = "/run/systemd/private";
/// How long an answer may take.
const LIMIT: Duration = Duration::from_secs(5);
/// How soon is asked again where nobody is there.
const AGAIN: Duration = Duration::from_millis(100);
/// Most bytes of an answer.
const MOST: usize = 1 << 20;
/// Most units whose time is asked for.
const MOST_UNITS: usize = 200;

const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const UNIT: &str = "org.freedesktop.systemd1.Unit";

/// Which units have failed.
#[derive(Debug)]
pub(super) struct Failed {
    /// Their names, with what systemd says of the cause.
    pub(super) units: Vec<(String, String)>,
    /// So many more are failed, since whenever that was: there are too many to ask for each.
    pub(super) unseen: u32,
}

/// Whether somebody seems to be there who could be asked.
pub(super) fn can_be_asked() -> bool {
    std::fs::exists(SOCKET).unwrap_or(false)
}

/// Units that are failed and came to be so after this time (microseconds of `CLOCK_MONOTONIC`). One who could be asked before and is not there
/// (`awaited`) is waited for.
///
/// # Errors
/// Why systemd does not say.
pub(super) fn failed_since(since: u64, awaited: bool) -> Result<Failed, String> {
    let until = Instant::now() + LIMIT;
    let asked = loop {
        match Bus::connect().and_then(|mut bus| bus.failed_since(since)) {
            // It executes itself anew, say: for a moment nobody is there.
            Err(error) if awaited && error.kind() != io::ErrorKind::WouldBlock && Instant::now() < until => {
                std::thread::sleep(AGAIN);
            }
            asked => break asked,
        }
    };
    asked.map_err(|error| {
        let why = if error.kind() == io::ErrorKind::WouldBlock {
            format!("no answer within {} s", LIMIT.as_secs())
        } else {
            text::io(&error)
        };
        format!("systemd does not say which units have failed: {SOCKET}: {why}")
    })
}

/// A connection with systemd, of which it is the other end.
struct Bus {
    stream: UnixStream,
    until: Instant,
    serial: u32,
    /// What has come and was not looked at.
    came: Vec<u8>,
}

impl Bus {
    fn connect() -> io::Result<Self> {
        let stream = UnixStream::connect(SOCKET)?;
        let mut bus = Self { stream, until: Instant::now() + LIMIT, serial: 0, came: Vec::new() };
        // In one go, as systemd's own programs do: who does not want to be told apart is root by the socket's own word (D-Bus specification, "EXTERNAL").
        bus.write(b"\0AUTH EXTERNAL 30\r\nBEGIN\r\n")?;
        loop {
            if let Some(end) = bus.came.windows(2).position(|pair| pair == b"\r\n") {
                let line: Vec<u8> = bus.came.drain(..end + 2).collect();
                if line.starts_with(b"OK ") {
                    return Ok(bus);
                }
                return Err(io::Error::other(format!("it says {}", text::lossy(line.trim_ascii()))));
            }
            bus.fill()?;
        }
    }

    fn failed_since(&mut self, since: u64) -> io::Result<Failed> {
        let mut states = Body::default();
        states.strings(&["failed"]);
        let answer = self.call("/org/freedesktop/systemd1", MANAGER, "ListUnitsFiltered", "as", states)?;
        let units = read_units(&answer).ok_or_else(odd)?;
        let unseen = u32::try_from(units.len().saturating_sub(MOST_UNITS)).unwrap_or(u32::MAX);
        let mut failed = Failed { units: Vec::new(), unseen };
        for (name, path) in units.into_iter().take(MOST_UNITS) {
            let changed = self.property(&path, UNIT, "StateChangeTimestampMonotonic")?;
            if changed.as_deref().and_then(read_number).is_some_and(|changed| changed < since) {
                continue;
            }
            let result = match interface(&name) {
                Some(interface) => self.property(&path, &interface, "Result")?,
                None => None,
            };
            failed.units.push((name, result.as_deref().and_then(read_text).unwrap_or_default()));
        }
        Ok(failed)
    }

    /// The value of a property, as a variant; none if there is none.
    fn property(&mut self, path: &str, interface: &str, name: &str) -> io::Result<Option<Vec<u8>>> {
        let mut body = Body::default();
        body.string(interface);
        body.string(name);
        match self.call(path, "org.freedesktop.DBus.Properties", "Get", "ss", body) {
            Ok(value) => Ok(Some(value)),
            // The unit is gone meanwhile, or an older systemd has no such property.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Calls a method and gives the body of what it returns.
    fn call(&mut self, path: &str, interface: &str, member: &str, signature: &str, body: Body) -> io::Result<Vec<u8>> {
        self.serial += 1;
        let serial = self.serial;
        self.write(&call(serial, path, interface, member, signature, &body.0))?;
        loop {
            let message = self.message()?;
            if message.reply_to != Some(serial) {
                // Such as a signal.
                continue;
            }
            return match message.kind {
                METHOD_RETURN => Ok(message.body),
                _ => Err(io::Error::new(io::ErrorKind::NotFound, "it answers with an error")),
            };
        }
    }

    fn message(&mut self) -> io::Result<Message> {
        loop {
            match Message::read(&self.came) {
                Ok(Some((message, length))) => {
                    self.came.drain(..length);
                    return Ok(message);
                }
                Ok(None) => self.fill()?,
                Err(()) => return Err(odd()),
            }
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.set_write_timeout(Some(self.left()?))?;
        self.stream.write_all(bytes)
    }

    fn fill(&mut self) -> io::Result<()> {
        let mut buffer = [0; 8192];
        self.stream.set_read_timeout(Some(self.left()?))?;
        let read = self.stream.read(&mut buffer)?;
        if read == 0 {
            return Err(io::Error::other("it was closed"));
        }
        if self.came.len() + read > MOST {
            return Err(io::Error::other("an answer is too long"));
        }
        self.came.extend_from_slice(&buffer[..read]);
        Ok(())
    }

    fn left(&self) -> io::Result<Duration> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(left) }
    }
}

fn odd() -> io::Error {
    io::Error::other("an answer is no message of D-Bus")
}

/// Where a unit of this kind has its `Result`.
fn interface(unit: &str) -> Option<String> {
    let kind = unit.rsplit_once('.')?.1;
    let name = match kind {
        "service" => "Service",
        "socket" => "Socket",
        "mount" => "Mount",
        "automount" => "Automount",
        "swap" => "Swap",
        "timer" => "Timer",
        "path" => "Path",
        "scope" => "Scope",
        _ => return None,
    };
    Some(format!("org.freedesktop.systemd1.{name}"))
}

const METHOD_RETURN: u8 = 2;
const ERROR: u8 = 3;

/// A body in the making (D-Bus specification, "Marshalling").
#[derive(Default)]
struct Body(Vec<u8>);

impl Body {
    fn align(&mut self, to: usize) {
        self.0.resize(self.0.len().next_multiple_of(to), 0);
    }

    fn number(&mut self, number: usize) {
        self.align(4);
        self.0.extend(u32::try_from(number).unwrap_or(u32::MAX).to_le_bytes());
    }

    fn string(&mut self, text: &str) {
        self.number(text.len());
        self.0.extend(text.bytes().chain([0]));
    }

    fn strings(&mut self, list: &[&str]) {
        let mut inner = Self::default();
        list.iter().for_each(|text| inner.string(text));
        self.number(inner.0.len());
        self.0.extend(inner.0);
    }
}

/// A method call.
fn call(serial: u32, path: &str, interface: &str, member: &str, signature: &str, body: &[u8]) -> Vec<u8> {
    let mut fields = Body::default();
    for (code, kind, text) in [(1, b'o', path), (2, b's', interface), (3, b's', member)] {
        fields.align(8);
        fields.0.extend([code, 1, kind, 0]);
        fields.string(text);
    }
    fields.align(8);
    fields.0.extend([8, 1, b'g', 0, u8::try_from(signature.len()).unwrap_or(0)]);
    fields.0.extend(signature.bytes().chain([0]));
    let mut message = Body(vec![b'l', 1, 0, 1]);
    message.number(body.len());
    message.0.extend(serial.to_le_bytes());
    message.number(fields.0.len());
    message.0.extend(fields.0);
    message.align(8);
    message.0.extend(body);
    message.0
}

/// A message of systemd's.
struct Message {
    kind: u8,
    reply_to: Option<u32>,
    body: Vec<u8>,
}

impl Message {
    /// The first message in these bytes with its length, if it is whole.
    fn read(bytes: &[u8]) -> Result<Option<(Self, usize)>, ()> {
        let Some(head) = bytes.get(..16) else { return Ok(None) };
        if head[0] != b'l' {
            return Err(());
        }
        let mut at = Reader { bytes, at: 4 };
        let (body, _, fields) = (at.number().ok_or(())?, at.number().ok_or(())?, at.number().ok_or(())?);
        let begin = (16 + fields).next_multiple_of(8);
        let end = begin.checked_add(body).filter(|end| *end <= MOST).ok_or(())?;
        let Some(whole) = bytes.get(..end) else { return Ok(None) };
        let mut fields = Reader { bytes: &whole[..16 + fields], at: 16 };
        let mut reply_to = None;
        while fields.at < fields.bytes.len() {
            fields.align(8);
            let Some(code) = fields.byte() else { break };
            match fields.signature().ok_or(())? {
                b"u" => {
                    let number = fields.number().ok_or(())?;
                    if code == 5 {
                        reply_to = u32::try_from(number).ok();
                    }
                }
                b"s" | b"o" => drop(fields.text().ok_or(())?),
                b"g" => drop(fields.signature().ok_or(())?),
                _ => return Err(()),
            }
        }
        let kind = whole[1];
        if kind == ERROR && reply_to.is_none() {
            return Err(());
        }
        Ok(Some((Self { kind, reply_to, body: whole[begin..].to_vec() }, end)))
    }
}

/// Reads values in the order in which they stand.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn align(&mut self, to: usize) {
        self.at = self.at.next_multiple_of(to);
    }

    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let taken = self.bytes.get(self.at..self.at.checked_add(count)?)?;
        self.at += count;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|byte| byte[0])
    }

    fn number(&mut self) -> Option<usize> {
        self.align(4);
        let number = u32::from_le_bytes(self.take(4)?.try_into().ok()?);
        usize::try_from(number).ok()
    }

    fn text(&mut self) -> Option<String> {
        let length = self.number()?;
        let text = self.take(length)?;
        self.byte()?;
        Some(text::lossy(text))
    }

    fn signature(&mut self) -> Option<&'a [u8]> {
        let length = usize::from(self.byte()?);
        let signature = self.take(length)?;
        self.byte()?;
        Some(signature)
    }
}

/// Names and paths of units, of `a(ssssssouso)`.
fn read_units(body: &[u8]) -> Option<Vec<(String, String)>> {
    let mut reader = Reader { bytes: body, at: 0 };
    let length = reader.number()?;
    reader.align(8);
    let end = reader.at.checked_add(length)?;
    reader.bytes = body.get(..end)?;
    let mut units = Vec::new();
    while reader.at < end {
        reader.align(8);
        let name = reader.text()?;
        for _ in 0..5 {
            reader.text()?;
        }
        let path = reader.text()?;
        reader.number()?;
        reader.text()?;
        reader.text()?;
        units.push((name, path));
    }
    Some(units)
}

/// A variant that is a number of 64 bits.
fn read_number(body: &[u8]) -> Option<u64> {
    let mut reader = Reader { bytes: body, at: 0 };
    if reader.signature()? != b"t" {
        return None;
    }
    reader.align(8);
    Some(u64::from_le_bytes(reader.take(8)?.try_into().ok()?))
}

/// A variant that is a text.
fn read_text(body: &[u8]) -> Option<String> {
    let mut reader = Reader { bytes: body, at: 0 };
    if reader.signature()? != b"s" {
        return None;
    }
    reader.text()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What systemd sends back.
    fn answer(kind: u8, reply_to: u32, body: &[u8]) -> Vec<u8> {
        let mut fields = Body::default();
        fields.0.extend([5, 1, b'u', 0]);
        fields.number(usize::try_from(reply_to).unwrap());
        fields.align(8);
        fields.0.extend([7, 1, b's', 0]);
        fields.string("org.freedesktop.systemd1");
        let mut message = Body(vec![b'l', kind, 1, 1]);
        message.number(body.len());
        message.number(99);
        message.number(fields.0.len());
        message.0.extend(fields.0);
        message.align(8);
        message.0.extend(body);
        message.0
    }

    fn list(units: &[(&str, &str)]) -> Vec<u8> {
        let mut items = Body::default();
        for (name, path) in units {
            items.align(8);
            items.string(name);
            for text in ["A unit", "loaded", "failed", "failed", ""] {
                items.string(text);
            }
            items.string(path);
            items.number(0);
            items.string("");
            items.string("/");
        }
        let mut body = Body::default();
        body.number(items.0.len());
        body.align(8);
        body.0.extend(items.0);
        body.0
    }

    fn variant(kind: u8, value: &[u8], align: usize) -> Vec<u8> {
        let mut body = Body(vec![1, kind, 0]);
        body.align(align);
        body.0.extend(value);
        body.0
    }

    #[test]
    fn a_call_is_as_the_specification_has_it() {
        let mut states = Body::default();
        states.strings(&["failed"]);
        let bytes = call(1, "/org/freedesktop/systemd1", MANAGER, "ListUnitsFiltered", "as", &states.0);
        let head: &[u8] = &[b'l', 1, 0, 1, 15, 0, 0, 0, 1, 0, 0, 0];
        assert_eq!(&bytes[..12], head);
        assert_eq!((bytes.len() - 15) % 8, 0, "the body begins at a multiple of eight");
        assert!(bytes.ends_with(b"\x0b\0\0\0\x06\0\0\0failed\0"));
        let (read, length) = Message::read(&bytes).unwrap().unwrap();
        assert_eq!((read.kind, read.reply_to, length), (1, None, bytes.len()));
    }

    #[test]
    fn systemd_is_asked_and_understood() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let sent = [
            answer(4, 0, &[]),
            answer(METHOD_RETURN, 1, &list(&[("new.service", "/a"), ("old.service", "/b"), ("gone.mount", "/c")])),
            answer(METHOD_RETURN, 2, &variant(b't', &500_u64.to_le_bytes(), 8)),
            answer(METHOD_RETURN, 3, &variant(b's', b"\x09\0\0\0exit-code\0", 4)),
            answer(METHOD_RETURN, 4, &variant(b't', &499_u64.to_le_bytes(), 8)),
            answer(ERROR, 5, &[]),
            answer(ERROR, 6, &[]),
        ];
        (&theirs).write_all(&sent.concat()).unwrap();
        let mut bus = Bus { stream: ours, until: Instant::now() + LIMIT, serial: 0, came: Vec::new() };
        let expected = [("new.service".to_owned(), "exit-code".to_owned()), ("gone.mount".to_owned(), String::new())];
        let failed = bus.failed_since(500).unwrap();
        assert_eq!(failed.units, expected);
        assert_eq!(failed.unseen, 0);
        drop(theirs);
        assert!(bus.failed_since(0).is_err());
    }

    #[test]
    fn units_that_are_too_many_to_be_asked_about_are_counted() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let many = vec![("old.service", "/a"); MOST_UNITS + 3];
        let mut sent = vec![answer(METHOD_RETURN, 1, &list(&many))];
        let old = |serial| answer(METHOD_RETURN, serial, &variant(b't', &1_u64.to_le_bytes(), 8));
        sent.extend((2..).take(MOST_UNITS).map(old));
        let sending = std::thread::spawn(move || (&theirs).write_all(&sent.concat()).map(|()| theirs));
        let mut bus = Bus { stream: ours, until: Instant::now() + LIMIT, serial: 0, came: Vec::new() };
        let failed = bus.failed_since(500).unwrap();
        assert_eq!((failed.units.len(), failed.unseen), (0, 3));
        drop(sending.join().unwrap().unwrap());
    }

    #[test]
    fn rubbish_is_no_answer() {
        let whole = answer(METHOD_RETURN, 1, &list(&[("a.service", "/a")]));
        for cut in 0..whole.len() {
            assert!(matches!(Message::read(&whole[..cut]), Ok(None)), "{cut}");
            let body = list(&[("a.service", "/a")]);
            assert!(read_units(&body[..cut.min(body.len() - 1)]).is_none(), "{cut}");
        }
        assert!(Message::read(&[b'B'; 64]).is_err());
        assert!(Message::read(&[b"l\x02\x01\x01", &[255; 60][..]].concat()).is_err());
        assert_eq!((read_number(b"\x01s\0"), read_text(b"\x01t\0"), read_number(&[])), (None, None, None));
    }
}
