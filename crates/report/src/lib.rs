//! Events made readable. A reporter reads events and nothing else.
//!
//! Of `belljar test`: [`terminal`] tells while it goes; [`junit`], [`tap`] and [`html`] write a whole
//! [`RunSummary`], during the run by way of [`AtEnd`], or later from the log.

use std::{
    io::{self, Write},
    str::FromStr,
};

use belljar_model::{Event, RunSummary};

pub mod html;
pub mod junit;
pub mod run;
pub mod tap;
pub mod terminal;
pub mod words;

/// Takes events as they come.
pub trait Reporter {
    /// Takes one event.
    ///
    /// # Errors
    /// If it cannot be written.
    fn on_event(&mut self, event: &Event) -> io::Result<()>;

    /// Takes note that there are no more.
    ///
    /// # Errors
    /// If it cannot be written.
    fn finish(self: Box<Self>) -> io::Result<()>;
}

/// What a whole run can be written as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// [`junit`].
    Junit,
    /// [`tap`].
    Tap,
    /// [`html`].
    Html,
}

impl FromStr for Format {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "junit" => Ok(Self::Junit),
            "tap" => Ok(Self::Tap),
            "html" => Ok(Self::Html),
            other => Err(format!("there is no report format `{other}`; there are junit, tap and html")),
        }
    }
}

impl Format {
    /// Writes `run`. `run_dir` is where the run's directory is, seen from the reader of the report; an empty one is beside it.
    ///
    /// # Errors
    /// If `out` cannot be written to.
    pub fn write(self, run: &RunSummary, run_dir: &str, out: &mut dyn Write) -> io::Result<()> {
        let mut buffered = io::BufWriter::new(out);
        self.write_all(run, run_dir, &mut buffered)?;
        buffered.flush()
    }

    fn write_all(self, run: &RunSummary, run_dir: &str, out: &mut dyn Write) -> io::Result<()> {
        match self {
            Self::Junit => {
                let run_dir = if run_dir.is_empty() { "." } else { run_dir };
                let options = junit::Options { run_dir: Some(run_dir.to_owned()), ..junit::Options::default() };
                junit::write(run, &options, out)
            }
            Self::Tap => tap::write(run, out),
            Self::Html => html::write(run, run_dir, out),
        }
    }
}

/// Gathers a run and writes it when it is over.
pub struct AtEnd<W> {
    run: RunSummary,
    format: Format,
    run_dir: String,
    out: W,
}

impl<W: Write> AtEnd<W> {
    /// Will write to `out`; see [`Format::write`].
    pub fn new(format: Format, run_dir: impl Into<String>, out: W) -> Self {
        Self { run: RunSummary::default(), format, run_dir: run_dir.into(), out }
    }
}

impl<W: Write> Reporter for AtEnd<W> {
    fn on_event(&mut self, event: &Event) -> io::Result<()> {
        self.run.apply(event);
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> io::Result<()> {
        self.format.write(&self.run, &self.run_dir, &mut self.out)?;
        self.out.flush()
    }
}
