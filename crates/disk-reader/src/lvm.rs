//! Logical volumes of LVM, as far as they are linear (in pieces that lie one behind the other on physical volumes of this disk).
//!
//! Sources: `lib/format_text/layout.h` of LVM2 for what is where; `lvmsystemid(7)` and `vgcfgbackup(8)` for the text. A physical volume has a label in
//! one of its first four sectors:
//!
//! ```text
//! label          LABELONE, sector, checksum, offset of what follows, "LVM2 001"
//! header         id (32 bytes), size, areas of data, areas of metadata: each a list of offset and size that ends with zeros
//! metadata area  checksum, magic, version, start, size, where the text is in it: offset, size, checksum, flags
//! ```

use std::collections::HashMap;

use crate::bytes::{le32, le64};
use crate::disk::{Part, ReadError};

/// The text of a volume group.
const MAX_TEXT: u64 = 1 << 20;
/// Where the text goes on when it has come to the end of its area.
const AREA_HEADER: u64 = 512;
const AREA_MAGIC: &[u8] = b" LVM2 x[5A%r0N*>";
const SECTOR: u64 = 512;
/// Sections in one another, entries of all of them, logical volumes, pieces of one.
const MAX_DEPTH: usize = 8;
const MAX_ENTRIES: usize = 20_000;
const MAX_VOLUMES: usize = 64;
const MAX_PIECES: usize = 256;

/// A logical volume that can be read.
pub(crate) struct Logical {
    pub(crate) group: String,
    pub(crate) name: String,
    pub(crate) part: Part,
}

/// A value in the text.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Value {
    Number(u64),
    Text(String),
    List(Vec<Value>),
    Section(Section),
}

/// In their order, for that of segments matters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Section(Vec<(String, Value)>);

impl Section {
    fn get(&self, name: &str) -> Option<&Value> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value)
    }

    fn number(&self, name: &str) -> Option<u64> {
        if let Some(Value::Number(number)) = self.get(name) { Some(*number) } else { None }
    }

    fn text(&self, name: &str) -> Option<&str> {
        if let Some(Value::Text(text)) = self.get(name) { Some(text) } else { None }
    }

    fn section(&self, name: &str) -> Option<&Section> {
        if let Some(Value::Section(section)) = self.get(name) { Some(section) } else { None }
    }

    fn sections(&self) -> impl Iterator<Item = (&str, &Section)> {
        self.0.iter().filter_map(
            |(key, value)| if let Value::Section(section) = value { Some((key.as_str(), section)) } else { None },
        )
    }
}

/// Finds the logical volumes on these physical ones; what cannot be read is noted.
pub(crate) fn read(physical: &[(&str, &Part)], notes: &mut Vec<String>) -> Vec<Logical> {
    let mut by_id: HashMap<String, &Part> = HashMap::new();
    // Each physical volume may have the text; that with the highest number is the newest.
    let mut groups: HashMap<String, (u64, Section)> = HashMap::new();
    for &(name, part) in physical {
        match label(part) {
            Ok(Some((id, Some(text)))) => {
                by_id.insert(id, part);
                match parse(&text)
                    .and_then(|top| top.sections().next().map(|(name, group)| (name.to_owned(), group.clone())))
                {
                    Some((group_name, group)) => {
                        let number = group.number("seqno").unwrap_or(0);
                        if groups.get(&group_name).is_none_or(|(other, _)| number > *other) {
                            groups.insert(group_name, (number, group));
                        }
                    }
                    None => notes.push(format!("{name}: what LVM wrote of its volume group cannot be understood")),
                }
            }
            Ok(Some((id, None))) => drop(by_id.insert(id, part)),
            Ok(None) => notes.push(format!("{name}: LVM's description of it is broken")),
            Err(error) => notes.push(format!("{name}: LVM's description of it cannot be read: {error}")),
        }
    }
    let mut groups: Vec<_> = groups.into_iter().collect();
    groups.sort_by(|(a, _), (b, _)| a.cmp(b));
    let mut found = Vec::new();
    for (name, (_, group)) in &groups {
        for (volume, section) in group.section("logical_volumes").iter().flat_map(|all| all.sections()) {
            if found.len() == MAX_VOLUMES {
                notes.push(format!("there are more than {MAX_VOLUMES} logical volumes; the rest was not looked at"));
                return found;
            }
            match map(group, section, &by_id) {
                Ok(part) => found.push(Logical { group: name.clone(), name: volume.to_owned(), part }),
                Err(why) => notes.push(format!("the logical volume {name}/{volume} cannot be read: {why}")),
            }
        }
    }
    found
}

/// Id of a physical volume, and the text in it.
fn label(part: &Part) -> Result<Option<(String, Option<String>)>, ReadError> {
    let head = part.bytes(0, usize::try_from(part.size().min(4 * SECTOR)).unwrap_or(0))?;
    let Some(at) =
        (0..4).map(|sector| sector * 512).find(|&at| head.get(at..).is_some_and(|rest| rest.starts_with(b"LABELONE")))
    else {
        return Ok(None);
    };
    let header = le32(&head, at + 20).and_then(|offset| at.checked_add(usize::try_from(offset).ok()?));
    let Some((header, id)) = header.and_then(|header| Some((header, head.get(header..header.checked_add(32)?)?)))
    else {
        return Ok(None);
    };
    let id = String::from_utf8_lossy(id).into_owned();
    // The areas of data, then those of metadata.
    let mut lists = 0;
    for i in 0..16 {
        let (Some(offset), Some(size)) = (le64(&head, header + 40 + 16 * i), le64(&head, header + 48 + 16 * i)) else {
            break;
        };
        if offset == 0 {
            lists += 1;
        } else if lists == 1
            && let Some(text) = text(part, offset, size)?
        {
            return Ok(Some((id, Some(text))));
        }
        if lists == 2 {
            break;
        }
    }
    Ok(Some((id, None)))
}

/// The text in a metadata area, which is written round and round.
fn text(part: &Part, area: u64, size: u64) -> Result<Option<String>, ReadError> {
    let header = part.bytes(area, 512)?;
    if header.get(4..20) != Some(AREA_MAGIC) {
        return Ok(None);
    }
    let (Some(offset), Some(length)) = (le64(&header, 40), le64(&header, 48)) else { return Ok(None) };
    if offset < AREA_HEADER || offset >= size || length == 0 || length > MAX_TEXT.min(size) {
        return Ok(None);
    }
    let first = length.min(size - offset);
    let piece = |at: u64, length: u64| part.bytes(area.saturating_add(at), usize::try_from(length).unwrap_or(0));
    let mut bytes = piece(offset, first)?;
    bytes.extend(piece(AREA_HEADER, length - first)?);
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
}

/// Where the bytes of a logical volume are.
fn map(group: &Section, volume: &Section, by_id: &HashMap<String, &Part>) -> Result<Part, String> {
    let broken = || "what LVM wrote of it makes no sense".to_owned();
    let extent = group.number("extent_size").and_then(|sectors| sectors.checked_mul(SECTOR)).ok_or_else(broken)?;
    let mut segments: Vec<&Section> = volume
        .sections()
        .filter(|(name, _)| name.starts_with("segment"))
        .map(|(_, segment)| segment)
        .take(MAX_PIECES)
        .collect();
    segments.sort_by_key(|segment| segment.number("start_extent"));
    let mut pieces = Vec::new();
    let mut disk = None;
    let mut next = 0;
    for segment in segments {
        let kind = segment.text("type").unwrap_or("unknown");
        let (start, count) = segment.number("start_extent").zip(segment.number("extent_count")).ok_or_else(broken)?;
        if kind != "striped" || segment.number("stripe_count") != Some(1) {
            let kind = if kind == "striped" { "over several stripes" } else { kind };
            return Err(format!("it is {kind}, and only linear ones are read"));
        }
        if start != next {
            return Err(broken());
        }
        next = start.checked_add(count).ok_or_else(broken)?;
        let Some(Value::List(stripes)) = segment.get("stripes") else { return Err(broken()) };
        let [Value::Text(physical), Value::Number(first)] = stripes.as_slice() else { return Err(broken()) };
        let described = group.section("physical_volumes").and_then(|all| all.section(physical)).ok_or_else(broken)?;
        let id = described.text("id").ok_or_else(broken)?.replace('-', "");
        let part = by_id.get(&id).ok_or("a part of it is on another disk")?;
        let begin = described.number("pe_start").and_then(|sectors| sectors.checked_mul(SECTOR)).ok_or_else(broken)?;
        let offset = first.checked_mul(extent).and_then(|at| at.checked_add(begin)).ok_or_else(broken)?;
        let length = count.checked_mul(extent).ok_or_else(broken)?;
        pieces.push(
            part.piece(offset, length).ok_or("it goes past the end of its physical volume: the image is cut short")?,
        );
        disk = Some(part.disk());
    }
    disk.map(|disk| Part::of_pieces(disk, pieces)).ok_or_else(|| "it has no segments".to_owned())
}

/// Reads the text; none if it makes no sense.
fn parse(text: &str) -> Option<Section> {
    let mut parser = Parser { rest: text, left: MAX_ENTRIES };
    let section = parser.section(0)?;
    parser.rest.is_empty().then_some(section)
}

struct Parser<'a> {
    rest: &'a str,
    left: usize,
}

impl Parser<'_> {
    fn skip(&mut self) {
        loop {
            self.rest = self.rest.trim_start_matches(|c: char| c.is_whitespace() || c == '\0');
            let Some(comment) = self.rest.strip_prefix('#') else { return };
            self.rest = comment.split_once('\n').map_or("", |(_, rest)| rest);
        }
    }

    fn take(&mut self, wanted: char) -> Option<()> {
        self.skip();
        self.rest = self.rest.strip_prefix(wanted)?;
        Some(())
    }

    fn section(&mut self, depth: usize) -> Option<Section> {
        let mut section = Section::default();
        loop {
            self.skip();
            let end =
                self.rest.find(|c: char| !(c.is_ascii_alphanumeric() || "_-.+".contains(c))).unwrap_or(self.rest.len());
            if end == 0 {
                return Some(section);
            }
            self.left = self.left.checked_sub(1)?;
            let (name, rest) = self.rest.split_at(end);
            self.rest = rest;
            self.skip();
            let value = if self.rest.starts_with('{') {
                self.take('{')?;
                let inner = (depth < MAX_DEPTH).then(|| self.section(depth + 1))??;
                self.take('}')?;
                Value::Section(inner)
            } else {
                self.take('=')?;
                self.value()?
            };
            section.0.push((name.to_owned(), value));
        }
    }

    fn value(&mut self) -> Option<Value> {
        self.skip();
        if self.rest.starts_with('[') {
            self.take('[')?;
            let mut list = Vec::new();
            loop {
                self.skip();
                if self.take(']').is_some() {
                    return Some(Value::List(list));
                }
                self.left = self.left.checked_sub(1)?;
                list.push(self.plain()?);
                self.skip();
                self.rest = self.rest.strip_prefix(',').unwrap_or(self.rest);
            }
        }
        self.plain()
    }

    fn plain(&mut self) -> Option<Value> {
        if let Some(rest) = self.rest.strip_prefix('"') {
            let mut text = String::new();
            let mut chars = rest.char_indices();
            while let Some((at, c)) = chars.next() {
                match c {
                    '"' => {
                        self.rest = &rest[at + 1..];
                        return Some(Value::Text(text));
                    }
                    '\\' => text.push(chars.next()?.1),
                    c => text.push(c),
                }
            }
            return None;
        }
        let end = self.rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(self.rest.len());
        let (number, rest) = self.rest.split_at(end);
        self.rest = rest;
        number.parse().ok().map(Value::Number)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_text_is_read() {
        let top = parse("vg-0 {\nid = \"a\\\"b\" # no\nlist = [\"x\", 1,\n2]\ninner {\nn = 7\n}\n}\nv = 1\n").unwrap();
        let group = top.section("vg-0").unwrap();
        assert_eq!(group.text("id"), Some("a\"b"));
        assert_eq!(
            group.get("list"),
            Some(&Value::List(vec![Value::Text("x".into()), Value::Number(1), Value::Number(2)]))
        );
        assert_eq!(group.section("inner").unwrap().number("n"), Some(7));
        for broken in ["a {", "a =", "a = [1", "a = \"x", "a }", &"a {".repeat(20)] {
            assert_eq!(parse(broken), None, "{broken}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "(\\PC|[a-z]{1,3} ?[={]|\\[|\\]|\"|\\\\|\n|#|\\}|[0-9]{1,22}|,){0,60}") {
            parse(&text);
        }
    }
}
