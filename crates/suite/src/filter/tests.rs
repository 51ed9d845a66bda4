use proptest::prelude::*;

use super::*;

fn yes(filter: &str, name: &str, guest: &str, tags: &[&str]) -> bool {
    let tags = tags.iter().map(|&t| t.to_owned()).collect();
    let id = format!("storage/{name}@{guest}");
    let path = format!("tests/{name}");
    let subject =
        Subject { id: &id, path: &path, name, suite: "storage", guest, family: None, tags: &tags, to_be_listed: false };
    filter.parse::<Filter>().unwrap().answer(&subject) == Answer::Yes
}

#[test]
fn matches_as_documented() {
    for (filter, expected) in [
        ("lvm", true),
        ("storage/lvm.sh@debian", true),
        ("./tests/lvm.sh", true),
        ("tests/", true),
        ("raid", false),
        ("raid or lvm", true),
        ("raid | lvm", true),
        ("raid || lvm", true),
        ("lvm and raid", false),
        ("lvm && not raid", true),
        ("!raid&lvm", true),
        ("not (raid or lvm)", false),
        ("all()", true),
        ("none( )", false),
        ("name(lvm)", true),
        ("name(tests)", false),
        ("name(=lvm)", false),
        ("name(=lvm.sh)", true),
        ("name(/^l.m\\.sh$/)", true),
        ("name(/a\\/b|lv/)", true),
        ("id(=storage/lvm.sh@debian)", true),
        ("guest(debian)", true),
        ("guest(deb)", false),
        ("guest(deb*)", true),
        ("guest(=deb*)", false),
        ("guest(/deb/)", true),
        ("suite(storage)", true),
        ("tag(slow)", true),
        ("tag(fast)", false),
        ("tag(/^s/) and guest(d?bian) and ! tag(net)", true),
        ("lvm or raid and none()", true),
        ("(lvm or raid) and none()", false),
        ("name( lvm )", true),
        ("name(\\ lvm)", false),
    ] {
        assert_eq!(yes(filter, "lvm.sh", "debian", &["slow", "disk"]), expected, "{filter}");
    }
    assert!(yes("name(=a \\(b\\).sh)", "a (b).sh", "x", &[]));
}

#[test]
fn waits_for_names_that_are_not_known() {
    let tags = BTreeSet::new();
    let subject = Subject {
        id: "unit/bin@host",
        path: "target/bin",
        name: "bin",
        suite: "unit",
        family: None,
        guest: "host",
        tags: &tags,
        to_be_listed: true,
    };
    for (filter, answer) in [
        ("bin", Answer::Yes),
        ("some::case", Answer::Depends),
        ("name(=bin)", Answer::Depends),
        ("name(=bin::some::case)", Answer::Depends),
        ("name(=binary::some::case)", Answer::No),
        ("not name(=other::case)", Answer::Yes),
        ("id(=unit/bin@host)", Answer::Depends),
        ("id(=unit/bin::case@host)", Answer::Depends),
        ("id(=unit/bin::case@other)", Answer::No),
        ("id(=unit/other::case@host)", Answer::No),
        ("id(=target/bin)", Answer::Depends),
        ("not bin", Answer::No),
        ("not some::case", Answer::Depends),
        ("guest(other) and some::case", Answer::No),
        ("guest(host) and some::case", Answer::Depends),
        ("guest(host) or some::case", Answer::Yes),
        ("guest(other)", Answer::No),
    ] {
        assert_eq!(filter.parse::<Filter>().unwrap().answer(&subject), answer, "{filter}");
    }
}

#[test]
fn several_arguments_are_alternatives() {
    let filter = Filter::of_arguments(&["lvm and raid", "net or fs"]).unwrap();
    assert_eq!(filter.to_string(), "(lvm and raid) or net or fs");
    assert_eq!(Filter::of_arguments::<&str>(&[]).unwrap(), Filter::All);
    assert_eq!(filter.names(), []);
    let filter: Filter = "guest(a) and not (tag(b*) or suite(=c))".parse().unwrap();
    assert_eq!(filter.names(), [(Field::Guest, "a"), (Field::Suite, "c")]);
}

#[test]
fn mistakes_are_pointed_at() {
    let mut out = String::new();
    for wrong in [
        "",
        "lvm raid",
        "lvm and",
        "and lvm",
        "lvm or or raid",
        "(lvm",
        "lvm)",
        "()",
        "gest(debian)",
        "colour(red)",
        "name(lvm",
        "name()",
        "name(=)",
        "name(/a(/)",
        "name(/abc)",
        "name(/a/ b)",
        "guest([a)",
        "all(x)",
        "name(/\\w{1000}{1000}/)",
        "日本 日本",
    ] {
        out.push_str(&format!("{}\n\n", wrong.parse::<Filter>().unwrap_err()));
    }
    out.push_str(&format!("{}\n", "!".repeat(100).parse::<Filter>().unwrap_err().message));
    insta::assert_snapshot!(out);
}

fn matcher(field: Field) -> BoxedStrategy<Matcher> {
    let text = "[a-zA-Z0-9()/=\\\\!&| .日*-]{1,12}";
    let exact = text.prop_map(Matcher::Exact);
    // In pieces, for a slash with a backslash before it is not what a parser leaves.
    let piece = prop::sample::select(vec!["a", ".", "/", "\\\\", "\\.", "x*", "(b|c)", "日"]);
    let regex = prop::collection::vec(piece, 0..6).prop_map(|p| Matcher::regex(&p.concat()).unwrap());
    let plain = match field {
        Field::Id | Field::Name => text.prop_map(Matcher::Contains).boxed(),
        _ => text.prop_filter_map("a glob", |t| Matcher::glob(&t).ok()).boxed(),
    };
    prop_oneof![exact, regex, plain].boxed()
}

fn filter() -> impl Strategy<Value = Filter> {
    let is = prop::sample::select(Field::ALL.map(|(_, f)| f).to_vec())
        .prop_flat_map(|field| matcher(field).prop_map(move |m| Filter::Is(field, m)));
    let leaf = prop_oneof![Just(Filter::All), Just(Filter::None), is];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            inner.clone().prop_map(|f| Filter::Not(Box::new(f))),
            prop::collection::vec(inner.clone(), 2..4).prop_map(Filter::and),
            prop::collection::vec(inner, 2..4).prop_map(Filter::or),
        ]
    })
}

proptest! {
    #[test]
    fn what_is_written_parses_to_the_same(filter in filter()) {
        let text = filter.to_string();
        prop_assert_eq!(text.parse::<Filter>().map_err(|e| e.to_string()), Ok(filter), "{}", text);
    }

    #[test]
    fn the_parser_never_panics(text in "\\PC{0,40}|([a-z()/=!&| \\\\]|and|or|not|name\\(|guest\\(|/|\\)){0,20}") {
        match text.parse::<Filter>() {
            Ok(filter) => prop_assert_eq!(filter.to_string().parse::<Filter>().unwrap(), filter),
            Err(error) => { let _ = error.to_string(); }
        }
    }
}
