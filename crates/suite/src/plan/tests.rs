use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::{diagnostic::SourceText, header};

const TOML: &str = r#"
[guests.debian]
[guests.arch]
disks = [{ size = "1G", serial = "root" }]
[groups.db]
max-parallel = 1
[[suites]]
name = "storage"
tests = "s/*"
tags = ["disk"]
disks = [{ size = "2G", serial = "data" }]
[[suites]]
name = "net"
tests = "n/*"
guests = ["arch"]
isolation = "suite"
[[suites]]
name = "unit"
tests = "u/*"
guests = ["host"]
format = "libtest"
[profile.ci]
filter = "not tag(slow)"
overrides = [{ filter = "guest(arch) and lvm", timeout = "99s" }, { filter = "name(raid)", skip = "no RAID in CI" }]
"#;

/// Tests as discovery would have found them: suite, name, header lines.
fn setup(tests: &[(&str, &str, &str)]) -> (Config, Discovery) {
    let config = Config::parse("/p/belljar.toml", TOML).unwrap_or_else(|e| panic!("{e}"));
    let test = |(suite, name, header): &(&str, &str, &str)| {
        let header = header::parse(&SourceText::new("t", header), 0, Path::new("/p"), header).unwrap();
        let suite = config.suites.iter().find(|s| s.name == *suite).unwrap();
        let file = format!("{}/{name}", &suite.name[..1]);
        TestFile {
            suite: Arc::clone(suite),
            name: (*name).to_owned(),
            path: Path::new("/p").join(&file),
            in_workspace: PathBuf::from(&file),
            file,
            header,
        }
    };
    let tests = tests.iter().map(test).collect();
    (config, Discovery { tests, ..Discovery::default() })
}

fn usual() -> (Config, Discovery) {
    setup(&[
        ("storage", "lvm.sh", ""),
        ("storage", "raid.sh", "tags = [\"slow\"]"),
        ("storage", "xfs.sh", "guests = [\"debian\"]"),
        ("net", "bridge.sh", ""),
        ("net", "vlan.sh", "skip = \"needs hardware\""),
        ("unit", "bin", ""),
    ])
}

fn ids(plan: &Plan) -> Vec<&str> {
    plan.units.iter().map(|u| u.id.as_str()).collect()
}

fn with<'a>(config: &'a Config, change: impl FnOnce(&mut PlanOptions<'a>)) -> PlanOptions<'a> {
    let mut options = PlanOptions::new(&config.profiles["default"]);
    change(&mut options);
    options
}

#[test]
fn each_test_runs_on_each_guest() {
    let (config, found) = usual();
    let plan = plan(&config, &found, &with(&config, |_| {}));
    assert_eq!(
        ids(&plan),
        [
            "storage/lvm.sh@arch",
            "storage/lvm.sh@debian",
            "storage/raid.sh@arch",
            "storage/raid.sh@debian",
            "storage/xfs.sh@debian",
            "net/bridge.sh@arch",
            "unit/bin@host",
        ]
    );
    assert_eq!(plan.skipped.len(), 1);
    assert_eq!(plan.skipped[0].reason, SkipReason::Said("needs hardware".into()));
    let machines: Vec<_> =
        plan.machines.iter().map(|m| (m.guest.name.as_str(), m.hardware.disks.len(), m.units)).collect();
    assert_eq!(machines, [("arch", 2, 2), ("debian", 1, 3), ("arch", 1, 1), ("host", 0, 1)]);
    assert_eq!(plan.cells[5], Cell { id: "net@arch".into(), units: 5..6, shared: true });
    assert!(plan.units[6].to_be_listed);
    assert_eq!(plan.units[0].guest_path(), "/mnt/hostos/s/lvm.sh");
    assert_eq!(split_id("storage/x/a@b.sh@arch"), Some(("storage", "x/a@b.sh", "arch")));
}

#[test]
fn the_plan_is_shown() {
    let (config, found) = usual();
    let mut options = with(&config, |o| o.profile = &config.profiles["ci"]);
    let plan = plan(&config, &found, &options);
    insta::assert_snapshot!(plan.listing().human(false), @"
    net
      bridge.sh  arch
      vlan.sh    arch  (skipped: needs hardware)
    storage
      lvm.sh  arch debian
      xfs.sh  debian
    unit
      bin  host  (to be listed)
    5 units, 3 skipped
      2 not shown: the filter does not match
    ");
    insta::assert_snapshot!(plan.listing().human(true));
    assert_eq!(plan.units[0].settings.timeout, Duration::from_secs(99));
    options.filter = Some(Filter::All);
    options.partition = Some("slice:1/2".parse().unwrap());
    let plan = super::plan(&config, &found, &options);
    insta::assert_snapshot!(serde_json::to_string_pretty(&plan.listing()).unwrap());
    insta::assert_snapshot!(plan.listing().human(true));
}

#[test]
fn a_filter_that_names_nothing_is_told() {
    let (config, found) = usual();
    let options = with(&config, |o| {
        o.filter = Some("guest(debain) or suite(storag) or tag(slo) or guest(deb*)".parse().unwrap());
    });
    let plan = plan(&config, &found, &options);
    assert_eq!(plan.units.len(), 3);
    insta::assert_snapshot!(plan.notes, @r#"
    note: there is no guest "debain"
      = help: did you mean "debian"?

    note: there is no suite "storag"
      = help: did you mean "storage"?

    note: there is no tag "slo"
      = help: did you mean "slow"?
    "#);
}

#[test]
fn binaries_are_listed_and_planned_again() {
    let (config, found) = usual();
    let case = |name: &str, ignored| Case { name: name.into(), ignored };
    let cases =
        BTreeMap::from([("unit/bin@host".to_owned(), vec![case("a::b", false), case("c", true), case("d", false)])]);
    let filter: Filter = "unit/bin::a or name(/::c$/)".parse().unwrap();
    let first = plan(&config, &found, &with(&config, |o| o.filter = Some(filter.clone())));
    assert_eq!(ids(&first), ["unit/bin@host"]);
    let second = plan(
        &config,
        &found,
        &with(&config, |o| {
            o.filter = Some(filter);
            o.cases = Some(&cases);
        }),
    );
    assert_eq!(ids(&second), ["unit/bin::a::b@host"]);
    let ignored: Vec<_> =
        second.skipped.iter().filter(|s| s.reason == SkipReason::Ignored).map(|s| s.id.as_str()).collect();
    assert_eq!(ignored, ["unit/bin::c@host"]);
}

#[test]
fn what_failed_runs_again() {
    let (config, found) = usual();
    let failed = ["storage/lvm.sh@arch", "gone/x@arch", "unit/bin::x::y@host"].map(str::to_owned).into();
    let again = plan(&config, &found, &with(&config, |o| o.rerun = Some(&failed)));
    assert_eq!(ids(&again), ["storage/lvm.sh@arch", "unit/bin@host"]);
    assert!(again.notes.is_empty(), "not all tests are known yet");
    let cases = BTreeMap::from([("unit/bin@host".to_owned(), vec![Case { name: "x::y".into(), ignored: false }])]);
    let again = plan(
        &config,
        &found,
        &with(&config, |o| {
            o.rerun = Some(&failed);
            o.cases = Some(&cases);
        }),
    );
    assert_eq!(ids(&again), ["storage/lvm.sh@arch", "unit/bin::x::y@host"]);
    assert!(again.notes.to_string().contains("gone/x@arch failed last time"));
}

#[test]
fn the_longest_starts_first() {
    let (config, found) = setup(&[
        ("storage", "a", "guests = [\"debian\"]"),
        ("storage", "b", "guests = [\"debian\"]"),
        ("storage", "c", "guests = [\"debian\"]"),
        ("storage", "d", "guests = [\"debian\"]\n"),
        ("storage", "z", "guests = [\"debian\"]\npriority = 5"),
        ("net", "m", ""),
        ("net", "n", "priority = -1"),
    ]);
    let seconds = [
        ("storage/a@debian", 1),
        ("storage/b@debian", 9),
        ("storage/c@debian", 5),
        ("storage/z@debian", 0),
        ("net/m@arch", 3),
        ("net/n@arch", 3),
    ];
    let durations = seconds.iter().map(|(id, s)| ((*id).to_owned(), Duration::from_secs(*s))).collect();
    let plan = plan(&config, &found, &with(&config, |o| o.durations = Some(&durations)));
    let order: Vec<_> = plan.units.iter().map(|u| u.test.as_str()).collect();
    // d was never timed; m and n share a guest and take six seconds.
    assert_eq!(order, ["z", "d", "b", "m", "n", "c", "a"]);
}

#[test]
fn who_shares_a_guest_goes_by_priority_and_then_as_found() {
    let (config, found) =
        setup(&[("net", "a", ""), ("net", "b", "priority = -1"), ("net", "c", "priority = 9"), ("net", "d", "")]);
    let durations = [("net/d@arch".to_owned(), Duration::from_secs(90))].into_iter().collect();
    let plan = plan(&config, &found, &with(&config, |o| o.durations = Some(&durations)));
    let order: Vec<_> = plan.units.iter().map(|u| u.test.as_str()).collect();
    assert_eq!(order, ["c", "a", "d", "b"]);
}

#[test]
fn repeats_are_attempts() {
    let (config, found) = usual();
    let plan = plan(&config, &found, &with(&config, |o| o.repeat = 3));
    assert_eq!(plan.units.len(), 7);
    assert!(plan.units.iter().all(|u| u.repeat == 3));
}

proptest! {
    #[test]
    fn parts_make_the_whole(names in prop::collection::btree_set("[a-z]{1,4}", 0..20), of in 1_usize..6, hash in any::<bool>(), net in any::<bool>()) {
        let suite = if net { "net" } else { "storage" };
        let tests: Vec<_> = names.iter().map(|n| (suite, n.as_str(), if n.starts_with('q') { "skip = 'q'" } else { "" })).collect();
        let (config, found) = setup(&tests);
        let whole = plan(&config, &found, &with(&config, |_| {}));
        let kind = if hash { "hash" } else { "slice" };
        let mut ids_of_parts = Vec::new();
        let mut said = 0;
        for part in 1..=of {
            let part = plan(&config, &found, &with(&config, |o| o.partition = Some(format!("{kind}:{part}/{of}").parse().unwrap())));
            ids_of_parts.extend(part.units.iter().map(|u| u.id.clone()));
            said += part.skipped.iter().filter(|s| s.reason.is_verdict()).count();
            prop_assert_eq!(part.units.len() + part.skipped.len(), whole.units.len() + whole.skipped.len());
        }
        let mut ids_of_whole: Vec<_> = whole.units.iter().map(|u| u.id.clone()).collect();
        ids_of_whole.sort();
        ids_of_parts.sort();
        prop_assert_eq!(ids_of_parts, ids_of_whole);
        prop_assert_eq!(said, whole.skipped.len());
    }
}
