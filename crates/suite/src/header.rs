//! Headers of test files: comment lines `# belljar: timeout = "10m"` in the first 4 KiB.
//!
//! A comment begins with `#`, `//` or `--`; what follows `belljar:` is TOML, each line for itself. A line that begins in the
//! first 4 KiB counts whole. Binary files have no header.

use std::{collections::BTreeSet, ops::Range, path::Path};

use crate::{
    config::{HeaderTable, check_header, layer_of_header},
    diagnostic::{Diagnostic, Diagnostics, SourceText},
    settings::Layer,
    toml_tree::Walk,
};

/// Headers begin within so many bytes of a file.
pub const REACH: usize = 4096;
/// No line of a header is longer.
pub const LINE: usize = 4096;

/// What a test file says of itself.
#[derive(Clone, Debug, Default)]
pub struct Header {
    /// Its settings.
    pub layer: Layer,
    /// The guests to run on, with their places in the file.
    pub guests: Option<Vec<(String, Range<usize>)>>,
    /// Where the keys that need a guest of their own stand.
    pub(crate) hardware: Vec<(&'static str, Range<usize>)>,
    /// Where the group stands.
    pub(crate) group: Option<Range<usize>>,
}

/// Reads the header in the first bytes of a file, of which [`REACH`] + [`LINE`] are enough. `name` is for messages.
///
/// # Errors
///
/// All mistakes.
pub fn read(name: &Path, dir: &Path, start: &[u8]) -> Result<Header, Diagnostics> {
    if is_binary(start) {
        return Ok(Header::default());
    }
    // Cut at a character; a test's own bytes need not be UTF-8, and then places are counted in what is shown.
    let text = String::from_utf8_lossy(start);
    let source = SourceText::new(name, &text);
    let mut header = Header::default();
    let mut diagnostics = Diagnostics::default();
    let mut seen = BTreeSet::new();
    for (offset, toml) in lines(&text) {
        if let Err(wrong) = parse_into(&mut header, &mut seen, &source, offset, dir, toml) {
            diagnostics.append(wrong);
        }
    }
    if diagnostics.is_empty() { Ok(header) } else { Err(diagnostics.sorted()) }
}

/// Whether these are the first bytes of something that has no comments.
#[must_use]
pub fn is_binary(start: &[u8]) -> bool {
    start[..start.len().min(REACH)].contains(&0)
}

/// The TOML of each header line, with the place where it begins.
fn lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut at = 0;
    text.split_inclusive('\n').filter_map(move |line| {
        let start = at;
        at += line.len();
        if start >= REACH {
            return None;
        }
        let rest = line.trim_start();
        let rest = ["#", "//", "--"].iter().find_map(|mark| rest.strip_prefix(mark))?;
        let toml = rest.trim_start().strip_prefix("belljar:")?;
        Some((start + (line.len() - toml.len()), toml.trim_end_matches(['\n', '\r'])))
    })
}

/// Reads one line of a header that begins at `offset` of `source`.
///
/// # Errors
///
/// All mistakes.
pub fn parse(source: &SourceText, offset: usize, dir: &Path, toml: &str) -> Result<Header, Diagnostics> {
    let mut header = Header::default();
    parse_into(&mut header, &mut BTreeSet::new(), source, offset, dir, toml)?;
    Ok(header)
}

fn parse_into(
    header: &mut Header,
    seen: &mut BTreeSet<&'static str>,
    source: &SourceText,
    offset: usize,
    dir: &Path,
    toml: &str,
) -> Result<(), Diagnostics> {
    let (table, mut walk) = Walk::read::<HeaderTable>(source, offset, toml);
    let Some(table) = table else { return Err(walk.finish()) };
    check_header(&table, &mut walk);
    for key in &table.seen {
        if !seen.insert(key) {
            let place = walk.place(0..toml.len());
            walk.push(Diagnostic::error(format!("`{key}` stands in an earlier header line already")).at(place));
        }
    }
    let at = |range: Range<usize>| offset + range.start..offset + range.end;
    if let Some(guests) = &table.guests {
        let names = guests.get_ref().0.iter().map(|g| (g.get_ref().0.clone(), at(g.span())));
        header.guests = Some(names.collect());
    }
    let hardware = [
        ("memory", table.memory.as_ref().map(toml::Spanned::span)),
        ("cpus", table.cpus.as_ref().map(toml::Spanned::span)),
        ("spare-cpus", table.spare_cpus.as_ref().map(toml::Spanned::span)),
        ("spare-memory", table.spare_memory.as_ref().map(toml::Spanned::span)),
        ("nic", table.nic.as_ref().map(toml::Spanned::span)),
        ("boot-lab", table.boot_lab.as_ref().map(toml::Spanned::span)),
        ("disks", table.disks.as_ref().map(toml::Spanned::span)),
        ("workspace-mode", table.workspace_mode.as_ref().map(toml::Spanned::span)),
    ];
    header.hardware.extend(hardware.into_iter().filter_map(|(key, span)| Some((key, at(span?)))));
    header.group = header.group.take().or_else(|| table.group.as_ref().map(|g| at(g.span())));
    header.layer = layer_of_header(&table, dir).over(&header.layer);
    let diagnostics = walk.finish();
    if diagnostics.is_empty() { Ok(()) } else { Err(diagnostics) }
}
