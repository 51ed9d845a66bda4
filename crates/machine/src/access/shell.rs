//! A POSIX shell on the serial line, driven one line at a time.
//!
//! Each line is framed by markers of the shell's own (see `answer`), and the shell keeps the code of the last line in a
//! variable: an answer that was lost is asked for again, so no code is ever lost or made up.

mod lines;

use std::time::Duration;

use super::answer::{self, Answer, UNFINISHED, quote};
use crate::console::{Console, ConsoleView, ExpectError, Match, Patience, Pattern, SendError};

/// How long an interrupted shell may take to answer before it is interrupted again.
const INTERRUPT_AGAIN: Duration = Duration::from_secs(10);
/// How long the line is silent before an answer that seems to have come in pieces is asked for again.
const DAMAGED: Duration = Duration::from_millis(300);
/// How long the line is silent before a line that did not even begin is asked about.
const UNHEARD: Duration = Duration::from_secs(4);
/// How long the line is silent before a line that has begun is asked about the first time; then twice as long each time.
/// What is typed waits in the terminal until the shell reads it, so there must not be much of it.
const UNFINISHED_FIRST: Duration = Duration::from_secs(20);
/// The same where no second copy of the answer was asked for, which would tell at once that the shell gave the line up.
const UNFINISHED_ECHOING: Duration = Duration::from_secs(3);
const ASKED_MOST: u32 = 10;
/// How often a line that did not begin is typed again.
const TRIES: u32 = 6;
/// Longest text that is typed within one line; longer ones are put together from pieces of this size.
pub(crate) const PIECE: usize = 600;

/// Most bytes that may be typed before the shell has read any of them.
const UNREAD_MAX: usize = 3000;

/// What a line did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShellReply {
    /// Its exit code, exact; `128 + N` for signal N.
    pub code: u8,
    /// What it printed, stdout and stderr in one, without escape sequences and with `\n` at the ends of lines.
    /// Messages of the kernel may be in it.
    pub output: Vec<u8>,
    /// Bytes at the start of the output that were given up for want of room.
    pub lost: usize,
}

impl ShellReply {
    /// The output as text, without blanks at its ends.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.output).trim().to_owned()
    }
}

/// Why a line has no result.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ShellError {
    /// Nothing more came.
    #[error("no answer from the guest's shell: {0}")]
    Expect(#[from] ExpectError),
    /// Nothing can be typed.
    #[error("cannot type to the guest's shell: {0}")]
    Send(#[from] SendError),
    /// The shell gave the line up before it ended, as for a syntax error.
    #[error("the guest's shell gave the line up: {}", String::from_utf8_lossy(output).trim())]
    Aborted {
        /// What it printed.
        output: Vec<u8>,
    },
    /// The shell has ended: something else is on the line.
    #[error("the guest's shell is gone; the line shows \"{line}\"")]
    Gone {
        /// The open line.
        line: String,
    },
    /// The shell takes in nothing that makes sense.
    #[error(
        "what is typed to the guest's shell does not arrive, tried {tries} times{}",
        crate::console::show_tail(tail)
    )]
    Unheard {
        /// How often.
        tries: u32,
        /// The last lines of the console.
        tail: Vec<String>,
    },
    /// The guest has no `printf`, with which longer texts are put together.
    #[error("a line of {length} bytes is too long to be typed to a guest without printf")]
    TooLong {
        /// Its length in bytes.
        length: usize,
    },
    /// No random number for the markers.
    #[error("no random numbers from the system: {0}")]
    Random(#[from] getrandom::Error),
}

/// A shell on the line, made quiet: no prompt, and where the guest can, no echo.
#[derive(Debug)]
pub struct Shell {
    console: Console,
    tag: String,
    seq: u64,
    asks: u64,
    echo: bool,
    /// Whether kernel and services are asked to leave the line alone.
    calm: bool,
    root: Option<bool>,
    printf: Option<bool>,
    /// The kernel's console log level before we lowered it.
    log_level: Option<String>,
    /// Why there is only this shell, where that may be otherwise the next time.
    pub(crate) makeshift: Option<String>,
}

/// Cuts what a foreground line says to its terminal out of the raw stream.
#[derive(Debug)]
pub(crate) struct Foreground {
    begin: Vec<u8>,
    end: Vec<u8>,
    begun: bool,
    ended: bool,
    /// Bytes that may be the start of a marker.
    held: Vec<u8>,
}

impl Foreground {
    /// Takes raw bytes; gives those that are the line's own.
    pub(crate) fn cut(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.held.extend_from_slice(bytes);
        if self.ended {
            self.held.clear();
        }
        if !self.begun {
            let Some(at) = memchr::memmem::find(&self.held, &self.begin) else {
                let keep = self.held.len().saturating_sub(self.begin.len());
                self.held.drain(..keep);
                return Vec::new();
            };
            self.held.drain(..at + self.begin.len());
            self.begun = true;
        }
        if let Some(at) = memchr::memmem::find(&self.held, &self.end) {
            self.ended = true;
            self.held.truncate(at);
            return std::mem::take(&mut self.held);
        }
        // What may still become the marker stays.
        let possible = (1..self.end.len()).rev().find(|n| self.held.ends_with(&self.end[..*n])).unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - possible);
        std::mem::replace(&mut self.held, rest)
    }

    /// Whether the marker of the end was seen.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended
    }
}

/// How to get a POSIX shell out of the one that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Launch {
    /// It is one.
    Stay,
    /// Type this; it may run within, or replace, the shell that is there.
    Type(&'static str),
}

impl Shell {
    /// Makes a session with the shell on the line.
    pub(super) async fn adopt(
        console: &Console,
        launch: Launch,
        calm: bool,
        patience: &mut Patience,
    ) -> Result<Self, ShellError> {
        let mut shell = Shell {
            console: console.share(),
            tag: answer::new_tag()?,
            seq: 0,
            asks: 1,
            echo: true,
            calm,
            root: None,
            printf: None,
            log_level: None,
            makeshift: None,
        };
        console.leave_out(&shell.tag);
        if let Launch::Type(text) = launch {
            shell.console.send(format!("{text}\n").as_bytes()).await?;
        }
        shell.settle(patience).await?;
        Ok(shell)
    }

    /// Takes the shell's prompt, echo, history and line editor away, and learns who it runs as.
    async fn settle(&mut self, patience: &mut Patience) -> Result<(), ShellError> {
        // Short lines, one after the other: nothing is known yet of what reads them.
        let first = format!("PS1= PS2= _b={} _s=0 _c=0", self.tag);
        self.tell(&first, patience).await?;
        // `command` keeps a refusal from ending the line in dash. A line editor would ring, complete and wrap.
        self.tell("TERM=dumb;export TERM;unset PROMPT_COMMAND ENV HISTFILE MAIL MAILPATH", patience).await?;
        self.tell("for _o in history emacs vi;do command set +o $_o;done 2>/dev/null", patience).await?;
        // Without echo, busybox's shell reads with `fgets`, takes the end of any background process for the end of its input,
        // and leaves; as the first process it takes the guest along. With its line editor it does not. So the echo goes only
        // where the shell is known to be another.
        let quieten = "case $BASH_VERSION$KSH_VERSION$ZSH_VERSION$(readlink /proc/$$/exe 2>/dev/null) in \
                       ''|*busybox*|*toybox*);;*)stty -echo 2>/dev/null;;esac";
        self.tell(quieten, patience).await?;
        // Did that help? The next line shows it.
        let probe = self.tell(":", patience).await?;
        self.echo = memchr::memmem::find(&probe.before, b"<$_b:").is_some();
        if self.calm {
            self.calm_down(patience).await?;
        }
        self.learn_user(patience).await
    }

    async fn calm_down(&mut self, patience: &mut Patience) -> Result<(), ShellError> {
        // Errors and worse still show, so that a hung task is seen; the framing can stand them.
        // (`read` alone gets one digit: it reads byte by byte, and these files have only a first byte.)
        let lower = "_f=/proc/sys/kernel/printk;_k=$(cat $_f)||read -r _k <$_f;_k=${_k%%[!0-9]*};\
                     [ \"$_k\" -gt 4 ]&&echo 4 >$_f&&echo $_k";
        let level = self.run(lower, patience).await?;
        self.log_level = (level.code == 0).then(|| level.text()).filter(|t| t.len() < 4 && t.parse::<u8>().is_ok());
        // systemd's own "status messages off", so that it stops writing over the line while it boots on.
        self.run("[ -d /run/systemd/system ]&&kill -55 1", patience).await?;
        Ok(())
    }

    async fn learn_user(&mut self, patience: &mut Patience) -> Result<(), ShellError> {
        let status = "while read -r _k _o _u;do [ \"$_k\" = Uid: ]&&echo \"uid=$_o\"&&break;done </proc/self/status";
        for way in [status, "echo \"uid=$(id -u)\""] {
            let reply = self.run(way, patience).await?;
            let uid = String::from_utf8_lossy(&reply.output)
                .lines()
                .find_map(|l| l.trim().strip_prefix("uid=").and_then(|n| n.parse::<u32>().ok()));
            if let Some(uid) = uid {
                self.root = Some(uid == 0);
                return Ok(());
            }
        }
        Ok(())
    }

    /// Types a line that may be run twice, until it was heard.
    async fn tell(&mut self, line: &str, patience: &mut Patience) -> Result<Match, ShellError> {
        for attempt in 0..TRIES {
            let ask = self.next_ask();
            // From the third time on, end whatever reads our lines instead of the shell.
            let prefix = if attempt >= 2 { "\x03\x15\n" } else { "" };
            self.console.send(format!("{prefix}{line};{}\n", answer::ask(ask)).as_bytes()).await?;
            let mut before = Vec::new();
            let mut lost = 0;
            while let Some((mut found, heard)) = self.listen(|_| UNHEARD / 2 * (attempt + 1), patience).await? {
                before.append(&mut found.before);
                lost += found.lost;
                if matches!(heard, Answer::State { ask: a, .. } if a == ask) {
                    return Ok(Match { before, lost, ..found });
                }
            }
        }
        Err(self.unheard())
    }

    fn unheard(&self) -> ShellError {
        ShellError::Unheard { tries: TRIES, tail: self.console.tail(15) }
    }

    fn next_ask(&mut self) -> u64 {
        self.asks += 1;
        self.asks
    }

    /// The next answer, or nothing after this much silence.
    async fn listen(
        &mut self,
        quiet: impl Fn(&[u8]) -> Duration,
        patience: &mut Patience,
    ) -> Result<Option<(Match, Answer)>, ShellError> {
        let pattern: [Pattern; 1] = [answer::pattern(&self.tag)];
        let found = self.console.expect_unless_quiet(&pattern, quiet, patience).await?;
        Ok(found.and_then(|m| answer::parse(&m.payload).map(|a| (m, a))))
    }

    /// Runs one line in this shell (so that `cd` and variables last) with an empty standard input, and waits for its end.
    ///
    /// If the future is dropped the line goes on in the guest; see [`Shell::interrupt`].
    ///
    /// # Errors
    ///
    /// Never for a line that fails, only when there is no result.
    pub async fn run(&mut self, line: impl AsRef<[u8]>, patience: &mut Patience) -> Result<ShellReply, ShellError> {
        let line = line.as_ref();
        let text = quote(line);
        let easy = text.len() <= PIECE && text.iter().all(|b| (0x20..0x7f).contains(b));
        if easy {
            return self.run_word(&String::from_utf8_lossy(&text), patience).await;
        }
        let word = self.deliver(line, patience).await?;
        self.run_word(&word, patience).await
    }

    /// Runs what this word of shell syntax expands to.
    async fn run_word(&mut self, word: &str, patience: &mut Patience) -> Result<ShellReply, ShellError> {
        self.seq += 1;
        let seq = self.seq;
        let framed = frame(seq, &format!("eval {word} </dev/null"));
        let mut output = Vec::new();
        let mut lost = 0;
        let mut begun = false;
        let mut tries = 1;
        let mut asked = 0;
        let mut interrupted = false;
        // How much of the unread text was there when we last asked: pieces of an answer in it are dealt with.
        let mut noticed = 0;
        let mut last_ask = self.type_framed(&framed).await?;
        loop {
            let usual = match (begun, self.echo) {
                (false, _) => UNHEARD,
                (true, false) => UNFINISHED_FIRST,
                (true, true) => UNFINISHED_ECHOING,
            } * (1 << asked);
            let tag = self.tag.clone();
            let quiet = |unread: &[u8]| {
                let damaged = asked < ASKED_MOST && answer::fragments(&tag, unread.get(noticed..).unwrap_or(unread));
                if damaged { DAMAGED } else { usual }
            };
            let heard = self.listen(quiet, patience).await?;
            if heard.is_some() {
                noticed = 0;
            }
            match heard {
                Some((mut found, Answer::Begins { seq: s })) if s == seq => {
                    // Whatever came before is not of this line, echo included.
                    begun = true;
                    output.clear();
                    lost = 0;
                    found.before.clear();
                }
                Some((found, Answer::State { seq: s, code, .. })) if s == seq => {
                    lost += found.lost;
                    output.extend_from_slice(&found.before);
                    let output = self.tidy(&output);
                    if interrupted {
                        return Err(self.unheard());
                    }
                    return match code {
                        UNFINISHED => Err(ShellError::Aborted { output }),
                        // ksh93 says 256 + N for signal N.
                        256.. => Ok(ShellReply { code: (code as u8) | 0x80, output, lost }),
                        _ => Ok(ShellReply { code: code as u8, output, lost }),
                    };
                }
                Some((found, Answer::State { ask, .. })) => {
                    lost += found.lost;
                    output.extend_from_slice(&found.before);
                    // An answer to a question typed after the line: the shell has read the line and it did not begin.
                    if ask == last_ask {
                        // If it did begin, the shell's variables were tampered with, and nothing can be known.
                        if tries == TRIES || begun {
                            return Err(self.unheard());
                        }
                        tries += 1;
                        self.console.send(b"\x15\n").await?;
                        last_ask = self.type_framed(&framed).await?;
                    }
                }
                Some((found, _)) => output.extend_from_slice(&found.before),
                None => {
                    self.still_there()?;
                    if asked < ASKED_MOST {
                        asked += 1;
                        noticed = self.console.unread().len();
                        if !begun && asked > 3 && !answer::fragments(&self.tag, &self.console.unread()) {
                            // The shell may be within a quotation that lost its end. Whatever code comes after this is
                            // not believed.
                            interrupted = true;
                            self.console.send(b"\x03\n").await?;
                        }
                        last_ask = self.next_ask();
                        self.console.send(format!("{}\n", answer::ask(last_ask)).as_bytes()).await?;
                    }
                }
            }
        }
    }

    /// Starts a line that reads from the terminal and has it to itself; see [`Foreground`]. Nothing else may be asked of the
    /// shell until the end.
    pub(crate) async fn start_foreground(&mut self, line: &str) -> Result<Foreground, ShellError> {
        let word = String::from_utf8_lossy(&quote(line.as_bytes())).into_owned();
        if word.len() > PIECE {
            return Err(ShellError::TooLong { length: line.len() });
        }
        self.seq += 1;
        let seq = self.seq;
        let ask = self.next_ask();
        let foreground = Foreground {
            begin: format!("<{}:{seq}:b:{seq}>", self.tag).into_bytes(),
            end: format!("<{}:{seq}:", self.tag).into_bytes(),
            begun: false,
            ended: false,
            held: Vec::new(),
        };
        let framed = format!("{}stty sane -echo 2>/dev/null;{}", frame(seq, &format!("eval {word}")), answer::ask(ask));
        self.console.send(format!("{framed}\n").as_bytes()).await?;
        Ok(foreground)
    }

    /// Waits for the end of the line that was started last.
    pub(crate) async fn end_foreground(&mut self, patience: &mut Patience) -> Result<u8, ShellError> {
        loop {
            let Some((_, heard)) = self.listen(|_| Duration::MAX, patience).await? else { continue };
            match heard {
                Answer::State { seq, code: UNFINISHED, .. } if seq == self.seq => {
                    return Err(ShellError::Aborted { output: Vec::new() });
                }
                Answer::State { seq, code, .. } if seq == self.seq => {
                    return Ok(if code > 255 { (code as u8) | 0x80 } else { code as u8 });
                }
                _ => {}
            }
        }
    }

    /// Types a framed line and the question for its end; returns the question's number.
    async fn type_framed(&mut self, framed: &str) -> Result<u64, ShellError> {
        let first = self.next_ask();
        self.console.send(format!("{framed}{}\n", answer::ask(first)).as_bytes()).await?;
        if self.echo {
            // The echo of a second line would land in the output.
            return Ok(first);
        }
        // A second copy of the answer, which also comes if the shell gives up the line.
        let second = self.next_ask();
        self.console.send(format!("{}\n", answer::ask(second)).as_bytes()).await?;
        Ok(second)
    }

    /// A login prompt where our shell was: it has ended.
    fn still_there(&self) -> Result<(), ShellError> {
        let line = self.console.open_line();
        if super::sight::is_login_prompt(&line) { Err(ShellError::Gone { line }) } else { Ok(()) }
    }

    /// Brings a text that cannot be typed in one line into the shell's variable `_l`; returns what to `eval`.
    async fn deliver(&mut self, text: &[u8], patience: &mut Patience) -> Result<String, ShellError> {
        let printf = self.has_printf(patience).await?;
        if !printf {
            // Line breaks within quotes go as they are.
            let word = String::from_utf8_lossy(&quote(text)).into_owned();
            let too_long = word.len() > UNREAD_MAX || word.split('\n').any(|l| l.len() > PIECE);
            return if too_long { Err(ShellError::TooLong { length: text.len() }) } else { Ok(word) };
        }
        for _ in 0..TRIES {
            let mut length = 0;
            let mut arrived = self.run_word("_l=", patience).await?.code == 0;
            for (piece, _) in pieces(text) {
                length += piece.len();
                let append = format!(r#"_l="$_l"'{piece}';[ ${{#_l}} = {length} ]"#);
                let word = quote(append.as_bytes());
                arrived = arrived && self.run_word(&String::from_utf8_lossy(&word), patience).await?.code == 0;
                if !arrived {
                    break;
                }
            }
            if arrived {
                return Ok(r#""$(printf "$_l")""#.to_owned());
            }
        }
        Err(self.unheard())
    }

    /// Whether it has a `printf` that knows octal numbers.
    pub(crate) async fn has_printf(&mut self, patience: &mut Patience) -> Result<bool, ShellError> {
        if let Some(known) = self.printf {
            return Ok(known);
        }
        let word = quote(br"[ A = $(printf '\101') ]");
        let reply = self.run_word(&String::from_utf8_lossy(&word), patience).await?;
        Ok(*self.printf.insert(reply.code == 0))
    }

    /// Appends bytes to a file of the guest, whose name is a word of shell syntax. Gives the number of bytes that it took: fewer
    /// than there were where the guest could not write more, and none where it has no `printf`. `patience` is for each line.
    ///
    /// # Errors
    ///
    /// When the shell does not answer.
    pub async fn append(
        &mut self,
        file: &str,
        bytes: &[u8],
        patience: impl Fn() -> Patience,
    ) -> Result<usize, ShellError> {
        if !self.has_printf(&mut patience()).await? {
            return Ok(0);
        }
        let mut taken = 0;
        for (piece, of) in pieces(bytes) {
            // At the start it would be an option.
            let piece = piece.strip_prefix('-').map_or(piece.clone(), |rest| format!("\\055{rest}"));
            // Nothing is written of a line that lost bytes on its way.
            let line = format!(r#"_l='{piece}';[ ${{#_l}} = {} ]&&printf "$_l" >>{file}"#, piece.len());
            let word = String::from_utf8_lossy(&quote(line.as_bytes())).into_owned();
            let mut tries = 0;
            while self.run_word(&word, &mut patience()).await?.code != 0 {
                tries += 1;
                if tries == TRIES {
                    return Ok(taken);
                }
            }
            taken += of;
        }
        Ok(taken)
    }

    /// Output as the line's program meant it.
    fn tidy(&self, raw: &[u8]) -> Vec<u8> {
        let raw = raw.strip_prefix(b"\r\n").or_else(|| raw.strip_prefix(b"\n")).unwrap_or(raw);
        let mut out: Vec<u8> = Vec::with_capacity(raw.len());
        for &b in raw {
            if b == b'\n' && out.last() == Some(&b'\r') {
                out.pop();
            }
            out.push(b);
        }
        if self.echo {
            out = without_asks(&out);
        }
        out
    }

    /// Whether it runs as root; `None` where the guest could not say.
    pub fn root(&self) -> Option<bool> {
        self.root
    }

    /// A watcher of the console underneath.
    pub fn view(&self) -> ConsoleView {
        self.console.view()
    }

    /// The console underneath, for a person's terminal.
    pub fn console_mut(&mut self) -> &mut Console {
        &mut self.console
    }

    /// Ends what runs in the foreground (Ctrl-C) and waits until the shell answers again.
    ///
    /// # Errors
    ///
    /// When it does not.
    pub async fn interrupt(&mut self, patience: &mut Patience) -> Result<(), ShellError> {
        loop {
            self.console.send(b"\x03").await?;
            // One that comes before the command has begun interrupts nothing.
            let mut once = Patience::new(patience.remaining().min(INTERRUPT_AGAIN));
            match self.tell(":", &mut once).await {
                Err(ShellError::Expect(_)) if !patience.remaining().is_zero() => {}
                told => return told.map(|_| ()),
            }
        }
    }

    /// Gives the kernel its messages on the console back; for when another session takes over.
    ///
    /// # Errors
    ///
    /// As [`Shell::run`].
    pub async fn restore_messages(&mut self, patience: &mut Patience) -> Result<(), ShellError> {
        if let Some(level) = self.log_level.take() {
            self.run(&format!("echo {level} >/proc/sys/kernel/printk"), patience).await?;
        }
        Ok(())
    }

    /// Types something that takes the shell elsewhere, such as `sudo sh`, and settles there. A password is typed if asked
    /// for with our own prompt. Fails if the shell is not to be found again; that it is another one is for the caller to see.
    pub(super) async fn enter(
        &mut self,
        line: &str,
        password: Option<&str>,
        patience: &mut Patience,
    ) -> Result<bool, ShellError> {
        self.console.skip_unread();
        self.console.send(format!("{line}\n").as_bytes()).await?;
        let mut typed = false;
        while let Some((_, heard)) = self.listen(|_| UNHEARD, patience).await? {
            if heard == Answer::PasswordWanted {
                match password.filter(|_| !typed) {
                    Some(password) => {
                        self.console.send(format!("{password}\n").as_bytes()).await?;
                        typed = true;
                    }
                    None => self.console.send(b"\x03").await?,
                }
            }
        }
        self.settle(patience).await?;
        Ok(typed)
    }

    /// The name of the variable that holds the tag, as a password prompt that only we can recognise.
    pub(super) const PASSWORD_PROMPT: &'static str = r#""<$_b:0:p:0>""#;
}

/// A command with the marker of its beginning, and its code kept for the question that follows.
///
/// It runs only if the shell has understood the line from its start, so a line that lost bytes can be typed again. That must
/// not hang on the success of `echo`: busybox's fails, although it has printed, when a background process ends meanwhile.
fn frame(seq: u64, command: &str) -> String {
    format!(r#"_s={seq} _c={UNFINISHED};[ $_s = {seq} ]&&{{ echo "<$_b:{seq}:b:{seq}>";{command};_c=$?;}};"#)
}

/// Text for `printf`'s format, made of printable characters that mean nothing within `'…'`, cut into pieces; with each, how
/// many bytes it stands for.
pub(crate) fn pieces(text: &[u8]) -> Vec<(String, usize)> {
    let mut pieces = Vec::new();
    let (mut piece, mut of) = (String::new(), 0);
    for &b in text {
        match b {
            b'%' => piece.push_str("%%"),
            0x20..=0x7e if b != b'\\' && b != b'\'' => piece.push(char::from(b)),
            _ => piece.push_str(&format!("\\{b:03o}")),
        }
        of += 1;
        if piece.len() >= PIECE {
            pieces.push((std::mem::take(&mut piece), std::mem::take(&mut of)));
        }
    }
    if of > 0 {
        pieces.push((piece, of));
    }
    pieces
}

/// Takes the echo of our own questions out.
fn without_asks(output: &[u8]) -> Vec<u8> {
    let start = memchr::memmem::Finder::new(br#"echo "<$_b:$_s:"#);
    let mut out = Vec::with_capacity(output.len());
    let mut rest = output;
    while let Some(at) = start.find(rest) {
        out.extend_from_slice(&rest[..at]);
        rest = &rest[at..];
        let end = memchr::memchr(b'\n', rest).map_or(rest.len(), |n| n + 1);
        rest = &rest[end..];
    }
    out.extend_from_slice(rest);
    out
}
