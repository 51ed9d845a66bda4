//! Runs a parsed configuration.

use std::collections::HashMap;
use std::rc::Rc;

use super::MAX_CONFIG;
use super::script::{self, Block, Node, Piece, Word};
use crate::boot::{BootEntry, FileRef, Place, bls, environment, file_ref};
use crate::description::Volume;
use crate::fs::{FileSystems, Kind};

/// Commands that are run, those of the entries' bodies not counted.
const MAX_STEPS: u32 = 20_000;
/// Functions, sourced files and blocks in one another.
const MAX_DEPTH: u32 = 24;
/// Entries of a menu and its submenus.
const MAX_ENTRIES: usize = 128;
/// All values of variables together, and a single word.
const MAX_TEXT: usize = 64 << 10;

/// What GRUB says of itself and configurations ask for.
const GIVEN: &[(&str, &str)] = &[
    ("grub_platform", "pc"),
    ("grub_cpu", "x86_64"),
    ("feature_menuentry_id", "y"),
    ("feature_menuentry_options", "y"),
    ("feature_platform_search_hint", "y"),
    ("feature_default_font_path", "y"),
    ("feature_all_video_module", "y"),
    ("feature_chainloader_bpb", "y"),
    ("feature_ntldr", "y"),
    ("feature_nativedisk_cmd", "y"),
    ("feature_timeout_style", "y"),
    ("feature_200_final", "y"),
];

/// Indices from the menu down into its submenus.
pub(super) type Path = Vec<usize>;

/// One line of a menu.
#[derive(Clone, Debug)]
struct Item {
    title: String,
    id: String,
    body: Body,
    /// Index of the submenu's own in `Run::items`; none for the menu itself.
    parent: Option<usize>,
}

#[derive(Clone, Debug)]
enum Body {
    Entry(Block),
    Submenu,
    /// And the place where its paths begin.
    Specified(Box<bls::Specified>, Place),
}

/// What an entry has asked for so far.
#[derive(Clone, Debug, Default)]
struct Asked {
    kernel: Option<FileRef>,
    words: Vec<String>,
    initrds: Vec<FileRef>,
    other: Option<String>,
    missing: Option<String>,
    notes: Vec<String>,
}

/// Words that are being made; none is answered when there is no room for more.
struct Expanded {
    words: Vec<String>,
    open: Option<String>,
    room: usize,
}

impl Expanded {
    fn add(&mut self, text: &str) -> Option<()> {
        self.room = self.room.checked_sub(text.len())?;
        self.open.get_or_insert_default().push_str(text);
        Some(())
    }

    fn close(&mut self) -> Option<()> {
        if let Some(word) = self.open.take() {
            // A word of a single character takes room too.
            self.room = self.room.checked_sub(size_of::<String>())?;
            self.words.push(word);
        }
        Some(())
    }

    /// What is not quoted falls apart at its spaces.
    fn add_split(&mut self, value: &str) -> Option<()> {
        for (index, part) in value.split([' ', '\t']).enumerate() {
            if index > 0 {
                self.close()?;
            }
            if !part.is_empty() {
                self.add(part)?;
            }
        }
        Some(())
    }
}

enum Flow {
    On(bool),
    Return(bool),
    /// Limits, or an end of all.
    Stop,
}

pub(super) struct Run<'r, 'f> {
    volumes: &'r [Volume],
    fs: &'r mut FileSystems<'f>,
    home: Place,
    variables: HashMap<String, String>,
    functions: HashMap<String, Block>,
    arguments: Vec<String>,
    items: Vec<Item>,
    submenu: Option<usize>,
    asked: Asked,
    steps: u32,
    depth: u32,
    pub(super) notes: Vec<String>,
}

impl<'r, 'f> Run<'r, 'f> {
    pub(super) fn new(volumes: &'r [Volume], fs: &'r mut FileSystems<'f>, home: &Place) -> Self {
        let device = volumes.get(home.volume).map(Volume::grub_name).unwrap_or_default();
        let directory = home.path.rsplit_once('/').map_or("", |(directory, _)| directory);
        let mut variables: HashMap<String, String> =
            GIVEN.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        variables.insert("prefix".into(), format!("({device}){directory}"));
        variables.insert("config_directory".into(), format!("({device}){directory}"));
        variables.insert("root".into(), device);
        Self {
            volumes,
            fs,
            home: home.clone(),
            variables,
            functions: HashMap::new(),
            arguments: Vec::new(),
            items: Vec::new(),
            submenu: None,
            asked: Asked::default(),
            steps: MAX_STEPS,
            depth: 0,
            notes: Vec::new(),
        }
    }

    pub(super) fn top(&mut self, block: &Block) {
        self.block(block);
    }

    fn note(&mut self, note: String) {
        if !self.notes.contains(&note) && self.notes.len() < 16 {
            self.notes.push(note);
        }
    }

    fn block(&mut self, block: &Block) -> Flow {
        if self.depth >= MAX_DEPTH {
            self.note(format!("its configuration goes more than {MAX_DEPTH} deep; the rest was left out"));
            return Flow::Stop;
        }
        self.depth += 1;
        let mut good = true;
        let mut flow = Flow::On(true);
        for node in block.iter() {
            match self.node(node) {
                Flow::On(result) => good = result,
                other => {
                    flow = other;
                    break;
                }
            }
        }
        self.depth -= 1;
        if let Flow::On(_) = flow { Flow::On(good) } else { flow }
    }

    fn node(&mut self, node: &Node) -> Flow {
        let Some(left) = self.steps.checked_sub(1) else {
            self.note(format!("its configuration has more than {MAX_STEPS} steps; the rest was left out"));
            return Flow::Stop;
        };
        self.steps = left;
        match node {
            Node::Command(words) => {
                let words = self.expand(words);
                self.command(&words)
            }
            Node::If { arms, otherwise } => {
                for (condition, body) in arms {
                    match self.block(condition) {
                        Flow::On(true) => return self.block(body),
                        Flow::On(false) => {}
                        other => return other,
                    }
                }
                self.block(otherwise)
            }
            Node::While { until, condition, body } => loop {
                match self.block(condition) {
                    Flow::On(result) if result == *until => return Flow::On(true),
                    Flow::On(_) => {}
                    other => return other,
                }
                match self.block(body) {
                    Flow::On(_) => {}
                    other => return other,
                }
                // A loop without a command costs too.
                let Some(left) = self.steps.checked_sub(1) else { return Flow::Stop };
                self.steps = left;
            },
            Node::For { variable, words, body } => {
                for word in self.expand(words) {
                    self.set(variable, word);
                    match self.block(body) {
                        Flow::On(_) => {}
                        other => return other,
                    }
                }
                Flow::On(true)
            }
            Node::Function { name, body } => {
                self.functions.insert(name.clone(), Rc::clone(body));
                Flow::On(true)
            }
            Node::WithBlock { words, body } => {
                let words = self.expand(words);
                self.with_block(&words, body)
            }
        }
    }

    fn with_block(&mut self, words: &[String], body: &Block) -> Flow {
        let Some((command, words)) = words.split_first() else { return self.block(body) };
        let submenu = match command.as_str() {
            "menuentry" => false,
            "submenu" => true,
            _ => return Flow::On(true),
        };
        let mut title = None;
        let mut id = String::new();
        let mut words = words.iter();
        while let Some(word) = words.next() {
            match word.as_str() {
                "--id" => id = words.next().cloned().unwrap_or_default(),
                "--class" | "--users" | "--hotkey" | "--source" => drop(words.next()),
                word if word.starts_with("--") => {
                    if let Some(value) = word.strip_prefix("--id=") {
                        id = value.to_owned();
                    }
                }
                word => title = title.or(Some(word.to_owned())),
            }
        }
        let title = title.unwrap_or_default();
        let item = Item {
            title,
            id,
            body: if submenu { Body::Submenu } else { Body::Entry(Rc::clone(body)) },
            parent: self.submenu,
        };
        if !self.add(item) || !submenu {
            return Flow::On(true);
        }
        // GRUB runs it when it is chosen, with what is set then; what is in it does not depend on that.
        let before = self.submenu.replace(self.items.len() - 1);
        let flow = self.block(body);
        self.submenu = before;
        match flow {
            Flow::Stop => Flow::Stop,
            _ => Flow::On(true),
        }
    }

    fn add(&mut self, item: Item) -> bool {
        if self.items.len() >= MAX_ENTRIES {
            self.note(format!("its menu has more than {MAX_ENTRIES} entries; the rest was left out"));
            return false;
        }
        self.items.push(item);
        true
    }

    fn value(&self, name: &str) -> String {
        match name.parse::<usize>() {
            Ok(0) => String::new(),
            Ok(n) => self.arguments.get(n - 1).cloned().unwrap_or_default(),
            Err(_) => match name {
                "?" => "0".into(),
                "#" => self.arguments.len().to_string(),
                "@" | "*" => self.arguments.join(" "),
                _ => self.variables.get(name).cloned().unwrap_or_default(),
            },
        }
    }

    fn set(&mut self, name: &str, value: String) {
        let total: usize = self.variables.iter().map(|(k, v)| k.len() + v.len()).sum();
        if total + name.len() + value.len() > MAX_TEXT {
            self.note("its variables take too much room; the rest was left out".into());
            self.steps = 0;
            return;
        }
        self.variables.insert(name.to_owned(), value);
    }

    /// Words with the values of variables put in.
    fn expand(&mut self, words: &[Word]) -> Vec<String> {
        let mut expanded = Expanded { words: Vec::new(), open: None, room: MAX_TEXT };
        for piece in words.iter().flat_map(|word| word.0.iter().map(Some).chain([None])) {
            let fits = match piece {
                None => expanded.close(),
                Some(Piece::Text(text)) => expanded.add(text),
                Some(Piece::Variable(name, true)) => expanded.add(&self.value(name)),
                Some(Piece::Variable(name, false)) => expanded.add_split(&self.value(name)),
            };
            if fits.is_none() {
                self.note("its variables take too much room; the rest was left out".into());
                self.steps = 0;
                return Vec::new();
            }
        }
        expanded.words
    }

    fn command(&mut self, words: &[String]) -> Flow {
        let Some((command, words)) = words.split_first() else { return Flow::On(true) };
        if let Some(body) = self.functions.get(command).cloned() {
            let before = std::mem::replace(&mut self.arguments, words.to_vec());
            let flow = self.block(&body);
            self.arguments = before;
            return match flow {
                Flow::Return(result) => Flow::On(result),
                other => other,
            };
        }
        let first = words.first().map(String::as_str).unwrap_or_default();
        Flow::On(match command.as_str() {
            "set" => {
                if let Some((name, value)) = first.split_once('=') {
                    self.set(name, value.to_owned());
                }
                true
            }
            "unset" => {
                for name in words {
                    self.variables.remove(name);
                }
                true
            }
            "[" | "test" => {
                let words = words.strip_suffix(&["]".to_owned()]).unwrap_or(words);
                self.test(words)
            }
            "!" => return self.negated(words),
            "false" | "regexp" | "keystatus" | "background_image" => false,
            "return" => return Flow::Return(first.is_empty() || first == "0"),
            "search" | "search.fs_uuid" | "search.fs_label" | "search.file" | "search.fs_file" => {
                self.search(command, words)
            }
            "load_env" => self.load_env(words),
            "source" | "." | "configfile" => return self.source(first),
            "blscfg" => self.blscfg(),
            "linux" | "linuxefi" | "linux16" => self.linux(words),
            "initrd" | "initrdefi" | "initrd16" => self.initrd(words),
            "chainloader" | "multiboot" | "multiboot2" | "kfreebsd" | "knetbsd" | "kopenbsd" | "fwsetup" | "reboot"
            | "halt" | "exit" => {
                self.asked.other.get_or_insert_with(|| command.clone());
                true
            }
            // What GRUB draws or loads: `insmod`, `terminal_output`, `echo` and the like.
            _ => match command.split_once('=') {
                Some((name, value)) if !name.is_empty() && words.is_empty() => {
                    self.set(name, value.to_owned());
                    true
                }
                _ => true,
            },
        })
    }

    fn negated(&mut self, words: &[String]) -> Flow {
        if self.depth >= MAX_DEPTH {
            return Flow::Stop;
        }
        self.depth += 1;
        let flow = self.command(words);
        self.depth -= 1;
        match flow {
            Flow::On(result) => Flow::On(!result),
            other => other,
        }
    }

    /// `(device)/path`, or a path on `$root`.
    fn place(&self, path: &str) -> Option<Place> {
        let (device, path) = match path.strip_prefix('(').and_then(|rest| rest.split_once(')')) {
            Some((device, path)) => (device.to_owned(), path),
            None => (self.value("root"), path),
        };
        let volume = if device.is_empty() { self.home.volume } else { volume_named(self.volumes, &device)? };
        // GRUB counts from the top of a btrfs; SUSE's, if it is told to, from the default subvolume.
        let relative = matches!(self.value("btrfs_relative_path").as_str(), "y" | "yes" | "1");
        let view = if relative || volume == self.home.volume { self.home.view } else { crate::fs::View::Top };
        path.starts_with('/').then(|| Place { volume, view, path: path.to_owned() })
    }

    fn is_there(&mut self, path: &str) -> Option<(Kind, u64)> {
        let place = self.place(path)?;
        let (_, stat) = self.fs.resolve(place.volume, place.view, &place.path).ok()?;
        Some((stat.kind, stat.size))
    }

    fn read(&mut self, path: &str) -> Option<String> {
        let place = self.place(path)?;
        let bytes = self.fs.read(place.volume, place.view, &place.path, MAX_CONFIG).ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn source(&mut self, path: &str) -> Flow {
        let Some(text) = self.read(path) else { return Flow::On(false) };
        match script::parse(&text) {
            Ok(block) => match self.block(&block) {
                Flow::Return(result) => Flow::On(result),
                other => other,
            },
            Err(error) => {
                self.note(format!("{path}, which it reads, cannot be understood: {error}"));
                Flow::On(false)
            }
        }
    }

    fn load_env(&mut self, words: &[String]) -> bool {
        let mut file = format!("{}/grubenv", self.value("prefix"));
        let mut wanted = Vec::new();
        let mut words = words.iter();
        while let Some(word) = words.next() {
            match word.as_str() {
                "--file" | "-f" => file = words.next().cloned().unwrap_or_default(),
                "--skip-sig" | "-s" => {}
                name => wanted.push(name),
            }
        }
        let Some(text) = self.read(&file) else { return false };
        for (name, value) in environment(&text) {
            if wanted.is_empty() || wanted.contains(&name) {
                self.set(name, value.to_owned());
            }
        }
        true
    }

    fn search(&mut self, command: &str, words: &[String]) -> bool {
        let mut by = match command {
            "search.fs_uuid" => 'u',
            "search.fs_label" => 'l',
            _ => 'f',
        };
        let mut variable = "root".to_owned();
        let mut names: Vec<&str> = Vec::new();
        let mut words = words.iter();
        while let Some(word) = words.next() {
            match word.as_str() {
                "--fs-uuid" | "-u" => by = 'u',
                "--label" | "-l" => by = 'l',
                "--file" | "-f" => by = 'f',
                "-s" => variable = words.next().cloned().unwrap_or_default(),
                "--hint" | "-h" | "--hint-bios" | "--hint-efi" | "--hint-baremetal" | "--hint-ieee1275"
                | "--hint-arc" => drop(words.next()),
                word => {
                    if let Some(name) = word.strip_prefix("--set=") {
                        variable = name.to_owned();
                    } else if !word.starts_with('-') {
                        names.push(word);
                    }
                }
            }
        }
        let name = if command.starts_with("search.") { names.first() } else { names.last() };
        let Some(name) = name.copied() else { return false };
        if command.starts_with("search.")
            && let Some(second) = names.get(1)
        {
            variable = (*second).to_owned();
        }
        let found = (0..self.volumes.len()).find(|&index| {
            let Some(volume) = self.volumes.get(index) else { return false };
            match by {
                'u' => !volume.content.uuid.is_empty() && volume.content.uuid.eq_ignore_ascii_case(name),
                'l' => volume.content.label == name,
                _ => self.fs.resolve(index, crate::fs::View::Top, name).is_ok(),
            }
        });
        match found.and_then(|index| self.volumes.get(index)) {
            Some(volume) => {
                let device = volume.grub_name();
                self.set(&variable, device);
                true
            }
            None => false,
        }
    }

    fn linux(&mut self, words: &[String]) -> bool {
        let Some((path, words)) = words.split_first() else { return false };
        self.asked.words = words.to_vec();
        self.asked.kernel = self.file(path);
        self.asked.kernel.is_some()
    }

    fn initrd(&mut self, words: &[String]) -> bool {
        self.asked.initrds.clear();
        for word in words {
            if let Some(rest) = word.strip_prefix("newc:") {
                self.asked.notes.push(format!("a file that GRUB packs into the initrd was left out: {rest}"));
            } else if let Some(file) = self.file(word) {
                self.asked.initrds.push(file);
            }
        }
        true
    }

    fn file(&mut self, path: &str) -> Option<FileRef> {
        let found = self.place(path).and_then(|place| file_ref(self.volumes, self.fs, &place).ok());
        if found.is_none() {
            self.asked.missing.get_or_insert_with(|| path.to_owned());
        }
        found
    }

    fn blscfg(&mut self) -> bool {
        let mut found = false;
        // Fedora's looks on `$boot` where a BIOS started it, and on `$root` where EFI did.
        let boot = self.value("boot");
        let of_boot = (!boot.is_empty()).then(|| format!("({boot})/loader/entries"));
        for directory in ["/loader/entries".to_owned(), "/boot/loader/entries".to_owned()].into_iter().chain(of_boot) {
            let Some(place) = self.place(&directory) else { continue };
            let mut entries = bls::read(self.fs, &place);
            // As GRUB shows them: the newest first.
            entries.sort_by(|a, b| bls::by_name(&b.id, &a.id));
            for entry in entries {
                found = true;
                let item = Item {
                    title: entry.title(),
                    id: entry.id.clone(),
                    body: Body::Specified(Box::new(entry), Place { path: "/".into(), ..place.clone() }),
                    parent: self.submenu,
                };
                if !self.add(item) {
                    return true;
                }
            }
            if found {
                break;
            }
        }
        found
    }

    fn test(&mut self, words: &[String]) -> bool {
        let words: Vec<&str> = words.iter().map(String::as_str).take(256).collect();
        // -o binds less than -a.
        words.split(|word| *word == "-o").any(|all| all.split(|word| *word == "-a").all(|one| self.test_one(one)))
    }

    fn test_one(&mut self, mut words: &[&str]) -> bool {
        let mut wanted = true;
        while let [rest @ .., ")"] = words
            && let ["(", rest @ ..] = rest
        {
            words = rest;
        }
        while let ["!", rest @ ..] = words {
            wanted = !wanted;
            words = rest;
        }
        let number = |text: &str| text.trim().parse::<i64>().unwrap_or(0);
        let result = match *words {
            [] => false,
            ["-z", text] => text.is_empty(),
            ["-n", text] => !text.is_empty(),
            ["-e", path] => self.is_there(path).is_some(),
            ["-f", path] => self.is_there(path).is_some_and(|(kind, _)| kind == Kind::File),
            ["-d", path] => self.is_there(path).is_some_and(|(kind, _)| kind == Kind::Directory),
            ["-s", path] => self.is_there(path).is_some_and(|(_, size)| size > 0),
            [a, "=" | "==", b] => a == b,
            [a, "!=", b] => a != b,
            [a, "<", b] => a < b,
            [a, ">", b] => a > b,
            [a, "-eq", b] => number(a) == number(b),
            [a, "-ne", b] => number(a) != number(b),
            [a, "-lt", b] => number(a) < number(b),
            [a, "-le", b] => number(a) <= number(b),
            [a, "-gt", b] => number(a) > number(b),
            [a, "-ge", b] => number(a) >= number(b),
            [text] => !text.is_empty(),
            _ => false,
        };
        result == wanted
    }

    /// The entry that boots when nobody chooses.
    pub(super) fn choose(&self) -> Option<Path> {
        let default = self.value("default");
        let mut wanted = default.split('>');
        let mut parent = None;
        let mut path = Path::new();
        loop {
            let level: Vec<usize> = (0..self.items.len()).filter(|&i| self.items[i].parent == parent).collect();
            let name = wanted.next().unwrap_or("0").trim();
            let by_name = || {
                level
                    .iter()
                    .position(|&i| !name.is_empty() && (self.items[i].title == name || self.items[i].id == name))
            };
            let index = match name.parse::<usize>() {
                Ok(number) if number < level.len() => number,
                _ => by_name().unwrap_or(0),
            };
            let &item = level.get(index)?;
            path.push(item);
            match self.items[item].body {
                Body::Submenu => parent = Some(item),
                _ => return Some(path),
            }
        }
    }

    /// Each entry, by its place in the menu, with what it boots, or why it boots no Linux that is there.
    pub(super) fn entries(&mut self) -> Vec<(Path, Result<BootEntry, String>)> {
        let mut found = Vec::new();
        for (index, item) in self.items.clone().into_iter().enumerate() {
            let mut path = vec![index];
            let mut parent = item.parent;
            while let Some(above) = parent {
                path.insert(0, above);
                parent = self.items.get(above).and_then(|item| item.parent);
            }
            let outcome = match &item.body {
                Body::Submenu => continue,
                Body::Entry(body) => self.run_entry(&item, body),
                Body::Specified(entry, root) => {
                    let variables = self.variables.clone();
                    entry.boot(self.volumes, self.fs, root, &|name| variables.get(name).cloned())
                }
            };
            found.push((path, outcome));
        }
        found
    }

    fn run_entry(&mut self, item: &Item, body: &Block) -> Result<BootEntry, String> {
        let variables = self.variables.clone();
        let functions = self.functions.clone();
        self.set("chosen", item.title.clone());
        self.asked = Asked::default();
        self.steps = MAX_STEPS / 20;
        self.depth = 0;
        let items = self.items.len();
        self.block(body);
        self.items.truncate(items);
        self.variables = variables;
        self.functions = functions;
        let asked = std::mem::take(&mut self.asked);
        if let Some(path) = asked.missing {
            return Err(format!("it names {path}, which is not there"));
        }
        match (asked.kernel, asked.other) {
            (Some(kernel), _) => Ok(BootEntry {
                title: item.title.clone(),
                kernel,
                initrds: asked.initrds,
                command_line: command_line(&asked.words),
                from: String::new(),
                guess: false,
                notes: asked.notes,
            }),
            (None, Some(other)) => Err(format!("it starts no kernel but does {other}")),
            (None, None) => Err("it starts no kernel".into()),
        }
    }
}

/// As GRUB hands it to the kernel.
fn command_line(words: &[String]) -> String {
    let quoted = |word: &String| if word.contains(' ') { format!("\"{word}\"") } else { word.clone() };
    words.iter().map(quoted).collect::<Vec<_>>().join(" ")
}

/// The volume that GRUB calls so; the number of the disk says nothing, for here there is one.
fn volume_named(volumes: &[Volume], device: &str) -> Option<usize> {
    let exact = volumes.iter().position(|volume| volume.grub_name() == device);
    exact.or_else(|| {
        let number = match device.split_once(',') {
            Some((_, partition)) => partition.trim_start_matches(|c: char| c.is_ascii_alphabetic()).parse::<u32>().ok(),
            None if device.starts_with("hd") => return volumes.iter().position(|volume| volume.partition.is_none()),
            None => return None,
        };
        volumes.iter().position(|volume| number.is_some() && volume.partition.as_ref().map(|p| p.number) == number)
    })
}
