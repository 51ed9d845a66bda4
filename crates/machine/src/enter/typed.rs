//! The agent, typed over the console: for a guest that has no other way to it.
//!
//! The program is compressed where the guest can undo that, encoded as text, and typed in pieces, each of which a line of shell writes into a file of
//! its own and compares with a checksum before it is acknowledged; a piece that did not arrive whole is typed again. Then the pieces are put
//! together where programs may run, compared as a whole, and the agent is started.
//!
//! It is the guest that compares. A guest that says what is not true gets a broken agent, or one of its own making, as root in it can make
//! anyway: what a command did is believed on the agent's session alone.

use std::time::Duration;

use belljar_model::{EventKind, Phase};
use belljar_share_disk::layout::cksum;
use data_encoding::{BASE64, HEXLOWER};
use flate2::{Compression, write::GzEncoder};
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

use super::run;
use crate::{
    Lost,
    access::{Shell, ShellError, ShellReply, pieces},
    boot::Tell,
    limits::Limits,
    session::console::random_name,
};

/// Characters of a line of base64: a terminal cuts lines at 4095, and the program that reads them wakes once for each.
const LINE: usize = 1000;
/// Lines of a piece, together 32 KiB: a kernel keeps 64 KiB of what is typed and nobody has read yet.
const LINES: usize = 32;
/// How often a piece is typed before we give up.
const TRIES: u32 = 4;
/// How often it is told how far it has got.
const TELL_EVERY: Duration = Duration::from_secs(10);
/// Where the guest may have room, and lets programs run.
const PLACES: [&str; 4] = ["/run", "/dev/shm", "/tmp", "/var/tmp"];
/// What tools are tried with.
const SAMPLE: &[u8] = b"Belljar\n";

/// What came of typing.
#[derive(Debug)]
pub(super) enum Typed {
    /// It was started, and answered so.
    Ran(ShellReply),
    /// It was not, for this reason.
    Cannot(String),
    /// The same, and the next time it may be: the host, or the line, had its day.
    NotNow(String),
}

/// What turns what is typed into bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Decoder {
    /// Lines of base64, by this program, handed to it by that one, which is followed by their number.
    Base64 { program: &'static str, reader: &'static str },
    /// `printf`, and nothing but the shell.
    Printf,
}

/// What sums up a file; its standard output begins with the sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sum {
    Cksum(&'static str),
    Sha256(&'static str),
    /// Nothing but the number of bytes.
    Size,
    Nothing,
}

/// What the guest has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tools {
    decoder: Decoder,
    gunzip: Option<&'static str>,
    sum: Sum,
}

/// In the order of preference; all read standard input.
const DECODERS: [&str; 2] = ["base64 -d", "busybox base64 -d"];
const READERS: [&str; 3] = ["dd bs=4096 count=", "busybox dd bs=4096 count=", "head -n "];
const GUNZIPS: [&str; 4] = ["gunzip -c", "gzip -dc", "busybox gunzip -c", "zcat"];
const SUMS: [Sum; 5] = [
    Sum::Cksum("cksum"),
    Sum::Sha256("sha256sum"),
    Sum::Cksum("busybox cksum"),
    Sum::Sha256("busybox sha256sum"),
    Sum::Size,
];

impl Sum {
    fn program(self) -> &'static str {
        match self {
            Self::Cksum(program) | Self::Sha256(program) => program,
            Self::Size => "wc -c",
            Self::Nothing => "nothing",
        }
    }

    /// What it says of these bytes at first.
    fn of(self, bytes: &[u8]) -> String {
        match self {
            Self::Cksum(_) => format!("{} {}", cksum(bytes), bytes.len()),
            Self::Sha256(_) => HEXLOWER.encode(Sha256::digest(bytes).as_slice()),
            Self::Size => bytes.len().to_string(),
            Self::Nothing => String::new(),
        }
    }

    /// A command that succeeds if the file has these bytes, as far as that can be told.
    fn check(self, file: &str, bytes: &[u8]) -> String {
        match self {
            Self::Cksum(program) | Self::Sha256(program) => {
                format!("case $({program} <{file}) in \"{}\"*);;*)false;;esac", self.of(bytes))
            }
            Self::Size => format!("[ $(wc -c <{file}) -eq {} ]", bytes.len()),
            Self::Nothing => "true".to_owned(),
        }
    }
}

/// Part of what is typed.
#[derive(Debug, PartialEq, Eq)]
struct Piece<'a> {
    bytes: &'a [u8],
    lines: Vec<String>,
}

impl Decoder {
    /// The bytes, in pieces.
    fn pieces(self, bytes: &[u8]) -> Vec<Piece<'_>> {
        match self {
            Self::Base64 { .. } => {
                let of = |bytes: &'_ [u8]| bytes.chunks(LINE / 4 * 3).map(|line| BASE64.encode(line)).collect();
                bytes.chunks(LINE / 4 * 3 * LINES).map(|bytes| Piece { bytes, lines: of(bytes) }).collect()
            }
            Self::Printf => {
                let (mut all, mut rest) = (Vec::new(), bytes);
                for some in pieces(bytes).chunks(LINES) {
                    let (bytes, others) = rest.split_at(some.iter().map(|(_, of)| of).sum());
                    rest = others;
                    // At its start it would be an option.
                    let line = |(text, _): &(String, usize)| match text.strip_prefix('-') {
                        Some(text) => format!("\\055{text}"),
                        None => text.clone(),
                    };
                    all.push(Piece { bytes, lines: some.iter().map(line).collect() });
                }
                all
            }
        }
    }

    /// The command that writes so many lines of its terminal to a file, behind one that it throws away.
    fn command(self, lines: usize, file: &str) -> String {
        match self {
            Self::Base64 { program, reader } => {
                format!("read -r _x;{reader}{lines} 2>/dev/null|{program} >{file}")
            }
            Self::Printf => format!(
                "read -r _x;_i=0;while [ $_i -lt {lines} ];do _l=;IFS= read -r _l;printf \"$_l\";_i=$((_i+1));done >{file}"
            ),
        }
    }

    fn program(self) -> &'static str {
        match self {
            Self::Base64 { program, .. } => program,
            Self::Printf => "printf",
        }
    }
}

/// Types the agent, and has it start.
///
/// # Errors
///
/// When the guest's shell does not answer any more.
pub(super) async fn type_agent(
    shell: &mut Shell,
    agent: &[u8],
    why: &str,
    limits: &Limits,
    tell: Tell<'_>,
) -> Result<Typed, Lost> {
    let tools = match find_tools(shell, limits).await? {
        Ok(tools) => tools,
        Err(lacking) => return Ok(Typed::Cannot(lacking)),
    };
    let Some(dir) = make_dir(shell, limits).await? else {
        return Ok(Typed::Cannot(format!("it can write to none of {}", PLACES.join(", "))));
    };
    let outcome = type_into(shell, agent, (tools, &dir), why, limits, tell).await?;
    if let Typed::Cannot(_) | Typed::NotNow(_) = &outcome {
        run(shell, &format!("rm -rf {dir}"), limits).await?;
    }
    Ok(outcome)
}

async fn type_into(
    shell: &mut Shell,
    agent: &[u8],
    (tools, dir): (Tools, &str),
    why: &str,
    limits: &Limits,
    tell: Tell<'_>,
) -> Result<Typed, Lost> {
    let packed = tools.gunzip.map(|_| gzip(agent));
    let bytes = packed.as_deref().unwrap_or(agent);
    let pieces = tools.decoder.pieces(bytes);
    let limit = limits.typing();
    tell(EventKind::Choice {
        what: "agent".into(),
        chosen: "typed over the console".into(),
        why: format!(
            "{why}; {} KiB are typed in {} pieces, for the guest's {}",
            bytes.len() / 1024,
            pieces.len(),
            tools.for_people()
        ),
    });
    let began = Instant::now();
    let mut told = began;
    let mut again = 0;
    // The time of those that arrived.
    let mut taken = Duration::ZERO;
    let mut typed = 0;
    for (number, piece) in pieces.iter().enumerate() {
        let file = format!("{dir}/{number:04}");
        let line =
            format!("{}&&{}", tools.decoder.command(piece.lines.len(), &file), tools.sum.check(&file, piece.bytes));
        let mut tries = 1;
        let fair = loop {
            let begun = Instant::now();
            let outcome = shell.run_with_lines(&line, &piece.lines, &mut limits.piece()).await;
            match outcome.map_err(|error| of_piece(&error, number, pieces.len(), began.elapsed()))? {
                Some(0) => break begun.elapsed(),
                _ if tries == TRIES => {
                    let of = pieces.len();
                    return Ok(Typed::NotNow(format!(
                        "piece {} of {of} of it did not arrive whole, typed {TRIES} times, by what {} says",
                        number + 1,
                        tools.sum.program()
                    )));
                }
                _ => {}
            }
            tries += 1;
            again += 1;
        };
        typed += piece.bytes.len();
        taken += fair;
        let elapsed = began.elapsed();
        // What was typed in vain says nothing of the rest, and a guess from little is a bad one.
        let rest = taken.mul_f64((bytes.len() - typed) as f64 / typed as f64);
        if elapsed > limit || (taken > limit / 10 && elapsed + rest > limit) {
            return Ok(Typed::NotNow(format!(
                "{} of {} KiB were typed in {}, and all of it has to be there within {} (what is typed for the guest's {})",
                typed / 1024,
                bytes.len() / 1024,
                crate::for_people(elapsed),
                crate::for_people(limit),
                tools.for_people()
            )));
        }
        if told.elapsed() >= TELL_EVERY {
            told = Instant::now();
            tell(EventKind::Choice {
                what: "agent".into(),
                chosen: format!("{} % typed", typed * 100 / bytes.len()),
                why: format!("piece {} of {}, after {}", number + 1, pieces.len(), crate::for_people(elapsed)),
            });
        }
    }
    tell(EventKind::Choice {
        what: "agent".into(),
        chosen: "100 % typed".into(),
        why: format!("in {:.1} s, {again} of its pieces more than once", began.elapsed().as_secs_f64()),
    });
    start(shell, (tools, dir), agent, limits).await
}

impl Tools {
    /// Their names.
    fn for_people(self) -> String {
        let gunzip = self.gunzip.map_or(String::new(), |gunzip| format!("{gunzip} and "));
        format!("{}, {gunzip}{}", self.decoder.program(), self.sum.program())
    }
}

/// Puts the pieces together where the agent runs, compares all of it, starts it, and leaves nothing behind.
async fn start(shell: &mut Shell, (tools, dir): (Tools, &str), agent: &[u8], limits: &Limits) -> Result<Typed, Lost> {
    let name = dir.rsplit('/').next().unwrap_or_default();
    let mut outcome = None;
    // Of the place where it got furthest.
    let mut failure: Option<(usize, String)> = None;
    'places: for place in PLACES {
        let program = format!("{place}/{name}/agent");
        for (step, (line, why)) in steps(tools, dir, &program, agent).into_iter().enumerate() {
            let reply = run(shell, &line, limits).await?;
            if reply.code != 0 {
                if failure.as_ref().is_none_or(|(furthest, _)| step > *furthest) {
                    let said = crate::console::sanitize::sanitize_line(&reply.output);
                    failure = Some((step, format!("{why} in {place}: exit code {}, {said}", reply.code)));
                }
                run(shell, &format!("rm -f {program}"), limits).await?;
                continue 'places;
            }
        }
        outcome = Some(run(shell, &format!("{program} serve </dev/null"), limits).await?);
        break;
    }
    let all: String = PLACES.iter().map(|place| format!(" {place}/{name}")).collect();
    run(shell, &format!("rm -rf{all}"), limits).await?;
    Ok(match outcome {
        Some(reply) => Typed::Ran(reply),
        None => Typed::Cannot(failure.map(|(_, why)| why).unwrap_or_default()),
    })
}

/// What has to succeed for the typed agent to be started as this program, and what it means where that does not.
fn steps(tools: Tools, dir: &str, program: &str, agent: &[u8]) -> [(String, &'static str); 4] {
    let unpack = tools.gunzip.map_or(String::new(), |gunzip| format!("|{gunzip}"));
    let place = program.trim_end_matches("/agent");
    [
        (format!("(umask 077;mkdir -p {place})&&cat {dir}/[0-9]*{unpack} >{program}"), "it could not be put together"),
        (tools.sum.check(program, agent), "what was put together is not the agent"),
        (format!("chmod 700 {program}&&{program} version"), "it does not run"),
        // Whoever has nothing to sum it up with has it sum up itself.
        (
            format!("[ \"$({program} sum)\" = \"{}\" ]", Sum::Cksum("").of(agent)),
            "the agent's own checksum of itself is another",
        ),
    ]
}

/// What the guest lacks if it cannot decode what is typed.
async fn find_tools(shell: &mut Shell, limits: &Limits) -> Result<Result<Tools, String>, Lost> {
    let mut decoder = None;
    for program in DECODERS {
        if says(shell, &format!("echo {}|{program}", BASE64.encode(SAMPLE)), SAMPLE, limits).await? {
            decoder = Some(program);
            break;
        }
    }
    let decoder = match decoder {
        Some(program) => {
            let mut reader = None;
            for one in READERS {
                if says(shell, &format!("echo Belljar|{one}1"), SAMPLE, limits).await? {
                    reader = Some(one);
                    break;
                }
            }
            reader.map(|reader| Decoder::Base64 { program, reader })
        }
        None => None,
    };
    let decoder = match decoder {
        Some(decoder) => decoder,
        None if shell.has_printf(&mut limits.line()).await.map_err(|e| super::of_shell(&e, Phase::Session))? => {
            Decoder::Printf
        }
        None => return Ok(Err("it has neither base64, with dd or head, nor a printf that knows octal numbers".into())),
    };
    let mut gunzip = None;
    let packed = gzip(SAMPLE);
    let source = match decoder {
        Decoder::Base64 { program, .. } => format!("echo {}|{program}", BASE64.encode(&packed)),
        Decoder::Printf => {
            format!("printf '{}'", pieces(&packed).into_iter().map(|(text, _)| text).collect::<String>())
        }
    };
    for program in GUNZIPS {
        if says(shell, &format!("{source}|{program}"), SAMPLE, limits).await? {
            gunzip = Some(program);
            break;
        }
    }
    let mut sum = Sum::Nothing;
    for one in SUMS {
        if begins(shell, &format!("echo Belljar|{}", one.program()), &one.of(SAMPLE), limits).await? {
            sum = one;
            break;
        }
    }
    Ok(Ok(Tools { decoder, gunzip, sum }))
}

/// Whether a command prints exactly this.
async fn says(shell: &mut Shell, command: &str, wanted: &[u8], limits: &Limits) -> Result<bool, Lost> {
    let reply = run(shell, &format!("({command}) 2>/dev/null"), limits).await?;
    Ok(reply.code == 0 && reply.output == wanted)
}

/// Whether what a command prints begins with this word.
async fn begins(shell: &mut Shell, command: &str, wanted: &str, limits: &Limits) -> Result<bool, Lost> {
    let reply = run(shell, &format!("({command}) 2>/dev/null"), limits).await?;
    Ok(reply.code == 0 && is_sum(&reply.text(), wanted))
}

/// Whether this begins with a sum, and not with a longer one.
fn is_sum(text: &str, sum: &str) -> bool {
    text.strip_prefix(sum).is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_alphanumeric()))
}

/// A directory of the guest's for the pieces, which nobody else can read.
async fn make_dir(shell: &mut Shell, limits: &Limits) -> Result<Option<String>, Lost> {
    let name = random_name()?;
    let line = format!(
        "for _t in {};do _d=$_t/.belljar-{name};(umask 077;mkdir $_d&&: >$_d/x) 2>/dev/null&&echo \"dir=$_d\"&&rm $_d/x&&break;done",
        PLACES.join(" ")
    );
    let reply = run(shell, &line, limits).await?;
    let text = reply.text();
    let said = |line: &str| line.trim().strip_prefix("dir=").map(str::to_owned);
    // Nothing but one of those that it was asked for becomes part of a command.
    let is_asked = |dir: &String| PLACES.iter().any(|place| *dir == format!("{place}/.belljar-{name}"));
    Ok(text.lines().find_map(said).filter(is_asked))
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write as _;
    let mut packed = GzEncoder::new(Vec::new(), Compression::best());
    // A vector takes all.
    let _ = packed.write_all(bytes);
    packed.finish().unwrap_or_default()
}

/// What it means that the shell did not take a piece.
fn of_piece(error: &ShellError, number: usize, of: usize, elapsed: Duration) -> Lost {
    let elapsed = crate::for_people(elapsed);
    super::of_shell(error, Phase::Session).and_advice(format!(
        "the agent was being typed over the console, since the guest has no other way to it: the guest's shell was to take piece {} of {of}, {elapsed} after \
         the first",
        number + 1
    ))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use proptest::prelude::*;

    use super::*;
    use crate::{
        access::{
            PIECE, climb,
            tests::{pty, quick},
        },
        console::{Console, Patience},
    };

    /// Within this an incomplete piece has ended.
    const STARVED_MOST: Duration = Duration::from_secs(25);
    const BY_BASE64: Decoder = Decoder::Base64 { program: DECODERS[0], reader: READERS[0] };
    /// A terminal's.
    const LINE_MAX: usize = 4095;

    /// Bytes without a pattern that have every value.
    fn noise(length: usize) -> Vec<u8> {
        let mut state = 1_u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        (0..length).map(|_| next()).collect()
    }

    #[test]
    fn what_is_typed_fits_into_a_terminal() {
        let dir = format!("/var/tmp/.belljar-{}", "f".repeat(24));
        let bytes = noise(100_000);
        for decoder in [BY_BASE64, Decoder::Base64 { program: DECODERS[1], reader: READERS[1] }, Decoder::Printf] {
            let pieces = decoder.pieces(&bytes);
            assert_eq!(pieces.iter().flat_map(|piece| piece.bytes).copied().collect::<Vec<_>>(), bytes);
            for piece in &pieces {
                assert!(piece.lines.iter().all(|line| line.len() < LINE_MAX / 2), "{decoder:?}");
                assert!(piece.lines.iter().map(|line| line.len() + 1).sum::<usize>() <= 34 << 10, "{decoder:?}");
                for sum in SUMS {
                    let file = format!("{dir}/0000");
                    let line =
                        format!("{}&&{}", decoder.command(piece.lines.len(), &file), sum.check(&file, piece.bytes));
                    assert!(!line.contains('\'') && line.len() < PIECE, "{}: {line}", line.len());
                }
            }
        }
    }

    #[test]
    fn sums_are_those_of_the_programs() {
        let bytes = noise(5000);
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        std::fs::write(&file, &bytes).unwrap();
        let succeeds = |text: String| Command::new("sh").args(["-c", &text]).status().unwrap().success();
        for sum in SUMS {
            let file = file.display().to_string();
            if sum.program().starts_with("busybox") && !succeeds(format!("{} </dev/null", sum.program())) {
                continue;
            }
            assert!(succeeds(sum.check(&file, &bytes)), "{sum:?}");
            assert!(!succeeds(sum.check(&file, &noise(4999))), "{sum:?}");
            if sum != Sum::Size {
                assert!(!succeeds(sum.check(&file, &[b"x", &bytes[1..]].concat())), "{sum:?}");
            }
        }
    }

    #[test]
    fn a_shell_decodes_what_is_typed() {
        let bytes = [&noise(70_000)[..], b"-%s\\n--%d '\"$x` \n\0-"].concat();
        let dir = tempfile::tempdir().unwrap();
        for shell in [&["dash"][..], &["bash"], &["busybox", "sh"]] {
            for decoder in [BY_BASE64, Decoder::Base64 { program: DECODERS[0], reader: READERS[2] }, Decoder::Printf] {
                let mut back = Vec::new();
                for piece in decoder.pieces(&bytes) {
                    let file = dir.path().join("f");
                    let text = decoder.command(piece.lines.len(), &file.display().to_string());
                    // A file that is read as a terminal is: line by line is for the tests with a real terminal.
                    let lines = dir.path().join("lines");
                    let whole = matches!(decoder, Decoder::Base64 { .. });
                    let text = if whole {
                        text.replace("read -r _x;", "").replace("bs=4096 count=", "bs=1M count=")
                    } else {
                        text
                    };
                    let first = if whole { "" } else { "thrown away\n" };
                    std::fs::write(&lines, format!("{first}{}\n", piece.lines.join("\n"))).unwrap();
                    let mut command = Command::new(shell[0]);
                    command.args(&shell[1..]).args(["-c", &text]).stdin(std::fs::File::open(&lines).unwrap());
                    assert!(command.status().unwrap().success(), "{shell:?} {decoder:?}");
                    back.extend(std::fs::read(&file).unwrap());
                }
                assert!(back == bytes, "{shell:?} {decoder:?}");
            }
        }
    }

    #[test]
    fn each_step_is_typed_in_one_line() {
        let dir = format!("/var/tmp/.belljar-{}", "f".repeat(24));
        for sum in SUMS {
            let tools = Tools { decoder: Decoder::Printf, gunzip: Some(GUNZIPS[2]), sum };
            for (line, why) in steps(tools, &dir, &format!("{dir}/agent"), b"program") {
                assert!(!line.contains(['\'', '\n', '%', '\\']) && line.len() < PIECE, "{why}: {line}");
            }
        }
    }

    /// Real shells on a real terminal, which cuts lines and echoes.
    #[tokio::test]
    async fn a_terminal_hands_on_all_that_is_typed() {
        let bytes = noise(120_000);
        let dir = tempfile::tempdir().unwrap();
        for argv in [
            &["dash", "-i"][..],
            &["bash", "--norc", "-i"],
            &["busybox", "ash"],
            &["bash", "--norc", "--noediting", "-i"],
        ] {
            let (line, _program) = pty::spawn(argv, &[]).expect("a terminal and a program");
            let mut console = Console::new(line, std::io::sink());
            let patience = || Patience::new(Duration::from_secs(60));
            let shell = climb(&mut console, &quick(), &mut patience(), &mut |_| {}).await;
            let mut shell = shell.unwrap_or_else(|error| panic!("{argv:?}: {error}"));
            for decoder in [BY_BASE64, Decoder::Base64 { program: DECODERS[0], reader: READERS[2] }, Decoder::Printf] {
                for piece in decoder.pieces(&bytes).into_iter().take(3) {
                    let file = dir.path().join("f").display().to_string();
                    let sum = SUMS[0].check(&file, piece.bytes);
                    let line = format!("{}&&{sum}", decoder.command(piece.lines.len(), &file));
                    let code = shell.run_with_lines(&line, &piece.lines, &mut patience()).await.unwrap();
                    assert_eq!(code, Some(0), "{argv:?} {decoder:?}");
                    // Something is missing: the line ends all the same, and says so, and the shell is as before.
                    let few = &piece.lines[..piece.lines.len() / 2];
                    let started = Instant::now();
                    if decoder == BY_BASE64 && argv[0] == "dash" {
                        let code = shell.run_with_lines(&line, few, &mut patience()).await.unwrap();
                        assert!(code.is_some_and(|code| code != 0), "{argv:?} {decoder:?}: {code:?}");
                        assert!(started.elapsed() < STARVED_MOST);
                    }
                    let reply = shell.run("echo there; (exit 3)", &mut patience()).await.unwrap();
                    assert_eq!((reply.code, reply.text().as_str()), (3, "there"), "{argv:?} {decoder:?}");
                    if decoder == BY_BASE64 && argv[0] == "dash" {
                        break;
                    }
                }
            }
        }
    }

    proptest! {
        /// No other text than the right one is taken for a tool's answer.
        #[test]
        fn another_sum_is_another(text in "[0-9a-f ]{0,20}", bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            for sum in SUMS {
                let right = sum.of(&bytes);
                let (followed, longer) = (format!("{right}  -"), format!("{right}0"));
                prop_assert!(is_sum(&followed, &right) && is_sum(&right, &right) && !is_sum(&longer, &right));
                if is_sum(&text, &right) {
                    prop_assert!(text.starts_with(&right));
                }
            }
        }

        #[test]
        fn pieces_are_all_of_it(bytes in proptest::collection::vec(any::<u8>(), 0..4000)) {
            for decoder in [BY_BASE64, Decoder::Printf] {
                let all: Vec<u8> = decoder.pieces(&bytes).iter().flat_map(|piece| piece.bytes.to_vec()).collect();
                prop_assert_eq!(&all, &bytes);
            }
        }
    }
}
