use std::{
    cell::RefCell,
    collections::HashMap,
    io::{self, Write},
    rc::Rc,
};

use belljar_model::{Event, EventKind};
use belljar_report::{
    Reporter,
    run::Level,
    terminal::{Options, TestReporter},
};
use indicatif::{InMemoryTerm, ProgressDrawTarget};

use crate::plausible;

#[derive(Clone, Default)]
struct Shared(Rc<RefCell<Vec<u8>>>);

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.borrow_mut().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn options(level: Level) -> Options {
    Options {
        level,
        color: false,
        live: None,
        run_dir: "/state/runs/x".into(),
        rerun: Box::new(|u| format!("belljar test '{}'", u.unit)),
        history: HashMap::new(),
    }
}

fn told(events: &[Event], options: Options) -> String {
    let out = Shared::default();
    let mut reporter = Box::new(TestReporter::new(out.clone(), options));
    for event in events {
        reporter.on_event(event).unwrap();
    }
    reporter.finish().unwrap();
    let bytes = out.0.take();
    String::from_utf8(bytes).unwrap()
}

#[test]
fn in_full() {
    insta::assert_snapshot!(told(&plausible::log(30, false), options(Level::Normal)));
}

#[test]
fn quiet_tells_failures_and_the_account() {
    insta::assert_snapshot!(told(&plausible::log(9, false), options(Level::Quiet)));
}

#[test]
fn cut_off() {
    let events = plausible::log(9, false);
    let text = told(&events[..40], options(Level::Normal));
    assert!(text.contains("UNFINISHED"), "{text}");
    assert!(text.contains("lacks its end"), "{text}");
}

#[test]
fn a_hostile_guest_cannot_touch_the_terminal() {
    for color in [false, true] {
        let text = told(&plausible::log(60, true), Options { color, ..options(Level::Verbose) });
        // Only our own sequences: colours that end where they began.
        let mut rest = text.as_str();
        while let Some(at) = rest.find('\x1b') {
            assert!(color);
            rest = &rest[at + 1..];
            let end = rest.find('m').unwrap();
            assert!(["0", "2", "33", "1;31", "1;32", "1;33", "1;35"].contains(&&rest[1..end]), "{}", &rest[..end]);
        }
        assert!(!text.contains(['\r', '\u{9b}', '\u{85}', '\u{202e}', '\u{2028}', '\0']));
    }
}

#[test]
fn live_lines_show_what_runs_and_go_at_the_end() {
    let events = plausible::log(12, false);
    let terminal = InMemoryTerm::new(24, 100);
    let mut history = HashMap::new();
    for event in &events {
        if let EventKind::UnitPlanned(unit) = &event.kind {
            history.insert(unit.unit.clone(), 10_000);
        }
    }
    // Without a rate: at one, which lines are drawn would be a matter of the machine's speed.
    let live = Some(ProgressDrawTarget::term_like(Box::new(terminal.clone())));
    let mut reporter = Box::new(TestReporter::new(io::sink(), Options { live, history, ..options(Level::Normal) }));
    let mut seen = String::new();
    for event in &events {
        reporter.on_event(event).unwrap();
        seen.push_str(&terminal.contents());
        seen.push('\n');
    }
    assert!(seen.contains("storage/mkfs-ext4.sh@debian-12 · running"), "{seen}");
    assert!(seen.contains("passed"), "{seen}");
    assert!(seen.contains("left"), "{seen}");
    reporter.finish().unwrap();
    assert_eq!(terminal.contents(), "");
}
