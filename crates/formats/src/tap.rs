//! The Test Anything Protocol, versions 13 and 14 (testanything.org), and the kernel's dialect KTAP
//! (docs.kernel.org/dev-tools/ktap.html), with nested tests.
//!
//! Lines that are neither are ignored, as TAP asks. Since a nested test's parent has the last word in TAP, and since no word may
//! turn a failure into a pass here, a nested failure under a parent that is `ok` is reported all the same, unless the parent is
//! marked `TODO` or `SKIP`.

mod line;

use std::collections::HashSet;

use belljar_model::test_run::{MAX_MESSAGE, SubVerdict, Subresult, keep_start};

use self::line::{Directive, Element, Plan, Point};
use crate::{
    lines::Lines,
    results::{MAX_CASES, Results},
};

/// Deeper nesting is not told apart.
const MAX_DEPTH: usize = 16;
/// Numbers remembered, to notice that one stands twice.
const MAX_NUMBERS: usize = 100_000;
/// Missing cases that are named.
const MAX_MISSING: u64 = 100;

/// Which dialect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// TAP 13 or 14.
    Tap,
    /// kselftest: KTAP; nested output may stand behind `# `; `not ok … # SKIP` is a skip.
    Kselftest,
}

/// Reads a stream of TAP.
#[derive(Debug)]
pub struct TapParser {
    dialect: Dialect,
    lines: Lines,
    levels: Vec<Level>,
    results: Results,
    /// Inside a YAML block: its indentation.
    yaml: Option<usize>,
    /// Set where a further line may belong to the last point: its depth among `levels`.
    last_point: Option<usize>,
    /// Cases held until their parent names them.
    held: usize,
    /// `pragma +strict`: every line must be TAP.
    strict: bool,
    /// How many tests failed by the totals at the end.
    failed_in_all: u64,
}

#[derive(Debug, Default)]
struct Level {
    indent: usize,
    plan: Option<Plan>,
    /// The plan stood after at least one point.
    plan_last: bool,
    count: u64,
    highest: u64,
    numbers: HashSet<u64>,
    cases: Vec<Subresult>,
    dropped: u64,
    dropped_bad: u64,
    /// What is wrong at this level and under it.
    problems: Vec<String>,
    /// Fewer results than planned.
    short: Option<String>,
    /// Results of nested tests that wait for their parent's point.
    children: Option<Children>,
}

#[derive(Debug, Default)]
struct Children {
    cases: Vec<Subresult>,
    dropped: u64,
    dropped_bad: u64,
    problems: Vec<String>,
    skipped: Option<String>,
}

impl TapParser {
    /// A parser at the begin of a stream.
    #[must_use]
    pub fn new(dialect: Dialect) -> Self {
        Self {
            dialect,
            lines: Lines::default(),
            levels: vec![Level::default()],
            results: Results::default(),
            yaml: None,
            last_point: None,
            held: 0,
            strict: false,
            failed_in_all: 0,
        }
    }

    /// Takes bytes, split anywhere.
    pub fn feed(&mut self, bytes: &[u8]) {
        let mut lines = std::mem::take(&mut self.lines);
        lines.feed(bytes, |line| self.line(line));
        self.lines = lines;
    }

    /// The results, at the end of the stream.
    #[must_use]
    pub fn finish(mut self) -> Results {
        let mut lines = std::mem::take(&mut self.lines);
        lines.finish(|line| self.line(line));
        if self.yaml.is_some() {
            self.results.problem("the output ends within a YAML block");
        }
        while self.levels.len() > 1 {
            self.close_level();
        }
        let mut top = self.levels.pop().unwrap_or_default();
        if let Some(orphans) = top.children.take() {
            top.problems
                .push("nested tests are not followed by the result of their parent: the output is cut off".into());
            take_in(&mut top, orphans, None, false);
        }
        let seen_any = top.count > 0 || top.plan.is_some() || !top.cases.is_empty();
        let skipped = check_plan(&mut top, seen_any);
        let planned_more = top.short.take();
        self.results.absent = if seen_any { planned_more } else { Some("there is no TAP in the output".to_owned()) };
        for case in top.cases {
            self.results.add(case);
        }
        let none_bad = !self.results.cases.iter().any(|case| case.result.is_bad());
        if self.failed_in_all > 0 && none_bad && top.dropped_bad == 0 {
            top.problems.push(format!("the totals say that {} tests failed, and no result does", self.failed_in_all));
        }
        self.results.dropped += top.dropped;
        self.results.dropped_bad += top.dropped_bad;
        for problem in top.problems {
            self.results.problem(problem);
        }
        self.results.skipped = skipped;
        self.results
    }

    fn line(&mut self, line: &str) {
        let line = &*line::plain(line);
        let (indent, text, behind_hash) = line::measure(line, self.dialect == Dialect::Kselftest);
        if let Some(yaml) = self.yaml {
            if text.is_empty() || indent >= yaml {
                if indent == yaml && text.trim_end() == "..." {
                    self.yaml = None;
                } else {
                    self.add_detail(line.get(yaml..).unwrap_or(text));
                }
                return;
            }
            // A block ends at the latest where its indentation does.
            self.yaml = None;
        }
        if text.trim_end() == "---"
            && let Some(at) = self.last_point
            && indent == self.levels.get(at).map_or(0, |l| l.indent) + 2
        {
            self.yaml = Some(indent);
            return;
        }
        let Some(element) = line::parse(text, self.dialect) else {
            if let Some(rest) = text.strip_prefix('#') {
                self.comment(indent, rest);
            } else if let Some(pragma) = text.strip_prefix("pragma ") {
                for word in pragma.split([' ', ',', '\t']) {
                    self.strict = (self.strict || word == "+strict") && word != "-strict";
                }
            } else if self.strict && !text.trim().is_empty() {
                let line = keep_start(text, 200);
                self.results.problem(format!("a line is no TAP, which `pragma +strict` does not allow: {line}"));
            }
            return;
        };
        if behind_hash && matches!(element, Element::BailOut(_)) {
            return;
        }
        if let Element::BailOut(why) = element {
            self.results.problem(format!("Bail out! {why}").trim_end());
            return;
        }
        self.enter(indent);
        match element {
            Element::Plan(plan) => self.plan(plan),
            Element::Point(point) => self.point(&point),
            Element::Version => self.last_point = None,
            Element::BailOut(_) => {}
        }
    }

    /// Goes to the level of `indent`: opens one or closes those that are deeper.
    fn enter(&mut self, indent: usize) {
        let mut closed = false;
        while self.levels.len() > 1 && self.top().indent > indent {
            self.close_level();
            closed = true;
        }
        if self.top().indent < indent && self.levels.len() < MAX_DEPTH {
            // Where the innermost came first, what was closed just now belongs to the level between.
            let children = if closed { self.top().children.take() } else { None };
            self.levels.push(Level { indent, children, ..Level::default() });
            self.last_point = None;
        }
    }

    fn top(&mut self) -> &mut Level {
        if self.levels.is_empty() {
            self.levels.push(Level::default());
        }
        let last = self.levels.len() - 1;
        &mut self.levels[last]
    }

    /// Hands a nested level's results to the level above, where they wait for the parent's point.
    fn close_level(&mut self) {
        let Some(mut level) = self.levels.pop() else { return };
        self.last_point = None;
        if let Some(orphans) = level.children.take() {
            level.problems.push("nested tests are not followed by the result of their parent".into());
            take_in(&mut level, orphans, None, false);
        }
        let skipped = check_plan(&mut level, self.dialect == Dialect::Tap);
        level.problems.extend(level.short.take());
        let children = self.top().children.get_or_insert_default();
        children.cases.append(&mut level.cases);
        children.problems.append(&mut level.problems);
        children.problems.truncate(20);
        children.dropped += level.dropped;
        children.dropped_bad += level.dropped_bad;
        children.skipped = children.skipped.take().or(skipped);
    }

    fn plan(&mut self, plan: Plan) {
        self.last_point = None;
        let level = self.top();
        if level.plan.is_some() {
            level.problems.push("there are two plans".into());
            return;
        }
        level.plan_last = level.count > 0;
        level.plan = Some(plan);
    }

    fn point(&mut self, point: &Point) {
        let dialect = self.dialect;
        let full = self.held >= MAX_CASES;
        let at = self.levels.len().saturating_sub(1);
        self.last_point = Some(at);
        let level = self.top();
        level.count += 1;
        if level.plan_last {
            level.plan_last = false;
            level.problems.push("a result stands after the plan that should have been the end".into());
        }
        let number = match &point.number {
            None => Some(level.highest.saturating_add(1)),
            Some(text) => text.parse().ok(),
        };
        match number {
            Some(n) if n > 0 => {
                level.highest = level.highest.max(n);
                if level.numbers.len() < MAX_NUMBERS && !level.numbers.insert(n) {
                    level.problems.push(format!("result {n} stands twice"));
                }
                if let Some(plan) = &level.plan
                    && n > plan.count
                {
                    level.problems.push(format!("result {n} is beyond the plan of 1..{}", plan.count));
                }
            }
            _ => level.problems.push("a result's number is none".into()),
        }
        level.problems.truncate(20);
        let name = if !point.name.is_empty() {
            point.name.clone()
        } else {
            format!("#{}", point.number.clone().unwrap_or_else(|| level.count.to_string()))
        };
        let (result, message) = weigh(point, dialect);
        let excused = matches!(result, SubVerdict::ExpectedFail | SubVerdict::Skip)
            || (point.ok && matches!(point.directive, Directive::Todo(_)));
        let mut told = false;
        if let Some(children) = level.children.take() {
            let bad = children.cases.iter().any(|c| c.result.is_bad()) || children.dropped_bad > 0;
            let any = !children.cases.is_empty();
            // The parent stands for itself where it says something that its children do not.
            told = any && (bad || !result.is_bad());
            take_in(level, children, Some(&name), excused);
        }
        if !told {
            if full {
                level.dropped += 1;
                level.dropped_bad += u64::from(result.is_bad());
            } else {
                level.cases.push(Subresult { name, result, message, millis: None });
                self.held += 1;
            }
        } else {
            self.last_point = None;
        }
    }

    fn comment(&mut self, indent: usize, text: &str) {
        let text = text.strip_prefix(' ').unwrap_or(text);
        if self.dialect == Dialect::Kselftest
            && indent == 0
            && let Some(bad) = line::failed_in_all(text)
        {
            self.failed_in_all = self.failed_in_all.max(bad);
        }
        if text.starts_with("Subtest:") {
            return;
        }
        if let Some(at) = self.last_point
            && self.levels.get(at).is_some_and(|l| l.indent == indent)
        {
            self.add_detail(text);
        }
    }

    /// Adds a line to the message of the last point, if it failed.
    fn add_detail(&mut self, text: &str) {
        let Some(at) = self.last_point else { return };
        let Some(case) = self.levels.get_mut(at).and_then(|l| l.cases.last_mut()) else { return };
        if !case.result.is_bad() {
            return;
        }
        let message = case.message.get_or_insert_default();
        if message.len() < MAX_MESSAGE {
            if !message.is_empty() {
                message.push('\n');
            }
            let room = MAX_MESSAGE.saturating_sub(message.len());
            message.push_str(keep_start(text, room));
        }
    }
}

/// Moves what nested tests said into the level of their parent.
fn take_in(level: &mut Level, children: Children, parent: Option<&str>, excused: bool) {
    level.dropped += children.dropped;
    level.dropped_bad += if excused { 0 } else { children.dropped_bad };
    for mut case in children.cases {
        if let Some(parent) = parent {
            case.name = format!("{} > {}", keep_start(parent, 200), case.name);
        }
        if excused && case.result.is_bad() {
            case.result = SubVerdict::ExpectedFail;
        }
        level.cases.push(case);
    }
    if !excused {
        let place = parent.map(|p| format!("{}: ", keep_start(p, 200))).unwrap_or_default();
        level.problems.extend(children.problems.into_iter().map(|p| format!("{place}{p}")));
        level.problems.truncate(20);
    }
}

/// Holds the plan against what was seen; gives the reason if the plan skips all.
fn check_plan(level: &mut Level, needed: bool) -> Option<String> {
    let Some(plan) = level.plan.take() else {
        // The kernel's nested tests need none: their parent's result is their end.
        if needed {
            level.problems.push("there is no plan: the output may be cut off".into());
        }
        return None;
    };
    if plan.count == level.count {
        return (plan.count == 0).then(|| plan.skip.unwrap_or_else(|| "the plan is 1..0".into()));
    }
    let mismatch = format!("{} results were planned, and there are {}", plan.count, level.count);
    if level.count < plan.count {
        level.short = Some(mismatch);
    } else {
        level.problems.push(mismatch);
    }
    let mut named = 0;
    let mut number = 1;
    while number <= plan.count && named < MAX_MISSING && number <= MAX_NUMBERS as u64 {
        if !level.numbers.contains(&number) {
            named += 1;
            let name = format!("#{number}");
            level.cases.push(Subresult { name, result: SubVerdict::Missing, message: None, millis: None });
        }
        number += 1;
    }
    None
}

fn weigh(point: &Point, dialect: Dialect) -> (SubVerdict, Option<String>) {
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    match (&point.directive, point.ok) {
        (Directive::None, true) => (SubVerdict::Pass, None),
        (Directive::None, false) => (SubVerdict::Fail, None),
        (Directive::Skip(why), true) => (SubVerdict::Skip, some(why)),
        (Directive::Skip(why), false) if dialect == Dialect::Kselftest => (SubVerdict::Skip, some(why)),
        (Directive::Skip(why), false) => (SubVerdict::Fail, some(&format!("not ok, though marked as skipped: {why}"))),
        (Directive::Todo(why), false) => (SubVerdict::ExpectedFail, some(why)),
        (Directive::Todo(why), true) => (SubVerdict::Pass, some(&format!("passed, though marked as TODO: {why}"))),
        (Directive::Broken(word), _) => (SubVerdict::Error, Some(word.clone())),
    }
}

#[cfg(test)]
mod tests;
