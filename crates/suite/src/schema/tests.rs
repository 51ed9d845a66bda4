use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use super::*;
use crate::config::Config;

fn repository(file: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..").join(file)
}

fn documented() -> String {
    fs_err::read_to_string(repository("docs/belljar.toml")).unwrap()
}

fn json_of(toml: &str) -> Json {
    serde_json::to_value(toml.parse::<toml::Table>().unwrap()).unwrap()
}

#[test]
fn the_file_is_the_schema() {
    let path = repository("schema/belljar.schema.json");
    if std::env::var_os("INSTA_UPDATE").is_some_and(|v| v == "always") {
        fs_err::create_dir_all(path.parent().unwrap()).unwrap();
        fs_err::write(&path, schema_text()).unwrap();
    }
    assert!(
        fs_err::read_to_string(&path).unwrap() == schema_text(),
        "run the tests with INSTA_UPDATE=always to write {path:?}"
    );
}

#[test]
fn the_schema_has_every_key() {
    let text = schema_text();
    for (noun, keys) in tables() {
        assert!(!keys.is_empty());
        for key in keys.iter().filter(|_| noun != "a header") {
            assert!(text.contains(&format!("\"{}\": {{", key.name)), "{noun}: {}", key.name);
            assert!(!key.doc.is_empty() && key.doc.ends_with('.'), "{noun}: {}: {:?}", key.name, key.doc);
        }
    }
}

/// What the reader takes the schema takes, and what one refuses for the type or the name of a key the other does too.
#[test]
fn schema_and_reader_agree() {
    let validator = jsonschema::validator_for(&schema()).unwrap();
    let guest = |text: &str| format!("[guests.g]\n{text}\n");
    let suite = |text: &str| format!("[[suites]]\nname = 's'\ntests = 'a'\n{text}\n");
    let profile = |text: &str| format!("[profile.p]\n{text}\n");
    let wrong = ["colour = 1", "= 'x'"];
    let values = [
        "true",
        "7",
        "-5000",
        "1.5",
        "'x y'",
        "'1GiB'",
        "'5m'",
        "[]",
        "[1]",
        "['a']",
        "{}",
        "{ a = 1 }",
        "''",
        "'/x'",
        "1979-05-27",
    ];
    let mut cases: Vec<String> =
        vec![String::new(), "[groups.g]\n".into(), "[[suites]]\n".into(), "[profile.p]\noverrides = [{}]".into()];
    cases.push(guest(wrong[0]));
    for (noun, keys) in tables() {
        for key in keys {
            for value in values {
                let line = format!("{} = {value}", key.name);
                match noun {
                    "a guest" => cases.push(guest(&line)),
                    "a suite" if !["name", "tests"].contains(&key.name) => cases.push(suite(&line)),
                    "a profile" => cases.push(profile(&line)),
                    "a login" => cases.push(guest(&format!("image = 'i'\nlogin = {{ {line} }}"))),
                    "the guards" => cases.push(guest(&format!("guards = {{ {line} }}"))),
                    "an exception of a guard" => cases.push(guest(&format!("guards.allow = [{{ {line} }}]"))),
                    "a disk" => cases.push(guest(&format!("disks = [{{ {line} }}]"))),
                    "a table of retries" => cases.push(suite(&format!("retries = {{ {line} }}"))),
                    "an override" => cases.push(profile(&format!("overrides = [{{ {line} }}]"))),
                    "a group" => cases.push(format!("[groups.g]\n{line}")),
                    _ => {}
                }
            }
        }
    }
    let mut taken = 0;
    for case in cases {
        // A date is no JSON; the reader refuses it everywhere.
        let json = if case.contains("1979") { json!({ "date": 1 }) } else { json_of(&case) };
        let by_schema = validator.is_valid(&json);
        match Config::parse("belljar.toml", &case) {
            Ok(_) => {
                assert!(by_schema, "the reader takes what the schema refuses:\n{case}");
                taken += 1;
            }
            Err(wrong) => {
                let text = wrong.to_string();
                // What the schema can know: names and types of keys.
                let known =
                    text.contains(" must be ") || text.contains("unknown key") || text.contains("is not an integer");
                assert!(!(known && by_schema), "the schema takes what the reader refuses:\n{case}\n{text}");
            }
        }
    }
    assert!(taken > 60, "{taken}");
}

#[test]
fn the_documented_file_is_right() {
    let text = documented();
    let config = Config::parse("docs/belljar.toml", &text).unwrap_or_else(|e| panic!("{e}"));
    assert!(!config.suites.is_empty());
    jsonschema::validator_for(&schema()).unwrap().validate(&json_of(&text)).unwrap();
}

#[test]
fn the_example_suite_is_right_and_complete() {
    let path = repository("examples/os-features/belljar.toml");
    jsonschema::validator_for(&schema()).unwrap().validate(&json_of(&fs_err::read_to_string(&path).unwrap())).unwrap();
    let config = Config::load(&path, &path).unwrap_or_else(|e| panic!("{e}"));
    let found = crate::discover::discover(&config).unwrap_or_else(|e| panic!("{e}"));
    assert!(found.notes.is_empty(), "{}", found.notes);
    let used: BTreeSet<_> = found
        .tests
        .iter()
        .map(|t| &t.in_workspace)
        .chain(found.setup.values().flat_map(|s| &s.scripts).map(|s| &s.in_workspace))
        .collect();
    let scripts = glob(&config.dir, "tests/*/*.sh");
    assert!(scripts.len() > 40, "{}", scripts.len());
    for script in &scripts {
        assert!(used.contains(script), "{script:?} is in no suite");
    }
}

/// The files that match a pattern such as `DIR/*/*`, relative to `base`.
fn glob(base: &Path, pattern: &str) -> Vec<PathBuf> {
    let pattern = crate::glob::Pattern::new(pattern).unwrap();
    let entries = |dir: &Path| fs_err::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect::<Vec<_>>();
    let dirs = entries(&base.join(pattern.base())).into_iter().filter(|p| p.is_dir());
    let files = dirs.flat_map(|dir| entries(&dir));
    files.map(|f| f.strip_prefix(base).unwrap().to_owned()).filter(|f| pattern.matches(f)).collect()
}

/// `#key = value` is a setting that is commented out, `# text` is prose.
fn commented(line: &str) -> Option<(&str, &str)> {
    let (key, rest) = line.strip_prefix('#')?.split_once(" = ")?;
    (!key.starts_with(' ')).then_some((key, rest))
}

#[test]
fn each_setting_in_the_documented_file_can_be_taken() {
    let text = documented();
    for (i, line) in text.lines().enumerate().filter(|(_, l)| commented(l).is_some()) {
        let mut lines: Vec<&str> = text.lines().collect();
        lines[i] = &line[1..];
        let file = lines.join("\n");
        Config::parse("docs/belljar.toml", &file).unwrap_or_else(|e| panic!("{e}"));
    }
}

#[test]
fn the_documented_file_mentions_every_key_with_its_default() {
    let text = documented();
    for (noun, keys) in tables() {
        let mark = format!("# == {noun} ");
        let start = text.find(&mark).unwrap_or_else(|| panic!("no section {mark:?}"));
        let section = &text[start..];
        let section = section[1..].find("\n# == ").map_or(section, |end| &section[..=end]);
        for key in keys {
            let mut settings = section.lines().filter_map(|line| {
                let setting = commented(line)
                    .or_else(|| line.strip_prefix("#   ")?.split_once(" = "))
                    .or_else(|| line.split_once(" = "))?;
                (setting.0 == key.name).then_some((line, setting.1))
            });
            let Some((line, value)) = settings.next() else {
                let headings = [format!("[{}.", key.name), format!("[[{}]]", key.name)];
                let heading = text.lines().any(|l| headings.iter().any(|h| l.starts_with(h)));
                assert!(heading && noun == "belljar.toml", "{noun}: `{}` is not mentioned", key.name);
                continue;
            };
            match key.default.strip_prefix('(').and_then(|d| d.strip_suffix(')')) {
                // Of a key that stands twice, one line says it.
                Some(words) => assert!(
                    line.contains(words) || settings.any(|(line, _)| line.contains(words)),
                    "{noun}: `{}` should say its default, {words:?}: {line}",
                    key.name
                ),
                None => assert!(
                    value.starts_with(key.default),
                    "{noun}: `{}` should show its default, {}: {line}",
                    key.name,
                    key.default
                ),
            }
        }
    }
}
