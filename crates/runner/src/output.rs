//! What a test writes: to a file whole, in memory only its end, and past whoever reads results out of it.

use std::{
    collections::VecDeque,
    io::{self, Write},
    path::{Path, PathBuf},
};

use belljar_formats::{
    Results,
    libtest::LibtestParser,
    tap::{Dialect, TapParser},
};
use belljar_machine::{
    console::sanitize::Sanitizer,
    session::agent::{OutputEnd, OutputSink, SinkFuture},
};
use belljar_model::test_run::{MAX_TAIL, Stream, keep_end};
use belljar_suite::config::Format;
use fs_err::File;

/// A test's output, in the directory of its try.
pub(crate) const OUTPUT: &str = "output.log";
/// Most bytes of a test's output that are kept in its file.
pub(crate) const MAX_FILE: u64 = 256 * 1024 * 1024;
/// Bytes of which the tail is made: control sequences fall out of it.
const RAW_TAIL: usize = MAX_TAIL * 2;

/// Who reads results out of standard output.
enum Reader {
    Nobody,
    Tap(Box<TapParser>),
    Libtest(Box<LibtestParser>),
}

/// Takes the output of one command.
pub(crate) struct Recorder {
    path: PathBuf,
    file: Option<File>,
    limit: u64,
    stdout: u64,
    stderr: u64,
    tail: VecDeque<u8>,
    reader: Reader,
    /// Processes that the command left behind went on writing.
    cut: bool,
}

/// What was recorded.
#[derive(Debug)]
pub(crate) struct Recorded {
    /// Which streams there was something on; none if nothing was written.
    pub(crate) stream: Option<Stream>,
    /// Bytes of both.
    pub(crate) bytes: u64,
    /// Whether the file lacks some.
    pub(crate) truncated: bool,
    /// Why the file lacks some, where a limit was reached.
    pub(crate) over_limit: Option<String>,
    /// The end, fit to be shown.
    pub(crate) tail: String,
    /// What was read out of it, where something was to be.
    pub(crate) results: Option<Results>,
}

impl Recorder {
    /// Records to `path`, which is made with the first byte.
    pub(crate) fn new(path: &Path, format: Format) -> Self {
        let reader = match format {
            Format::Exit | Format::Junit => Reader::Nobody,
            Format::Tap => Reader::Tap(Box::new(TapParser::new(Dialect::Tap))),
            Format::Kselftest => Reader::Tap(Box::new(TapParser::new(Dialect::Kselftest))),
            Format::Libtest => Reader::Libtest(Box::default()),
        };
        Self {
            path: path.to_owned(),
            file: None,
            limit: MAX_FILE,
            stdout: 0,
            stderr: 0,
            tail: VecDeque::new(),
            reader,
            cut: false,
        }
    }

    /// The directory of what is recorded.
    pub(crate) fn place(&self) -> PathBuf {
        self.path.parent().unwrap_or(Path::new("")).to_owned()
    }

    /// Ends the recording.
    pub(crate) fn finish(self) -> Recorded {
        let bytes = self.stdout + self.stderr;
        let raw: Vec<u8> = self.tail.into();
        let tail = clean(&raw);
        let mut shown = keep_end(&tail, MAX_TAIL);
        if bytes > shown.len() as u64 && shown.len() > MAX_TAIL / 2 {
            // A line that was cut in two says nothing.
            shown = shown.split_once('\n').map_or(shown, |(_, rest)| rest);
        }
        let mut results = match self.reader {
            Reader::Nobody => None,
            Reader::Tap(parser) => Some(clean_results(parser.finish())),
            Reader::Libtest(parser) => Some(clean_results(parser.finish())),
        };
        if self.cut
            && let Some(results) = &mut results
        {
            results.problem(
                "its output was cut off, since processes that the test left behind went on writing: its results are not known",
            );
        }
        Recorded {
            stream: match (self.stdout > 0, self.stderr > 0) {
                (true, true) => Some(Stream::Combined),
                (true, false) => Some(Stream::Stdout),
                (false, true) => Some(Stream::Stderr),
                (false, false) => None,
            },
            bytes,
            truncated: bytes > self.limit || self.cut,
            over_limit: (bytes > self.limit)
                .then(|| format!("it wrote {bytes} bytes of output, of which {OUTPUT} has the first {}", self.limit)),
            tail: shown.to_owned(),
            results,
        }
    }

    fn keep(&mut self, bytes: &[u8]) -> io::Result<()> {
        let kept = self.stdout + self.stderr;
        let room = usize::try_from(self.limit.saturating_sub(kept)).unwrap_or(usize::MAX);
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(File::options().write(true).create_new(true).open(&self.path)?),
        };
        file.write_all(&bytes[..room.min(bytes.len())])?;
        let last = &bytes[bytes.len().saturating_sub(RAW_TAIL)..];
        let surplus = (self.tail.len() + last.len()).saturating_sub(RAW_TAIL);
        self.tail.drain(..surplus.min(self.tail.len()));
        self.tail.extend(last);
        Ok(())
    }
}

/// Text of a guest without control sequences, fit for the event log.
pub(crate) fn clean(raw: &[u8]) -> String {
    let mut text = String::new();
    let mut sanitizer = Sanitizer::new();
    sanitizer.push(raw, &mut text);
    sanitizer.finish(&mut text);
    text
}

/// The same for all that a test says of itself; names are one line each.
pub(crate) fn clean_results(mut results: Results) -> Results {
    fn cleaned(text: &mut String) {
        if text.chars().any(|c| !matches!(c, ' '..='~')) {
            *text = clean(text.as_bytes());
        }
    }
    for case in &mut results.cases {
        cleaned(&mut case.name);
        if case.name.contains(['\n', '\t']) {
            case.name = case.name.replace(['\n', '\t'], " ");
        }
        case.message.iter_mut().for_each(cleaned);
    }
    results.problems.iter_mut().for_each(cleaned);
    results.skipped.iter_mut().for_each(cleaned);
    results
}

impl OutputSink for Recorder {
    fn left_open(&mut self, how: OutputEnd) {
        self.cut |= how == OutputEnd::Cut;
    }

    fn stdout<'a>(&'a mut self, bytes: &'a [u8]) -> SinkFuture<'a> {
        Box::pin(async move {
            self.keep(bytes)?;
            self.stdout += bytes.len() as u64;
            match &mut self.reader {
                Reader::Nobody => {}
                Reader::Tap(parser) => parser.feed(bytes),
                Reader::Libtest(parser) => parser.feed(bytes),
            }
            Ok(())
        })
    }

    fn stderr<'a>(&'a mut self, bytes: &'a [u8]) -> SinkFuture<'a> {
        Box::pin(async move {
            self.keep(bytes)?;
            self.stderr += bytes.len() as u64;
            Ok(())
        })
    }
}

/// Takes a short answer of a command of Belljar's own.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    /// Standard output, as far as it was kept.
    pub(crate) stdout: Vec<u8>,
    /// Standard error, as far as it was kept.
    pub(crate) stderr: Vec<u8>,
    /// Whether something was not kept.
    pub(crate) cut: bool,
}

/// Most bytes of an answer.
const MAX_ANSWER: usize = 16 * 1024 * 1024;

impl Answer {
    fn take(kept: &mut Vec<u8>, cut: &mut bool, bytes: &[u8]) {
        let room = MAX_ANSWER.saturating_sub(kept.len());
        *cut |= room < bytes.len();
        kept.extend_from_slice(&bytes[..room.min(bytes.len())]);
    }
}

impl OutputSink for Answer {
    fn left_open(&mut self, how: OutputEnd) {
        self.cut |= how == OutputEnd::Cut;
    }

    fn stdout<'a>(&'a mut self, bytes: &'a [u8]) -> SinkFuture<'a> {
        Self::take(&mut self.stdout, &mut self.cut, bytes);
        Box::pin(async { Ok(()) })
    }

    fn stderr<'a>(&'a mut self, bytes: &'a [u8]) -> SinkFuture<'a> {
        Self::take(&mut self.stderr, &mut self.cut, bytes);
        Box::pin(async { Ok(()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn whole_in_the_file_and_the_end_in_memory() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("output.log");
        let mut recorder = Recorder::new(&path, Format::Exit);
        for n in 0..5000 {
            recorder.stdout(format!("line {n}\n").as_bytes()).await.unwrap();
        }
        recorder.stderr(b"\x1b[31mlast\x1b[0m\n").await.unwrap();
        let recorded = recorder.finish();
        assert_eq!(recorded.stream, Some(Stream::Combined));
        assert_eq!(recorded.bytes, fs_err::metadata(&path).unwrap().len());
        assert!(!recorded.truncated && recorded.over_limit.is_none());
        assert!(recorded.tail.len() <= MAX_TAIL);
        assert!(
            recorded.tail.starts_with("line ") && recorded.tail.ends_with("line 4999\nlast\n"),
            "{}",
            recorded.tail
        );
    }

    #[tokio::test]
    async fn a_flood_is_cut_in_the_file_and_said() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("output.log");
        let mut recorder = Recorder { limit: 10, ..Recorder::new(&path, Format::Exit) };
        recorder.stdout(b"0123456").await.unwrap();
        recorder.stdout(b"789abc").await.unwrap();
        recorder.stdout(b"def").await.unwrap();
        let recorded = recorder.finish();
        assert_eq!(fs_err::read(&path).unwrap(), b"0123456789");
        assert!(recorded.truncated);
        let said = recorded.over_limit.as_deref();
        assert_eq!(said, Some("it wrote 16 bytes of output, of which output.log has the first 10"));
        assert_eq!((recorded.bytes, recorded.tail.as_str()), (16, "0123456789abcdef"));
    }

    #[tokio::test]
    async fn silence_leaves_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("output.log");
        let recorded = Recorder::new(&path, Format::Tap).finish();
        assert_eq!(recorded.stream, None);
        assert!(!path.exists());
        assert!(recorded.results.is_some());
    }
}
