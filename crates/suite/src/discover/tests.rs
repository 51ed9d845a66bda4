use std::os::unix::fs::symlink;

use proptest::prelude::*;

use super::*;

/// A directory with test files; a name that ends in `-` is not executable.
fn tree(toml: &str, files: &[(&str, &str)]) -> (tempfile::TempDir, Config) {
    let dir = tempfile::tempdir().unwrap();
    for (name, content) in files {
        let path = dir.path().join(name.trim_end_matches('-'));
        fs_err::create_dir_all(path.parent().unwrap()).unwrap();
        fs_err::write(&path, content).unwrap();
        let mode = if name.ends_with('-') { 0o644 } else { 0o755 };
        fs_err::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    }
    fs_err::write(dir.path().join("belljar.toml"), toml).unwrap();
    let config = Config::load(&dir.path().join("belljar.toml"), Path::new("belljar.toml")).unwrap();
    (dir, config)
}

fn names(config: &Config) -> Vec<String> {
    let found = discover(config).unwrap_or_else(|e| panic!("{e}"));
    found.tests.iter().map(|t| format!("{}/{}", t.suite.name, t.name)).collect()
}

/// The mistakes, without the directory's name.
fn mistakes(dir: &tempfile::TempDir, config: &Config) -> String {
    let real = fs_err::canonicalize(dir.path()).unwrap();
    let text = discover(config).unwrap_err().to_string();
    text.replace(&*real.to_string_lossy(), "DIR").replace(&*dir.path().to_string_lossy(), "DIR")
}

fn suite(name: &str, rest: &str) -> String {
    format!("[[suites]]\nname = '{name}'\n{rest}\n")
}

#[test]
fn finds_sorted_and_once() {
    let toml = suite("a", "tests = ['t/*.sh', 't/**/*.sh', './t/x/*']\nexclude = 't/lib*'")
        + &suite("b", "tests = 't/x/z.sh'\nsetup = './t/a.sh'");
    let files =
        ["t/b.sh", "t/a.sh", "t/x/z.sh", "t/x/y/q.sh", "t/lib.sh-", "t/.hidden.sh-", "t/.d/a.sh", "t/notes.txt-"];
    let (_dir, config) = tree(&toml, &files.map(|f| (f, "")));
    assert_eq!(names(&config), ["a/a.sh", "a/b.sh", "a/x/y/q.sh", "a/x/z.sh", "b/z.sh"]);
    let found = discover(&config).unwrap();
    assert_eq!(found.tests[3].file, "t/x/z.sh");
    assert_eq!(found.tests[3].in_workspace, Path::new("t/x/z.sh"));
    assert_eq!(
        found.setup["b"].scripts.iter().map(|s| s.in_workspace.as_path()).collect::<Vec<_>>(),
        [Path::new("t/a.sh")]
    );
    // The last pattern matches the directory too.
    assert_eq!(found.notes.len(), 1);
}

#[test]
fn a_setup_that_is_kept_knows_what_it_reads() {
    let toml = suite(
        "a",
        "tests = 't/*.sh'\nsetup = 't/a.sh'\nsetup-once = true\nsetup-inputs = ['data/**', 'data/list', 'link']",
    );
    let files = ["t/a.sh", "data/list-", "data/deep/x-", "data/.hidden-", "other-"];
    let (dir, config) = tree(&toml, &files.map(|f| (f, "")));
    symlink("other", dir.path().join("link")).unwrap();
    let found = discover(&config).unwrap();
    let kept = found.setup["a"].kept.as_ref().unwrap();
    let names: Vec<_> = kept.iter().map(|f| f.in_workspace.to_str().unwrap()).collect();
    assert_eq!(names, ["data/deep/x", "data/list", "link"]);
}

#[test]
fn what_a_kept_setup_cannot_read_is_told() {
    let toml = suite(
        "a",
        "tests = 't/*.sh'\nsetup = 't/a.sh'\nsetup-once = true\nsetup-inputs = ['none', 'd*', 'broken', 'socket']",
    );
    let (dir, config) = tree(&toml, &["t/a.sh", "d/x-"].map(|f| (f, "")));
    symlink("nowhere", dir.path().join("broken")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("socket")).unwrap();
    insta::assert_snapshot!(mistakes(&dir, &config));
}

#[test]
fn links_are_followed_but_not_in_circles() {
    let (dir, config) = tree(&suite("a", "tests = ['t/*/*.sh', 't/**/*.sh']"), &[("t/x/a.sh", "")]);
    symlink("x", dir.path().join("t/y")).unwrap();
    symlink("..", dir.path().join("t/x/up")).unwrap();
    assert_eq!(names(&config), ["a/x/a.sh", "a/y/a.sh"]);
}

#[test]
fn what_cannot_be_run_is_told() {
    let toml = suite(
        "a",
        "tests = ['t/*', 'none/*', 't/*.py', 'f/x', 'd/*']\nsetup = ['t/b.sh', 'missing.sh', 'd', '/bin/sh']\nexclude = 'zzz'",
    );
    let files = ["t/a.sh", "t/b.sh-", "t/it's.sh-", "t/sub/x", "t/ev\u{1b}il", "f-", "d/e/x"];
    let (dir, config) = tree(&toml, &files.map(|f| (f, "")));
    symlink("nowhere", dir.path().join("t/broken")).unwrap();
    symlink("/bin/sh", dir.path().join("t/outside")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("t/socket")).unwrap();
    insta::assert_snapshot!(mistakes(&dir, &config));
}

#[test]
fn what_would_be_shown_as_something_else_is_no_name() {
    let hidden = ('\u{202a}'..='\u{202e}').chain('\u{2066}'..='\u{2069}').chain(['\u{61c}', '\u{200e}', '\u{200f}']);
    let hidden: Vec<char> = hidden.chain(['\u{2028}', '\u{2029}', '\u{85}', '\n']).collect();
    // Letters that are written from right to left turn nothing around but themselves; joiners belong to words and emoji.
    let plain = ["t/\u{5d0}\u{5d1}", "t/\u{1f469}\u{200d}\u{1f4bb}", "t/a b"];
    let names: Vec<String> = hidden.iter().map(|c| format!("t/x{c}y")).collect();
    let files: Vec<(&str, &str)> = names.iter().map(String::as_str).chain(plain).map(|f| (f, "")).collect();
    let (dir, config) = tree(&suite("a", "tests = 't/*'"), &files);
    let told = mistakes(&dir, &config);
    for c in &hidden {
        let refused = format!("error: the name of {:?} is no text that can stand in a report", format!("t/x{c}y"));
        assert!(told.contains(&refused), "{c:?}: {told}");
        assert!(*c == '\n' || !told.contains(*c), "{c:?} is shown as it is");
    }
    assert_eq!(told.matches("error: ").count(), hidden.len(), "{told}");
}

#[test]
fn headers_are_checked() {
    let toml = suite("a", "tests = 't/*'\ndisks = [{ size = '1G', serial = 'd0' }]")
        + &suite("b", "tests = 'u/*'\nisolation = 'suite'\ngroup = 'g'")
        + "[guests.vm]\ndisks = [{ size = '1G', serial = 'root' }]\n[groups.g]\nmax-parallel = 1\n";
    let files = [
        ("t/comma.sh", "#!/bin/sh\n# belljar: timeout = \"10m\"\n  // belljar: tags = ['x'], priority = 3\n"),
        ("t/unknown.sh", "#!/bin/sh\n# belljar: timout = '10m'\n# belljar: timeout = 10\n"),
        ("t/twice.sh", "# belljar: timeout = '10m'\n# belljar: timeout = '11m'\n"),
        ("t/guest.py", "# belljar: guests = ['wm']\n# belljar: group = 'h'\n"),
        ("t/disk.sql", "-- belljar: disks = [{ size = '1G', serial = 'root' }]\n"),
        ("t/prose.sh", "# belljar: this is no TOML\r\n"),
        ("t/none.sh", "# belljar: guests = []"),
        ("t/binary", "\x7fELF\0\n# belljar: nonsense\n"),
        ("u/shared.sh", "# belljar: memory = '2G'\n#belljar:nic='none'\n"),
        ("u/own.sh", "# belljar: memory = '2G'\n# belljar: isolation = 'test'\n"),
    ];
    let (dir, config) = tree(&toml, &files);
    insta::assert_snapshot!(mistakes(&dir, &config));
}

#[test]
fn headers_reach_four_kibibytes() {
    let far = format!("#{}\n# belljar: nonsense\n", "x".repeat(header::REACH));
    let edge = format!("#{}\n# belljar: priority = 7\n", "x".repeat(header::REACH - 12));
    let (_dir, config) = tree(&suite("a", "tests = 't/*'"), &[("t/far", &far), ("t/edge", &edge), ("t/empty", "")]);
    let found = discover(&config).unwrap();
    let priorities: Vec<_> = found.tests.iter().map(|t| t.header.layer.priority).collect();
    assert_eq!(priorities, [Some(7), None, None]);
}

#[test]
fn the_workspace_holds_the_tests() {
    let toml = format!("workspace = '..'\n{}", suite("a", "tests = '*.sh'"));
    let (dir, config) = tree(&toml, &[("a.sh", "")]);
    let found = discover(&config).unwrap();
    assert_eq!(found.tests[0].in_workspace, Path::new(dir.path().file_name().unwrap()).join("a.sh"));
    let toml = format!("workspace = 'w'\n{}", suite("a", "tests = '*.sh'"));
    let (dir, config) = tree(&toml, &[("a.sh", ""), ("w/x", "")]);
    assert!(mistakes(&dir, &config).contains("a.sh is not in the workspace"));
    let (dir, config) = tree(&toml, &[("a.sh", "")]);
    assert!(mistakes(&dir, &config).contains("cannot use the workspace"));
}

proptest! {
    #[test]
    fn no_header_panics(bytes in prop::collection::vec(any::<u8>(), 0..300), line in "[ -~日\\n]{0,80}") {
        let path = Path::new("t");
        let _ = header::read(path, path, &bytes);
        let mut start = b"# belljar: ".to_vec();
        start.extend_from_slice(line.as_bytes());
        start.extend_from_slice(&bytes);
        if let Err(wrong) = header::read(path, path, &start) {
            prop_assert!(wrong.has_errors());
            prop_assert!(!wrong.to_string().is_empty());
        }
    }
}
