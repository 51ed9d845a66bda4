//! The JSON Schema of `belljar.toml`, for editors, made from the types that read it.
//!
//! `schema/belljar.schema.json` is this, written to a file; a test holds one against the other.

use serde_json::{Value as Json, json};

use crate::{
    config::{
        guards::{AllowTable, GuardsTable},
        guest::{DiskTable, GuestTable, LoginTable},
        typed::{FileTable, GroupTable, HeaderTable, OverrideTable, ProfileTable, RetriesTable, SuiteTable},
    },
    toml_tree::{Key, Table, Value},
};

/// The JSON Schema (draft 2020-12) of `belljar.toml`.
#[must_use]
pub fn schema() -> Json {
    let mut schema = FileTable::schema();
    schema["$schema"] = json!("https://json-schema.org/draft/2020-12/schema");
    schema["title"] = json!("belljar.toml");
    // What must be given; everything else has a default.
    schema["properties"]["suites"]["items"]["required"] = json!(["name", "tests"]);
    schema["properties"]["groups"]["additionalProperties"]["required"] = json!(["max-parallel"]);
    let overrides = &mut schema["properties"]["profile"]["additionalProperties"]["properties"]["overrides"];
    overrides["items"]["required"] = json!(["filter"]);
    schema
}

/// The schema as it is in its file.
#[must_use]
pub fn schema_text() -> String {
    format!("{:#}\n", schema())
}

/// Every table with what it is and its keys, in the order of the documentation.
#[must_use]
pub fn tables() -> Vec<(&'static str, Vec<Key>)> {
    fn table<T: Table>() -> (&'static str, Vec<Key>) {
        (T::NOUN, T::keys())
    }
    vec![
        table::<FileTable>(),
        table::<GuestTable>(),
        table::<LoginTable>(),
        table::<DiskTable>(),
        table::<GuardsTable>(),
        table::<AllowTable>(),
        table::<SuiteTable>(),
        table::<RetriesTable>(),
        table::<HeaderTable>(),
        table::<GroupTable>(),
        table::<ProfileTable>(),
        table::<OverrideTable>(),
    ]
}

/// The tables that have a key.
pub(crate) fn homes(key: &str) -> Vec<&'static str> {
    tables().into_iter().filter(|(_, keys)| keys.iter().any(|k| k.name == key)).map(|(noun, _)| noun).collect()
}

#[cfg(test)]
mod tests;
