//! Writes every report of a made-up run: `sample DIR UNITS [hostile] [cut]`.

use std::{
    env, fs,
    io::{self, Write},
    path::PathBuf,
};

use belljar_model::RunSummary;
use belljar_report::Format;

mod plausible;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = env::args().skip(1).collect();
    let [dir, count, flags @ ..] = &args[..] else { return Err("usage: sample DIR UNITS [hostile] [cut]".into()) };
    let dir = PathBuf::from(dir);
    fs::create_dir_all(&dir)?;
    let mut events = plausible::log(count.parse()?, flags.iter().any(|f| f == "hostile"));
    if flags.iter().any(|f| f == "cut") {
        events.truncate(events.len() * 2 / 3);
    }
    let mut log = io::BufWriter::new(fs::File::create(dir.join("events.jsonl"))?);
    for event in &events {
        serde_json::to_writer(&mut log, event)?;
        log.write_all(b"\n")?;
    }
    log.flush()?;
    let run = RunSummary::of(&events);
    for (name, format) in [("report.html", Format::Html), ("junit.xml", Format::Junit), ("report.tap", Format::Tap)] {
        let mut text = Vec::new();
        format.write(&run, "", &mut text)?;
        fs::write(dir.join(name), text)?;
    }
    Ok(())
}
