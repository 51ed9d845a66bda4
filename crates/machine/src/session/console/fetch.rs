//! A command whose output comes over the console.
//!
//! The files are fetched in blocks, encoded by whatever the guest has for that. A block that does not decode to exactly the
//! length that was asked for, such as one into which the kernel wrote, is fetched again.

use std::time::Duration;

use belljar_model::{Exit, Phase};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::ctl_by_console::{self, GuestFiles};
use super::{ConsoleSession, End, Running, Signals, keeper_gone, pass_on, random_name, script, tell_end};
use crate::command::GuestCommand;
use crate::enter::of_shell;
use crate::guest::Io;
use crate::{Cause, Lost};

/// Size of the blocks that `dd` counts in.
const BLOCK: u64 = 512;
/// Blocks fetched at once.
const BLOCKS: u64 = 128;
/// Most bytes of standard input. Without KVM they are typed at one or two thousand a second.
const STDIN_MAX: u64 = 256 << 10;
/// How often one block is fetched before we give up.
const TRIES: u32 = 8;
/// How long we wait between two looks at a command that says nothing, at first and at most.
const LOOK_FIRST: Duration = Duration::from_millis(50);
const LOOK_MOST: Duration = Duration::from_secs(2);

/// What the guest encodes with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tools {
    /// `base64`, from coreutils, busybox or openssl.
    Base64(&'static str),
    /// Two hexadecimal digits a byte, with any blanks.
    Hex(&'static str),
    /// Nothing: text as it is.
    Text,
}

/// Encoders in the order of preference; each reads standard input.
const ENCODERS: &[Tools] = &[
    Tools::Base64("base64"),
    Tools::Base64("busybox base64"),
    Tools::Base64("openssl base64"),
    Tools::Hex("od -An -v -tx1"),
    Tools::Hex("busybox od -An -v -tx1"),
    Tools::Hex("xxd -p"),
    Tools::Hex("hexdump -v -e '1/1 \"%02x\"'"),
];

impl Tools {
    /// The line that fetches a file's bytes from here on; the answer may begin up to a block earlier.
    fn line(self, dir: &str, file: u8, from: u64) -> String {
        let dir = script::word(dir);
        match self {
            Tools::Base64(program) | Tools::Hex(program) => {
                let block = from / BLOCK;
                format!("dd if={dir}/{file} bs={BLOCK} skip={block} count={BLOCKS} 2>/dev/null|{program}")
            }
            // Slow, and exact at least in where it begins.
            Tools::Text => format!("dd if={dir}/{file} bs=1 skip={from} count={BLOCK} 2>/dev/null"),
        }
    }

    pub(super) fn decode(self, text: &[u8]) -> Option<Vec<u8>> {
        match self {
            Tools::Base64(_) => base64(text),
            Tools::Hex(_) => hex(text),
            Tools::Text => Some(text.to_vec()),
        }
    }
}

impl ConsoleSession {
    pub(super) async fn exec_by_console(&mut self, command: &GuestCommand, io: &mut Io<'_>) -> Result<Exit, Lost> {
        let tools = match self.tools {
            Some(tools) => tools,
            None => {
                let found = self.find_tools().await?;
                *self.tools.insert(found)
            }
        };
        if tools == Tools::Text {
            self.note("the guest has nothing to encode output with: it comes as text, and other bytes may be lost");
        }
        let nonce = random_name()?;
        let mut orders = self.make_guest_files().await?.map(|(files, places)| {
            self.places = Some(places);
            files
        });
        let dir = self.make_dir().await?;
        self.write_file(&dir, "cmd", &script::command(command, self.places.as_ref())).await?;
        let keeper = script::keeper(&dir, command, self.layer.as_deref(), self.late_quiet);
        self.write_file(&dir, "keep", &keeper).await?;
        let dir_word = script::word(&dir);
        self.line_run(format!(": >{dir_word}/0;: >{dir_word}/1;: >{dir_word}/2")).await?;
        if let Some(stdin) = io.stdin.take() {
            self.send_stdin(stdin, &format!("{dir_word}/0")).await?;
        }

        let orders_dir = orders.as_ref().map(|files| files.dir.clone());
        self.running =
            Some(Running { guest_dir: dir.clone(), orders_dir: orders_dir.clone(), host_dir: None, started: true });
        let started = self.line_run(script::start(&dir, &nonce)).await?;
        if started.code != 0 {
            self.running = None;
            return Err(
                Cause::Shell(format!("the guest's shell could not start the command: {}", started.text())).into()
            );
        }
        let end = self.fetch_all((&dir, orders.as_mut()), &nonce, tools, io).await?;
        if let Some(orders) = &mut orders {
            self.take_last_orders(orders, tools).await?;
        }
        self.running = None;
        let orders_dir = orders_dir.map_or_else(String::new, |dir| format!(" {}", script::word(&dir)));
        self.line_run(format!("rm -rf {dir_word}{orders_dir}")).await?;
        tell_end(io.sink, end);
        end.outcome(command)
    }

    /// Types all of standard input into a file.
    async fn send_stdin(&mut self, stdin: &mut (dyn AsyncRead + Unpin + Send), file: &str) -> Result<(), Lost> {
        let mut bytes = Vec::new();
        let reading = stdin.take(STDIN_MAX + 1).read_to_end(&mut bytes).await;
        reading.map_err(|e| Cause::Stdin(format!("reading standard input failed: {e}")))?;
        let cannot = |why: &str| {
            Lost::from(Cause::Stdin(format!("standard input cannot be typed into this guest: {why}")))
                .with_advice("to run the command without, add --no-stdin; a guest with 9p takes any")
        };
        if bytes.len() as u64 > STDIN_MAX {
            return Err(cannot("it has more than 256 KiB, and there is no shared directory to put it"));
        }
        // Each line has a patience of its own.
        let factor = self.factor;
        let taken =
            self.shell.append(file, &bytes, || super::line(factor)).await.map_err(|e| of_shell(&e, Phase::Command))?;
        match taken {
            n if n == bytes.len() => Ok(()),
            0 => Err(cannot("its shell has no printf, or nowhere to write")),
            n => Err(cannot(&format!("it took {n} bytes of {}; it may be out of memory", bytes.len()))),
        }
    }

    async fn fetch_all(
        &mut self,
        (dir, mut orders): (&str, Option<&mut GuestFiles>),
        nonce: &str,
        tools: Tools,
        io: &mut Io<'_>,
    ) -> Result<End, Lost> {
        let orders_look = orders.as_ref().map_or_else(String::new, |files| files.look());
        let dir_word = script::word(dir);
        let mut have = [0u64; 2];
        let mut pause = LOOK_FIRST;
        let mut last_beat = tokio::time::Instant::now();
        let mut dead_before = false;
        let mut over = false;
        let mut signals = Signals::default();
        let asks = self.asks.clone();
        let mut changes = asks.changes();
        loop {
            // The code first: what is there after it is all there will be.
            let look = format!(
                "cat {dir_word}/code 2>/dev/null;echo;wc -c <{dir_word}/1;wc -c <{dir_word}/2;[ ! -e {dir_word}/over ]||echo over{orders_look}"
            );
            let seen = self.line_run(look).await?.output;
            let (end, sizes) = read_look(&seen, nonce);
            if !over && seen.split(|b| *b == b'\n').any(|line| line.trim_ascii() == b"over") {
                over = true;
                io.sink.lingers();
            }
            let mut grown = false;
            if let Some(files) = &mut orders
                && end.is_none()
            {
                let names = ctl_by_console::names(&seen);
                grown = !names.is_empty();
                self.exchange_orders(files, names, tools).await?;
            }
            for (index, file) in [(0, 1u8), (1, 2u8)] {
                while sizes.is_none_or(|s| s[index] > have[index]) {
                    let (bytes, taken) = self.fetch(dir, file, have[index], sizes.map(|s| s[index]), tools).await?;
                    if taken == 0 {
                        break;
                    }
                    have[index] += taken;
                    grown = true;
                    pass_on(io.sink, index == 1, &bytes).await?;
                }
            }
            if let Some(end) = end {
                if let Some((out, err)) = end.sizes.filter(|_| tools != Tools::Text)
                    && (have[0] < out || have[1] < err)
                {
                    let why = "output of the command got lost in the guest: its files are shorter than they were";
                    return Err(Cause::Output(why.into()).into());
                }
                return Ok(end);
            }
            pause = if grown { LOOK_FIRST } else { (pause * 2).min(LOOK_MOST) };
            tokio::select! {
                biased;
                () = signals.hear(&mut io.control) => {}
                () = self.asks.attention() => {}
                Ok(()) = changes.changed(), if orders.is_some() => {}
                () = tokio::time::sleep(pause) => {}
            }
            changes.mark_unchanged();
            self.attend(&mut signals).await?;
            self.send_signals(dir, &mut signals).await?;
            if dead_before || last_beat.elapsed() >= self.heartbeat() {
                let alive = self.is_alive(dir).await?;
                if !alive && dead_before {
                    return Err(keeper_gone());
                }
                dead_before = !alive;
                last_beat = tokio::time::Instant::now();
            }
        }
    }

    /// Fetches what the file has from this byte on, at most so much as fits; `size` is what it is known to have. Also tells how
    /// many bytes of the file that was, which for text may be more than came.
    async fn fetch(
        &mut self,
        dir: &str,
        file: u8,
        from: u64,
        size: Option<u64>,
        tools: Tools,
    ) -> Result<(Vec<u8>, u64), Lost> {
        let skip = usize::try_from(from % BLOCK).unwrap_or(0);
        let mut last = String::new();
        for _ in 0..TRIES {
            let reply = self.line_run(tools.line(dir, file, from)).await?;
            if tools == Tools::Text {
                let taken = size.map_or(reply.output.len() as u64, |s| s.saturating_sub(from).min(BLOCK));
                return Ok((reply.output, taken));
            }
            let Some(bytes) = tools.decode(&reply.output).filter(|_| reply.lost == 0) else {
                last = "it does not decode".into();
                continue;
            };
            // It may have grown since it was measured, never shrunk.
            let least = size.map_or(0, |s| s.saturating_sub(from - from % BLOCK).min(BLOCKS * BLOCK));
            if (bytes.len() as u64) < least {
                last = format!("{} of {least} bytes came", bytes.len());
                continue;
            }
            let bytes = bytes.get(skip..).unwrap_or_default().to_vec();
            let taken = bytes.len() as u64;
            return Ok((bytes, taken));
        }
        Err(Cause::Output(format!(
            "the command's output could not be fetched over the console, tried {TRIES} times: {last}"
        ))
        .into())
    }

    /// Finds out what the guest encodes with, by having it encode something.
    async fn find_tools(&mut self) -> Result<Tools, Lost> {
        for tools in ENCODERS {
            let (Tools::Base64(program) | Tools::Hex(program)) = tools else { continue };
            let reply = self.line_run(format!("echo Belljar|{program} 2>/dev/null")).await?;
            if reply.code == 0 && tools.decode(&reply.output).as_deref() == Some(b"Belljar\n") {
                return Ok(*tools);
            }
        }
        Ok(Tools::Text)
    }

    /// A directory of its own for one command.
    pub(super) async fn make_dir(&mut self) -> Result<String, Lost> {
        let name = random_name()?;
        let line = format!(
            "for _t in /run /tmp /dev/shm /var/tmp '';do _d=$_t/.belljar-{name};\
             (umask 077;mkdir $_d) 2>/dev/null&&: >$_d/x&&echo \"dir=$_d\"&&break;done"
        );
        let reply = self.line_run(line).await?;
        let text = reply.text();
        text.lines()
            .find_map(|l| l.trim().strip_prefix("dir="))
            .filter(|d| d.ends_with(&name) && d.len() < 64)
            .map(str::to_owned)
            .ok_or_else(|| Cause::Shell(format!("the guest has no directory that can be written to: {text}")).into())
    }

    pub(super) async fn write_file(&mut self, dir: &str, name: &str, content: &[u8]) -> Result<(), Lost> {
        let path = script::word(&format!("{dir}/{name}"));
        let end = random_name()?;
        let line = [format!("cat >{path} <<'{end}'\n").as_bytes(), content, end.as_bytes(), b"\n"].concat();
        let reply = self.line_run(line).await?;
        if reply.code == 0 {
            return Ok(());
        }
        Err(Cause::Shell(format!("the guest could not write the command to {path}: {}", reply.text())).into())
    }
}

/// The answer to a look: the code file, an empty line, two sizes.
fn read_look(output: &[u8], nonce: &str) -> (Option<End>, Option<[u64; 2]>) {
    let text = String::from_utf8_lossy(output);
    let mut lines = text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('['));
    let mut sizes = Vec::new();
    let mut end = None;
    for line in lines.by_ref() {
        if line.starts_with(nonce) {
            end = script::read_code(format!("{line}\n").as_bytes(), nonce);
        } else if let Ok(size) = line.parse::<u64>() {
            sizes.push(size);
        }
    }
    // With a foreign line among them nothing is known; the next look will tell.
    (end, <[u64; 2]>::try_from(sizes).ok())
}

/// Decodes base64 with any line breaks; `None` for anything else in it.
fn base64(text: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len() / 4 * 3);
    let mut bits = 0u32;
    let mut count = 0;
    let mut padding = 0;
    for &b in text {
        let value = match b {
            b'A'..=b'Z' => b - b'A',
            b'a'..=b'z' => b - b'a' + 26,
            b'0'..=b'9' => b - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            b'=' => {
                padding += 1;
                continue;
            }
            b'\n' | b'\r' => continue,
            _ => return None,
        };
        if padding > 0 {
            return None;
        }
        bits = bits << 6 | u32::from(value);
        count += 1;
        if count % 4 == 0 {
            out.extend_from_slice(&bits.to_be_bytes()[1..]);
        }
    }
    match (count % 4, padding) {
        (0, 0) => {}
        (2, 2) => out.push((bits >> 4 & 0xff) as u8),
        (3, 1) => out.extend_from_slice(&(bits >> 2 & 0xffff).to_be_bytes()[2..]),
        _ => return None,
    }
    Some(out)
}

/// Decodes hexadecimal digits in pairs with any blanks; `None` for anything else in it.
fn hex(text: &[u8]) -> Option<Vec<u8>> {
    let digits: Vec<u8> = text.iter().copied().filter(|b| !b.is_ascii_whitespace()).collect();
    if !digits.len().is_multiple_of(2) {
        return None;
    }
    digits
        .chunks_exact(2)
        .map(|pair| {
            let digit = |b: u8| char::from(b).to_digit(16).and_then(|d| u8::try_from(d).ok());
            Some(digit(pair[0])? << 4 | digit(pair[1])?)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::agent::OutputEnd;
    use proptest::prelude::*;

    #[test]
    fn what_a_guest_encodes_is_decoded() {
        assert_eq!(base64(b"QmVsbGphcgo=\r\n").as_deref(), Some(&b"Belljar\n"[..]));
        assert_eq!(base64(b"QUJD\nQQ==\n").as_deref(), Some(&b"ABCA"[..]));
        assert_eq!(base64(b"").as_deref(), Some(&b""[..]));
        assert_eq!(hex(b" 42 65\n 0a\n").as_deref(), Some(&b"Be\n"[..]));
        for damaged in ["QmVs[    1.234567] bGphcgo=", "QmVsbGphcgo", "QQ==QQ==", "Q"] {
            assert_eq!(base64(damaged.as_bytes()), None, "{damaged}");
        }
        assert_eq!(hex(b"4265 6"), None);
        assert_eq!(hex(b"+1"), None);
    }

    #[test]
    fn a_look_with_a_foreign_line_tells_nothing_wrong() {
        assert_eq!(
            read_look(b"abc 7 - 5 0 w\n\n5\n0\nover\n", "abc"),
            (
                Some(End { exit: Exit::Code(7), sizes: Some((5, 0)), missing: None, output: OutputEnd::Whole }),
                Some([5, 0])
            )
        );
        assert_eq!(read_look(b"\n5\n[    1.234567] x\n0\n", "abc"), (None, Some([5, 0])));
        assert_eq!(read_look(b"\n5\n12\n0\n", "abc"), (None, None));
        assert_eq!(read_look(b"abc 7 -[    1.234567] x\n 5 0 w\n\n5\n0\n", "abc").0, None);
    }

    proptest! {
        #[test]
        fn real_encoders_are_understood(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            for tools in [Tools::Base64("base64"), Tools::Hex("od -An -v -tx1")] {
                let (Tools::Base64(program) | Tools::Hex(program)) = tools else { continue };
                let dir = tempfile::tempdir().expect("directory");
                let path = dir.path().join("x");
                fs_err::write(&path, &bytes).expect("write");
                let output = std::process::Command::new("sh").arg("-c").arg(format!("{program} <'{}'", path.display())).output().expect("sh");
                prop_assert_eq!(tools.decode(&output.stdout), Some(bytes.clone()));
            }
        }

        #[test]
        fn any_text_is_decoded_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            base64(&bytes);
            hex(&bytes);
            read_look(&bytes, "abc");
        }
    }
}
