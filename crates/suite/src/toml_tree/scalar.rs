//! The kinds of values that are not tables with known keys.

use std::{collections::BTreeMap, ops::Range, path::PathBuf, time::Duration};

use serde_json::{Value as Json, json};
use toml::{Spanned, de::DeValue};

use super::{Value, Walk};
use belljar_guest_spec::{
    Secret, SectorSize, Wwn,
    scheduled::{self, When},
    values,
};

use crate::{diagnostic::Diagnostic, units};

/// Reads a string through `parse`, whose error completes "… is ".
pub(crate) fn read_text<T>(
    value: &Spanned<DeValue<'_>>,
    walk: &mut Walk,
    expected: &str,
    parse: impl FnOnce(&str) -> Result<T, String>,
) -> Option<T> {
    let DeValue::String(text) = value.get_ref() else {
        walk.wrong_type(value, expected);
        return None;
    };
    match parse(text) {
        Ok(parsed) => Some(parsed),
        Err(why) => {
            walk.wrong_value(value.span(), &format!("{text:?}"), &why);
            None
        }
    }
}

/// Says that a string with a unit was wanted where a number stands, and what was probably meant.
fn number_without_unit(value: &Spanned<DeValue<'_>>, walk: &mut Walk, expected: &str, unit: &str) -> bool {
    let DeValue::Integer(number) = value.get_ref() else { return false };
    let diagnostic = Diagnostic::error(format!("{} must be {expected}, not an integer", walk.subject()))
        .at(walk.place(value.span()))
        .label(format!("did you mean \"{number}{unit}\"?"));
    walk.push(diagnostic);
    true
}

impl Value for bool {
    fn expected() -> String {
        "true or false".into()
    }

    fn schema() -> Json {
        json!({ "type": "boolean" })
    }

    fn read(value: &Spanned<DeValue<'_>>, walk: &mut Walk) -> Option<Self> {
        let read = value.get_ref().as_bool();
        if read.is_none() {
            walk.wrong_type(value, &Self::expected());
        }
        read
    }
}

/// An integer from `MIN` to `MAX`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Int<const MIN: i64, const MAX: i64>(pub i64);

impl<const MIN: i64, const MAX: i64> Int<MIN, MAX> {
    /// As an unsigned number; 0 if it is negative.
    #[must_use]
    pub fn unsigned(self) -> u32 {
        u32::try_from(self.0.max(0)).unwrap_or(u32::MAX)
    }
}

impl<const MIN: i64, const MAX: i64> Value for Int<MIN, MAX> {
    fn expected() -> String {
        format!("an integer from {MIN} to {MAX}")
    }

    fn schema() -> Json {
        json!({ "type": "integer", "minimum": MIN, "maximum": MAX })
    }

    fn read(value: &Spanned<DeValue<'_>>, walk: &mut Walk) -> Option<Self> {
        let DeValue::Integer(number) = value.get_ref() else {
            walk.wrong_type(value, &Self::expected());
            return None;
        };
        match i64::from_str_radix(number.as_str(), number.radix()) {
            Ok(n) if (MIN..=MAX).contains(&n) => Some(Self(n)),
            _ => {
                walk.wrong_value(value.span(), &number.to_string(), &format!("not {}", Self::expected()));
                None
            }
        }
    }
}

/// The size of a disk's sectors, as a number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sectors(pub SectorSize);

impl Value for Sectors {
    fn expected() -> String {
        "512 or 4096".into()
    }

    fn schema() -> Json {
        json!({ "enum": SectorSize::ALL.map(SectorSize::bytes) })
    }

    fn read(value: &Spanned<DeValue<'_>>, walk: &mut Walk) -> Option<Self> {
        let DeValue::Integer(number) = value.get_ref() else {
            walk.wrong_type(value, &Self::expected());
            return None;
        };
        let size = u64::from_str_radix(number.as_str(), number.radix()).ok().and_then(SectorSize::of);
        if size.is_none() {
            walk.wrong_value(value.span(), &number.to_string(), &format!("not {}", Self::expected()));
        }
        size.map(Self)
    }
}

/// Makes a wrapper of an amount that is written as a number and a unit in a string.
macro_rules! quantity {
    ($(#[$meta:meta])* $name:ident($inner:ty), $expected:literal, $unit:literal, $parse:path, $examples:tt) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);

        impl Value for $name {
            fn expected() -> String {
                $expected.into()
            }

            fn schema() -> Json {
                json!({ "type": "string", "pattern": "^ *[0-9.]", "examples": $examples })
            }

            fn read(value: &Spanned<DeValue<'_>>, walk: &mut Walk) -> Option<Self> {
                if number_without_unit(value, walk, $expected, $unit) {
                    return None;
                }
                read_text(value, walk, $expected, $parse).map(Self)
            }
        }
    };
}

quantity!(
    /// A duration above zero.
    TimeLimit(Duration), "a duration such as \"90s\" or \"5m\"", "s", units::time_limit, ["90s", "5m", "1h 30m"]
);
quantity!(
    /// A duration that may be zero.
    Delay(Duration), "a duration such as \"0s\" or \"5s\"", "s", units::duration, ["0s", "5s"]
);
quantity!(
    /// A size in bytes.
    Size(u64), "a size such as \"512M\" or \"2GiB\"", "M", values::size, ["512M", "2GiB"]
);
quantity!(
    /// The memory of a guest in bytes.
    Memory(u64), "a size such as \"512M\" or \"2GiB\"", "M", values::memory, ["512M", "2GiB"]
);

/// Makes a wrapper of something that is written as a string.
macro_rules! text_value {
    ($(#[$meta:meta])* $name:ident($inner:ty), $expected:literal, $parse:expr, $schema:tt) => {
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);

        impl Value for $name {
            fn expected() -> String {
                $expected.into()
            }

            fn schema() -> Json {
                json!($schema)
            }

            fn read(value: &Spanned<DeValue<'_>>, walk: &mut Walk) -> Option<Self> {
                let parse: fn(&str) -> Result<$inner, String> = $parse;
                read_text(value, walk, $expected, parse).map(Self)
            }
        }
    };
}

fn plain(text: &str) -> Result<&str, String> {
    match text {
        "" => Err("empty".into()),
        t if t.contains('\0') => Err("not usable: it has a NUL character in it".into()),
        t => Ok(t),
    }
}

/// Reads the name of a guest, a suite, a tag and the like.
pub(crate) fn name(text: &str) -> Result<String, String> {
    const RULE: &str = "letters, digits, `.`, `_` and `-`, and begins with a letter or a digit";
    let mut chars = text.chars();
    let first = chars.next().is_some_and(char::is_alphanumeric);
    if !first || !chars.all(|c| c.is_alphanumeric() || matches!(c, '.' | '_' | '-')) {
        return Err(format!("not a usable name: a name has {RULE}"));
    }
    if text.len() > 100 { Err("too long for a name: 100 bytes are enough".into()) } else { Ok(text.to_owned()) }
}

text_value!(
    /// Any text but an empty one.
    Text(String), "a string", |t| plain(t).map(str::to_owned), { "type": "string", "minLength": 1 }
);
text_value!(
    /// A file of the host, relative to `belljar.toml`.
    FilePath(PathBuf), "a path", |t| plain(t).map(PathBuf::from), { "type": "string", "minLength": 1 }
);
text_value!(
    /// A name of a guest, a suite, a tag and the like; safe in ids and file names.
    Name(String), "a name", name, { "type": "string", "pattern": r"^[\p{L}\p{N}][\p{L}\p{N}._-]*$", "maxLength": 100 }
);
text_value!(
    /// The name of an environment variable.
    VarName(String), "the name of an environment variable", |t| var_name(t).map(str::to_owned), { "type": "string", "pattern": "^[^=]+$" }
);
text_value!(
    /// An absolute path in the guest.
    GuestPath(String), "an absolute path in the guest", |t| {
        plain(t)?;
        values::guest_path(t).map(str::to_owned)
    }, { "type": "string", "pattern": "^/" }
);
text_value!(
    /// Where the guest sees the workspace.
    MountAt(String), "an absolute path in the guest", |t| {
        plain(t)?;
        values::mount_at(t).map(str::to_owned)
    }, { "type": "string", "pattern": "^/" }
);
text_value!(
    /// The label of a file system.
    Label(String), "a label", |t| values::label(t).map(str::to_owned), { "type": "string", "pattern": "^[!-.0-~]{1,16}$" }
);
text_value!(
    /// The serial number of a disk.
    Serial(String), "a serial number", |t| values::serial(t).map(str::to_owned), { "type": "string", "pattern": "^[!-~]{1,20}$" }
);
text_value!(
    /// After which time an order is given.
    OrderTime(When), "a time for an order", |t| match When::parse(t)? {
        When::Mark(_) => Err("no time for an order; write at = \"+5s\", or on = \"mark:NAME\"".to_owned()),
        time @ When::After(_) => Ok(time),
    }, { "type": "string", "minLength": 1 }
);
text_value!(
    /// Upon what an order is given.
    OrderSign(When), "what an order waits for", |t| match When::parse(t)? {
        When::After(_) => Err("nothing that an order waits for; write on = \"mark:NAME\", or at = \"+5s\"".to_owned()),
        mark @ When::Mark(_) => Ok(mark),
    }, { "type": "string", "pattern": "^mark:." }
);
text_value!(
    /// An order in the words of `belljar-ctl`.
    OrderText(String), "an order", scheduled::checked, { "type": "string", "minLength": 1 }
);
text_value!(
    /// The World Wide Name of a disk.
    DiskWwn(Wwn), "a World Wide Name", Wwn::parse, { "type": "string", "pattern": "^0x[0-9a-fA-F]{16}$" }
);
text_value!(
    /// The name of a user in the guest, or a number.
    User(String), "the name or number of a user", |t| {
        plain(t)?;
        values::user(t).map(str::to_owned)
    }, { "type": "string", "minLength": 1 }
);

fn var_name(text: &str) -> Result<&str, String> {
    if text.contains('=') { Err("no usable name of a variable: it has a `=` in it".into()) } else { plain(text) }
}

impl Value for Secret {
    fn expected() -> String {
        "a string".into()
    }

    fn schema() -> Json {
        json!({ "type": "string" })
    }

    fn read(value: &Spanned<DeValue<'_>>, walk: &mut Walk) -> Option<Self> {
        let DeValue::String(text) = value.get_ref() else {
            walk.wrong_type(value, &Self::expected());
            return None;
        };
        if text.chars().any(char::is_control) {
            // Not through `wrong_value`, which would show it.
            let message = format!("{} has control characters in it, which cannot be typed", walk.subject());
            walk.error(value.span(), message);
            return None;
        }
        Some(Self::new(text.clone().into_owned()))
    }
}

/// A list with places. Wrong items are left out.
#[derive(Clone, Debug)]
pub struct List<T>(pub Vec<Spanned<T>>);

impl<T> Default for List<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: Value> Value for List<T> {
    fn expected() -> String {
        format!("an array, each item {}", T::expected())
    }

    fn schema() -> Json {
        json!({ "type": "array", "items": T::schema() })
    }

    fn read(value: &Spanned<DeValue<'_>>, walk: &mut Walk) -> Option<Self> {
        let DeValue::Array(items) = value.get_ref() else {
            walk.wrong_type(value, &Self::expected());
            return None;
        };
        Some(Self(items.iter().filter_map(|item| item_of(item, walk)).collect()))
    }
}

/// Reads an item of an array; what is said about it is said of an item of the key.
fn item_of<T: Value>(item: &Spanned<DeValue<'_>>, walk: &mut Walk) -> Option<Spanned<T>> {
    if item.get_ref().is_table() {
        return T::read_spanned(item, walk);
    }
    let outer = std::mem::take(&mut walk.key);
    walk.key = format!("{outer}[]");
    let read = T::read_spanned(item, walk);
    walk.key = outer;
    read
}

/// One, or a list of them.
#[derive(Clone, Debug)]
pub struct OneOrMany<T>(pub Vec<Spanned<T>>);

impl<T: Value> Value for OneOrMany<T> {
    fn expected() -> String {
        format!("{}, or an array of such", T::expected())
    }

    fn schema() -> Json {
        json!({ "anyOf": [T::schema(), { "type": "array", "items": T::schema() }] })
    }

    fn read(value: &Spanned<DeValue<'_>>, walk: &mut Walk) -> Option<Self> {
        match value.get_ref() {
            DeValue::Array(_) => List::read(value, walk).map(|l| Self(l.0)),
            DeValue::String(_) => T::read_spanned(value, walk).map(|v| Self(vec![v])),
            _ => {
                walk.wrong_type(value, &Self::expected());
                None
            }
        }
    }
}

/// Names that the user makes up, each with a value.
#[derive(Clone, Debug)]
pub struct Map<K, V>(pub BTreeMap<K, (Range<usize>, V)>);

impl<K, V> Default for Map<K, V> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Value + Ord, V: Value> Value for Map<K, V> {
    fn expected() -> String {
        format!("a table, each value {}", V::expected())
    }

    fn schema() -> Json {
        json!({ "type": "object", "propertyNames": K::schema(), "additionalProperties": V::schema() })
    }

    fn read(value: &Spanned<DeValue<'_>>, walk: &mut Walk) -> Option<Self> {
        let DeValue::Table(table) = value.get_ref() else {
            walk.wrong_type(value, &Self::expected());
            return None;
        };
        let outer = std::mem::take(&mut walk.key);
        let mut out = Self::default();
        for (name, value) in table {
            walk.key.clone_from(&outer);
            let text = DeValue::String(name.get_ref().clone());
            let key = K::read(&Spanned::new(name.span(), text), walk);
            walk.key =
                if outer.is_empty() { name.get_ref().to_string() } else { format!("{outer}.{}", name.get_ref()) };
            let value = V::read(value, walk);
            if let (Some(key), Some(value)) = (key, value) {
                out.0.insert(key, (name.span(), value));
            }
        }
        walk.key = outer;
        Some(out)
    }
}
