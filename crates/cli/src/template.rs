//! Templates: what the user says about them, and `belljar template`.

use std::{fmt::Write as _, path::Path, time::SystemTime};

use belljar_machine::{
    backend::container::{self, KeptImage},
    lease::{Templates, Use},
    template::{BeingMade, Kept, TemplateStore},
};
use bytesize::ByteSize;

use crate::{
    args::{ExecArgs, HostArgs, TemplateCommand, TemplateMakeArgs},
    env,
    run::{Prepared, Stdin, runtime},
    settings::cache_dir,
    specs, write_out,
};

/// Bytes that templates may take by default: some thirty of a Debian image's.
const LIMIT: u64 = 10 << 30;

/// Where templates are, and whether they are used.
pub(crate) fn settings(args: &HostArgs) -> Result<Templates, String> {
    let switched = match env::get(env::TEMPLATES) {
        None => true,
        Some(text) if text == "on" => true,
        Some(text) if text == "off" => false,
        Some(text) => return Err(format!("{}={}: write on or off", env::TEMPLATES, text.display())),
    };
    let using = if switched && !args.no_template { Use::Make } else { Use::Never };
    Ok(Templates::new(store()?, using))
}

/// For whoever starts no guest.
pub(crate) fn unused() -> Result<Templates, String> {
    Ok(Templates::new(TemplateStore::new(cache_dir()?.join("templates"), u64::MAX), Use::Never))
}

/// Removes what makers of templates that were killed left behind.
pub(crate) fn sweep() {
    // Whoever needs the directory says what is wrong with it.
    if let Ok(dir) = cache_dir() {
        TemplateStore::new(dir.join("templates"), u64::MAX).sweep();
    }
}

/// Where templates are.
fn store() -> Result<TemplateStore, String> {
    let limit = match env::get(env::TEMPLATE_LIMIT) {
        None => LIMIT,
        Some(text) => specs::size(env::TEMPLATE_LIMIT, &text.to_string_lossy())?,
    };
    Ok(TemplateStore::new(cache_dir()?.join("templates"), limit))
}

/// `belljar template`.
pub(crate) fn template(command: TemplateCommand) -> Result<u8, String> {
    match command {
        TemplateCommand::List => list(),
        TemplateCommand::Make(args) => make(&args),
        TemplateCommand::Prune { limit, all } => prune(limit.as_deref(), all),
    }
}

fn list() -> Result<u8, String> {
    let store = store()?;
    let kept = store.list().map_err(|e| unreadable(&store, &e))?;
    let making = store.being_made().map_err(|e| unreadable(&store, &e))?;
    let images = images(false);
    let mut out = String::new();
    if kept.is_empty() && making.is_empty() {
        out.push_str("There are no templates yet: the first run of a guest makes one.\n");
    } else {
        let total = kept.iter().map(|k| k.size).chain(making.iter().map(|m| m.size)).sum();
        out = rows(&kept, &making, SystemTime::now());
        // Writing to a string cannot fail.
        let _ = writeln!(out, "{} of {} in {}", ByteSize(total), ByteSize(store.limit()), store.dir().display());
    }
    if !images.is_empty() {
        out.push_str(&image_rows(&images, SystemTime::now()));
    }
    write_out(out.as_bytes())
}

/// Images that the container engine keeps for Belljar, which are removed if `removes`. That it cannot be asked is told, and no more.
fn images(removes: bool) -> Vec<KeptImage> {
    let asked = crate::settings::host_context(None, env::get(env::ENGINE).as_deref().map(Path::new), None)
        .and_then(|host| runtime()?.block_on(container::kept_images(host, removes)));
    asked.unwrap_or_else(|why| {
        crate::complain_note(&format!("images of containers may be kept, of which nothing can be told: {why}"));
        Vec::new()
    })
}

/// A line for each, in the engine's words.
fn image_rows(images: &[KeptImage], now: SystemTime) -> String {
    let mut out = format!("{:>10}  {:>12}  image that the container engine keeps\n", "size", "used");
    for image in images {
        let used = image.used.map_or_else(|| "not lately".to_owned(), |used| age(used, now));
        let _ = writeln!(out, "{:>10}  {used:>12}  {}", image.size, image.name);
    }
    out
}

/// How long ago it was.
fn age(at: SystemTime, now: SystemTime) -> String {
    let seconds = now.duration_since(at).map_or(0, |d| d.as_secs());
    match seconds {
        0..120 => format!("{seconds} s ago"),
        120..7200 => format!("{} min ago", seconds / 60),
        7200..172_800 => format!("{} h ago", seconds / 3600),
        _ => format!("{} days ago", seconds / 86_400),
    }
}

/// A line for each.
fn rows(kept: &[Kept], making: &[BeingMade], now: SystemTime) -> String {
    let age = |at: SystemTime| age(at, now);
    let mut out = format!("{:<10}  {:>10}  {:>12}  {:>12}  guest\n", "template", "size", "made", "used");
    for one in making {
        let by = one.maker.map_or_else(|| "somebody".to_owned(), |maker| format!("process {maker}"));
        let since = one.since.map_or_else(String::new, |at| format!(", which began {}", age(at)));
        let guest = one.guest.as_deref().unwrap_or("a guest");
        let _ = writeln!(
            out,
            "{:<10}  {:>10}  {:>12}  {:>12}  {}, by {by}{since}",
            &one.key.as_str()[..10],
            ByteSize(one.size).to_string(),
            "being made",
            "",
            guest.replace(char::is_control, "\u{fffd}"),
        );
    }
    for one in kept {
        let guest = one.guest.as_deref().unwrap_or("unusable: it goes when it is next wanted");
        let _ = writeln!(
            out,
            "{:<10}  {:>10}  {:>12}  {:>12}  {}",
            &one.key.as_str()[..10],
            ByteSize(one.size).to_string(),
            one.made.map_or_else(String::new, age),
            age(one.used),
            guest.replace(char::is_control, "\u{fffd}") + &of_what(one),
        );
    }
    out
}

/// The template that it was made of, which it does not need any more.
fn of_what(one: &Kept) -> String {
    one.base.as_ref().map_or_else(String::new, |base| format!(" (made of {})", &base.as_str()[..10]))
}

fn make(args: &TemplateMakeArgs) -> Result<u8, String> {
    let exec = ExecArgs { env: Vec::new(), cwd: None, user: None, guards: Vec::new() };
    let mut prepared = Prepared::new(&args.guest, &args.share, &exec, &args.host, Vec::new(), false)?;
    if settings(&args.host)?.using() == Use::Never {
        return Err(format!("templates are switched off (--no-template, {}=off)", env::TEMPLATES));
    }
    prepared.request.command = None;
    if args.host.dry_run {
        return prepared.show();
    }
    prepared.go(&args.host, Stdin::Empty)
}

fn prune(limit: Option<&str>, all: bool) -> Result<u8, String> {
    let store = store()?;
    let limit = match (limit, all) {
        (_, true) => 0,
        (Some(text), false) => specs::size("--limit", text)?,
        (None, false) => store.limit(),
    };
    let removed = store.prune(limit).map_err(|e| unreadable(&store, &e))?;
    let freed: u64 = removed.iter().map(|k| k.size).sum();
    let mut out = format!("{} removed, {} freed\n", removed.len(), ByteSize(freed));
    if !removed.is_empty() {
        out.push_str(&rows(&removed, &[], SystemTime::now()));
    }
    // The limit is that of templates; images go by themselves when nobody has used them for long.
    let images = if all { images(true) } else { Vec::new() };
    if !images.is_empty() {
        let _ = writeln!(out, "{} images of containers removed", images.len());
        out.push_str(&image_rows(&images, SystemTime::now()));
    }
    write_out(out.as_bytes())
}

fn unreadable(store: &TemplateStore, error: &std::io::Error) -> String {
    format!("cannot read {}: {error}", store.dir().display())
}
