use proptest::prelude::*;

use belljar_guest_spec::{
    Access, BootSource, BusChoice, DiskContent, DiskSpec, DiskTraits, Password, Secret, SectorSize, Wwn,
};

use super::*;
use crate::settings::Layer;

fn parse(text: &str) -> Config {
    Config::parse("/p/belljar.toml", text).unwrap_or_else(|e| panic!("{text}\n{e}"))
}

/// All mistakes of several files.
fn mistakes(files: &[&str]) -> String {
    let shown = files.iter().map(|text| match Config::parse("belljar.toml", text) {
        Ok(_) => format!("NO MISTAKE IN {text}"),
        Err(diagnostics) => diagnostics.to_string(),
    });
    shown.collect::<Vec<_>>().join("\n\n----\n\n")
}

#[test]
fn the_design_s_example() {
    let config = parse(
        r#"
[guests.debian]
image = "images/debian-12.qcow2"
memory = "1GiB"
cpus = 1

[[suites]]
name = "storage"
tests = ["tests/storage/*.sh"]
guests = ["debian"]              # a test runs on each: the matrix
isolation = "test"               # "test": a fresh clone each; "suite": one guest for all
timeout = "5m"
disks = [{ size = "1GiB", serial = "data0" }]

[profile.ci]
retries = 2
fail-fast = false
junit = "junit.xml"
"#,
    );
    let path = PathBuf::from("/p/images/debian-12.qcow2");
    assert_eq!(
        config.guests["debian"].spec.source,
        BootSource::Image { path, format: None, bus: BusChoice::Auto, access: Access::Auto }.into()
    );
    assert_eq!(config.workspace, Path::new("/p"));
    assert_eq!(config.suites[0].guests, ["debian"]);
    assert_eq!(config.suites[0].layer.timeout, Some(Duration::from_secs(300)));
    let disk = DiskSpec { serial: Some("data0".into()), ..DiskSpec::new(DiskContent::Empty(1 << 30)) };
    assert_eq!(config.suites[0].layer.disks, Some(vec![disk]));
    let ci = config.profile("ci").unwrap();
    assert_eq!(ci.layer.retries, Some(Retries::at_once(2)));
    assert_eq!(ci.junit.as_deref(), Some(Path::new("/p/junit.xml")));
}

#[test]
fn a_disk_has_a_kind() {
    let config = parse(
        "[guests.g]
disks = [
  { size = '1G', sector-size = 4096, physical-sector-size = 4096, wwn = '0x5000c500a1b2c3d4', read-only = true, rotational = false,
    write-cache = false, fua = true, discard-granularity = '64K', removable = true, bus = 'scsi', paths = 2 },
  { size = '1G', discard = false }, { directory = 'files', size = '1G', label = 'files' }, { directory = 'files', lab = true },
]
",
    );
    let disks = &config.guests["g"].spec.hardware.disks;
    let first = DiskTraits {
        sector_size: Some(SectorSize::S4096),
        physical_sector_size: Some(SectorSize::S4096),
        wwn: Some(Wwn::parse("0x5000c500a1b2c3d4").unwrap()),
        read_only: true,
        rotational: Some(false),
        write_cache: Some(false),
        fua: Some(true),
        discard: None,
        discard_granularity: Some(65536),
        removable: true,
        paths: Some(2),
        unplugged: false,
    };
    assert_eq!((&disks[0].traits, disks[0].bus), (&first, BusChoice::Scsi));
    assert_eq!(disks[1].traits, DiskTraits { discard: Some(false), ..DiskTraits::default() });
}

#[test]
fn an_empty_file_is_no_mistake() {
    let config = parse("");
    assert_eq!(config.guests.keys().collect::<Vec<_>>(), ["host"]);
    assert_eq!(config.profiles.keys().collect::<Vec<_>>(), ["default"]);
    let empty = Config::empty(Path::new("/p"));
    assert_eq!((empty.path, empty.dir, empty.workspace), (config.path, config.dir, config.workspace));
    parse("\u{feff}[guests.a]\n");
}

#[test]
fn suites_run_on_every_guest_unless_they_say_so() {
    let suite = "[[suites]]\nname = 's'\ntests = 'a'\n";
    assert_eq!(parse(suite).suites[0].guests, ["host"]);
    assert_eq!(parse(&format!("{suite}[guests.b]\n[guests.a]\n")).suites[0].guests, ["a", "b"]);
    assert_eq!(parse(&format!("{suite}guests = ['host', 'a']\n[guests.a]\n")).suites[0].guests, ["host", "a"]);
    let big = parse("[guests.host]\nmemory = '4G'");
    assert_eq!(big.guests["host"].layer.memory, Some(4 << 30));
}

#[test]
fn sources() {
    let source = |text: &str| parse(&format!("[guests.g]\n{text}")).guests["g"].spec.source.clone();
    let none = BootSource::RootDir { root: None, kernel: None, modules: None }.into();
    assert_eq!(source(""), none);
    assert_eq!(
        source("rootfs = '/srv/root'\nkernel = 'k'\nmodules = 'm'"),
        BootSource::RootDir {
            root: Some("/srv/root".into()),
            kernel: Some("/p/k".into()),
            modules: Some("/p/m".into())
        }
        .into()
    );
    assert_eq!(
        source("kernel = 'k'\ninitrd = 'i'\naccess = 'init'"),
        BootSource::Initramfs { kernel: "/p/k".into(), initrd: "/p/i".into(), modules: None, access: Access::Init }
            .into()
    );
}

#[test]
fn passwords_stay_secret() {
    let config = parse("[guests.g]\nimage = 'i'\nlogin = { user = 'u', password = 'hunter2' }");
    let login = config.guests["g"].spec.login.clone().unwrap();
    assert_eq!(login.password, Password::Given(Secret::new("hunter2")));
    assert!(!format!("{config:?}").contains("hunter2"));
    let config = parse("[guests.g]\nimage = 'i'\nlogin = { password-env = 'PW' }");
    let login = config.guests["g"].spec.login.clone().unwrap();
    assert_eq!((login.user.as_str(), login.password), ("root", Password::Env("PW".into())));
    let error = mistakes(&["[guests.g]\nimage = 'i'\nlogin = { user = 'u', password = 'hun\"ter2', usr = 1 }"]);
    assert!(error.contains("usr") && !error.contains("ter2"), "{error}");
}

#[test]
fn profiles_have_what_default_has() {
    let config = parse(
        "[profile.default]\nretries = 1\njobs = 3\njunit = 'a.xml'\ntimeout = '1m'\n\
         overrides = [{ filter = 'a', timeout = '5m' }]\n\
         [profile.ci]\nretries = { count = 2, delay = '1s', backoff = 'exponential', max-delay = '3s' }\nfail-fast = true\n\
         overrides = [{ filter = 'b', timeout = '6m' }]\n",
    );
    let ci = config.profile("ci").unwrap();
    assert_eq!((ci.jobs, ci.fail_fast, ci.junit.as_deref()), (Some(3), true, Some(Path::new("/p/a.xml"))));
    assert_eq!(ci.layer.timeout, Some(Duration::from_secs(60)));
    let filters: Vec<_> = ci.overrides.iter().map(|o| o.filter.to_string()).collect();
    assert_eq!(filters, ["b", "a"]);
    let retries = ci.layer.retries.unwrap();
    let pauses: Vec<_> = (1..=4).map(|n| retries.pause(n).as_secs()).collect();
    assert_eq!((retries.count, pauses), (2, vec![1, 2, 3, 3]));
    assert_eq!(retries.pause(u32::MAX).as_secs(), 3);
    assert!(!config.profile("default").unwrap().fail_fast);
    assert!(config.profile("cj").unwrap_err().to_string().ends_with("did you mean \"ci\"?"));
    assert!(config.guest("debian").unwrap_err().to_string().ends_with("there are \"host\""));
}

#[test]
fn all_mistakes_are_told_at_once() {
    insta::assert_snapshot!(mistakes(&[r#"
colour = "red"
[guests.debian]
image = "debian.qcow2"
memroy = "1GiB"
memory = 1024
cpus = 0
nic = "isolatd"
boot-timeout = "5 parsecs"
disks = [{ size = "1Q" }, { serial = "a b" }, 7]
qemu-args = "-S"
kernel = "vmlinuz"
[guests."bad name"]
[[suites]]
name = "storage"
tests = ["/etc/*", "", "a[", "../x"]
guests = ["debain", "debian", "debian"]
isolation = true
timeout = 90
slow-timeout = "0s"
tags = ["slow", 3]
retries = "two"
fail-fast = true
[[suites]]
name = "storage"
tests = []
group = "db"
[profile.ci]
fail_fast = true
filter = "lvm and"
overrides = [{ timeout = "1m" }, { filter = "gest(x)" }]
"#]));
}

#[test]
fn each_contradiction_is_told() {
    let guest = |text: &str| format!("[guests.g]\n{text}\n");
    let suite = |text: &str| {
        format!("[guests.g]\ndisks = [{{ size = '1G', serial = 'd' }}]\n[[suites]]\nname = 's'\ntests = 'a'\n{text}\n")
    };
    let profile = |text: &str| format!("[guests.g]\n[[suites]]\nname = 's'\ntests = 'a'\n[profile.p]\n{text}\n");
    let files = [
        guest("image = 'i'\nrootfs = '/'\nappend = 'quiet'\nmodules = 'm'\ninitrd = 'x'"),
        guest("image-format = 'raw'\nboot-bus = 'ide'"),
        guest("initrd = 'i'\nrootfs = '/x'"),
        guest("image = 'i'\naccess = 'init'"),
        guest("access = 'console'"),
        guest("login = { user = 'x' }"),
        guest("image = 'i'\nlogin = { user = 'x', password = 'secret', password-env = 'Y' }"),
        guest("container = 'alpine'\nimage = 'i'\ntpm = true"),
        guest("pull = 'missing'"),
        guest(
            "disks = [{ size = '1G', file = 'f' }, { file = 'f', directory = 'd' }, { size = '1G', label = 'l' }, {}, { size = '1G', serial = 'a' }, { size = '1G', serial = 'a' }]",
        ),
        guest(
            "disks = [{ size = '1G', bus = 'sata', sector-size = 4096, read-only = true, removable = true },
  { size = 5000, sector-size = '4K', wwn = '5' }, { size = '5000', sector-size = 4096, physical-sector-size = 512 },
  { size = '1G', bus = 'nvme', wwn = '0x5000c500a1b2c3d4', write-cache = false, discard = false, physical-sector-size = 4096 },
  { size = '1G', discard = false, discard-granularity = '100' }, { size = '1G', bus = 'scsi', paths = 2 },
  { size = '1G', bus = 'scsi', serial = 'p', paths = 9 }]",
        ),
        guest("mount-at = 'mnt'\ncwd = '/a/../b'\nuser = 'a b'"),
        guest("memory = '1M'\nenv = { 'A=B' = 'x', C = 1 }\nworkspace-mode = 'crow'"),
        guest("timeout = '1m'\nslow-timeout = '1m'"),
        "[[suites]]\n".into(),
        suite("guests = []"),
        suite("guests = ['z']"),
        suite("disks = [{ size = '1G', serial = 'd' }]"),
        suite("format = 'junit'"),
        suite("format = 'tapp'"),
        suite("retries = { delay = '1s' }"),
        suite("retries = { count = 1, backoff = 'exponential', max-delay = '5s' }"),
        suite("retries = { count = 1, delay = '10s', max-delay = '5s' }"),
        suite("retries = 101"),
        suite("priority = 12345678901234567890123"),
        suite("requires = 'cmd'"),
        suite("skip = ''"),
        "[groups.g]\n[groups.h]\nmax-parallel = 0\n".into(),
        profile("overrides = [{ filter = 'a' }]"),
        profile("overrides = [{ filter = 'guest(gg) or suite(t)', timeout = '1s', slow-timeout = '2s' }]"),
        profile("max-memory = '1'\njobs = 'all'\nfilter = \"name(\\\"x)\"\njunit = ''"),
        "[profile]\nci = 3\n[guests]\na = []\n".into(),
        "suites = { name = 's' }\n".into(),
    ];
    insta::assert_snapshot!(mistakes(&files.each_ref().map(String::as_str)));
}

#[test]
fn what_is_no_toml_is_told_with_the_rest() {
    insta::assert_snapshot!(mistakes(&[
        "[guests.g]\nmemory = \nmemroy = '1G'\n[guests.g]\ncpus = 1\n",
        "[[suites]\nname = 's'\n",
        "x",
        "a = 'unclosed\n",
        "[guests.g]\ncpus = 1\ncpus = 2\n",
        "\u{1b}[31m = 1",
    ]));
}

#[test]
fn files_that_are_none() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("belljar.toml");
    let error = Config::load(&path, &path).unwrap_err();
    assert!(matches!(error, ConfigError::Read(_)) && error.to_string().contains("belljar.toml"), "{error}");
    fs_err::write(&path, [0xff, 0xfe]).unwrap();
    assert!(Config::load(&path, &path).unwrap_err().to_string().contains("not UTF-8"));
    fs_err::write(&path, "colour = 1").unwrap();
    assert!(Config::load(&path, Path::new("shown.toml")).unwrap_err().to_string().contains("--> shown.toml:1:1"));
}

#[test]
fn the_documented_defaults_are_the_real_ones() {
    use crate::toml_tree::Table;
    let lines = |keys: Vec<crate::toml_tree::Key>| -> String {
        keys.iter().filter(|k| !k.default.starts_with('(')).map(|k| format!("{} = {}\n", k.name, k.default)).collect()
    };
    // A guest of the kind that can have the key.
    let guest = lines(guest::GuestTable::keys());
    let image: String = guest
        .lines()
        .filter(|l| !["rootfs", "append", "pull", "privileged", "systemd"].iter().any(|key| l.starts_with(key)))
        .map(|l| format!("{l}\n"))
        .collect();
    let text = format!(
        "{}[guests.image]\nimage = 'i'\n{image}[[suites]]\nname = 's'\ntests = 'a'\n{}[profile.default]\n{}",
        lines(typed::FileTable::keys()),
        lines(typed::SuiteTable::keys()),
        lines(typed::ProfileTable::keys()),
    );
    let (said, silent) = (parse(&text), parse("[guests.image]\nimage = 'i'\n[[suites]]\nname = 's'\ntests = 'a'\n"));
    assert_eq!(said.workspace, Path::new("/p/."));
    let settle = |config: &Config| {
        let (guest, suite, profile) = (&config.guests["image"], &config.suites[0], &config.profiles["default"]);
        (
            Layer::merge([&suite.layer, &profile.layer, &guest.layer]).settle(&guest.spec.hardware.disks),
            Guest { layer: Layer::default(), ..(**guest).clone() },
            (suite.setup_timeout, suite.guests.clone()),
            (profile.fail_fast, profile.error_retries, profile.jobs, profile.global_timeout),
        )
    };
    assert_eq!(settle(&said), settle(&silent));
    // A pause of zero makes the other keys senseless, so it is given a value here.
    let retries = lines(typed::RetriesTable::keys()).replace("0s", "1s");
    let retries =
        parse(&format!("[profile.default]\nretries = {{ count = 0, {} }}", retries.trim().replace('\n', ", ")));
    let expected = Retries { delay: Duration::from_secs(1), ..Retries::default() };
    assert_eq!(retries.profiles["default"].layer.retries, Some(expected));
}

proptest! {
    #[test]
    fn no_file_panics(
        lines in prop::collection::vec(
            "\\[guests\\.[a-c]\\]|\\[\\[suites\\]\\]|\\[profile\\.[a-c]\\]|(name|tests|guests|image|kernel|disks|retries|timeout|overrides|env|x) = \
             ('[a-c]'|\\['[a-c]'\\]|\\[\\]|\\{\\}|[0-9]{1,3}|'[0-9]m'|\\[\\{ filter = 'a' \\}\\]|\\{ a = 'b' \\})|[ -~]{0,20}|\\PC{0,10}",
            0..12,
        )
    ) {
        match Config::parse("belljar.toml", &lines.join("\n")) {
            Ok(_) => {}
            Err(wrong) => {
                prop_assert!(wrong.has_errors());
                for diagnostic in &wrong {
                    prop_assert!(diagnostic.place.is_some(), "{diagnostic}");
                }
            }
        }
    }
}
