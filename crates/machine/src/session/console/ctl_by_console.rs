//! `belljar-ctl` for a guest that has no directory of the host's: orders and answers are files in the guest (see [`ctl`](super::ctl)), which the shell on
//! the console fetches and brings, between its looks at the command's output.

use std::collections::VecDeque;

use belljar_proto::ask::is_answer_name;
use belljar_proto::message::MAX_QUESTION;

use super::asks::Taken;
use super::ctl::{self, MAX_ANSWERS, Places};
use super::fetch::Tools;
use super::{ConsoleSession, random_name, script};
use crate::Lost;

/// Most orders that are fetched at a time.
const MOST: usize = 16;
/// Most that are fetched after the command's end, for each takes some lines at the console.
const MOST_LEFT: usize = 256;
/// How often one order is fetched before it is given up.
const TRIES: u32 = 4;

/// The directories of one command, in the guest.
#[derive(Debug)]
pub(super) struct GuestFiles {
    /// What holds the others.
    pub(super) dir: String,
    written: VecDeque<String>,
}

impl GuestFiles {
    /// The end of a line that tells which orders there are.
    pub(super) fn look(&self) -> String {
        let dir = script::word(&self.dir);
        format!(
            ";_n=0;for _f in {dir}/orders/[!.]*;do [ -e \"$_f\" ]||[ -h \"$_f\" ]||continue;case ${{_f##*/}} in *[!A-Za-z0-9._-]*)rm -rf \"$_f\";continue;;esac;\
             _n=$((_n+1));[ $_n -le {MOST} ]||break;echo \"o:${{_f##*/}}\";done"
        )
    }
}

/// The program without what is for a person only.
fn without_remarks(program: &str) -> String {
    let mut lines = program.lines();
    let first = lines.next().into_iter();
    first.chain(lines.filter(|line| !line.trim_start().starts_with('#'))).flat_map(|line| [line, "\n"]).collect()
}

/// The orders that a look has told of.
pub(super) fn names(seen: &[u8]) -> Vec<String> {
    let lines = seen.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
    let names = lines.filter_map(|line| line.strip_prefix(b"o:")).filter(|name| is_answer_name(name));
    names.map(|name| String::from_utf8_lossy(name).into_owned()).take(MOST).collect()
}

impl ConsoleSession {
    /// Makes the directories in the guest; none where it has no place for them.
    pub(super) async fn make_guest_files(&mut self) -> Result<Option<(GuestFiles, Places)>, Lost> {
        // Any user may ask.
        let Some(dir) = self.make_place("(umask 022;mkdir $_d/answers)&&(umask 0;mkdir $_d/orders)").await? else {
            self.note("the guest has no place for belljar-ctl, so that its commands can ask for nothing");
            return Ok(None);
        };
        let programs = match self.programs.clone() {
            Some(programs) => programs,
            None => {
                let programs = self.put_program().await?;
                self.programs.insert(programs).clone()
            }
        };
        if programs.is_none() {
            self.note("the guest has no place from which belljar-ctl can be run; its commands can write orders to files in $BELLJAR_CTL_DIR");
        }
        let places = Places { programs, ..Places::in_directory(&dir) };
        Ok(Some((GuestFiles { dir, written: VecDeque::new() }, places)))
    }

    /// Makes a directory that nobody but root can list, with what `make` makes in it.
    async fn make_place(&mut self, make: &str) -> Result<Option<String>, Lost> {
        let name = random_name()?;
        let line = format!(
            "for _t in /run /tmp /dev/shm /var/tmp '';do _d=$_t/.belljar.ctl-{name};(umask 066;mkdir $_d) 2>/dev/null&&{make}&&\
             echo \"dir=$_d\"&&break;rm -rf $_d;done"
        );
        let reply = self.line_run(line).await?;
        let text = reply.text();
        let dir = text.lines().find_map(|line| line.trim().strip_prefix("dir="));
        Ok(dir.filter(|dir| dir.ends_with(&name) && dir.len() < 64).map(str::to_owned))
    }

    /// Puts the program where it can be run, once for all commands, and gives where that is. It is typed, which takes a moment.
    async fn put_program(&mut self) -> Result<Option<String>, Lost> {
        // The directory is the first in which a program can be run.
        let can_run = "printf '#!/bin/sh\nexit 7\n' >$_d/x&&chmod 755 $_d/x&&{ $_d/x;[ $? = 7 ];}&&rm $_d/x";
        let Some(bin) = self.make_place(can_run).await? else { return Ok(None) };
        let [program, others @ ..] = &ctl::NAMES;
        self.write_file(&bin, program, without_remarks(ctl::PROGRAM).as_bytes()).await?;
        let at = script::word(&bin);
        let others: String =
            others.iter().map(|other| format!("cp {at}/{program} {at}/{other};chmod 755 {at}/{other};")).collect();
        let line = format!("chmod 755 {at}/{program};{others}{at}/{program} --help >/dev/null 2>&1");
        let runs = self.line_run(line).await?.code == 0;
        Ok(runs.then_some(bin))
    }

    /// Takes these orders, and brings the answers that there are.
    pub(super) async fn exchange_orders(
        &mut self,
        files: &mut GuestFiles,
        names: Vec<String>,
        tools: Tools,
    ) -> Result<(), Lost> {
        for name in names {
            if !self.asks.has_room() {
                break;
            }
            self.take_order(files, name, tools, false).await?;
        }
        for (name, answer) in self.asks.take_answers() {
            self.put_answer(files, &name, answer.to_answer().as_bytes()).await?;
            files.written.push_back(name);
            if files.written.len() > MAX_ANSWERS
                && let Some(oldest) = files.written.pop_front()
                && !files.written.contains(&oldest)
            {
                self.line_run(format!("rm -f {}", script::word(&format!("{}/answers/{oldest}", files.dir)))).await?;
            }
        }
        Ok(())
    }

    /// The command has ended: all is taken that it has asked for.
    pub(super) async fn take_last_orders(&mut self, files: &mut GuestFiles, tools: Tools) -> Result<(), Lost> {
        let mut taken = 0;
        loop {
            let seen = self.line_run(format!(":{}", files.look())).await?.output;
            let names = names(&seen);
            if names.is_empty() {
                return Ok(());
            }
            for name in names {
                taken += 1;
                if taken > MOST_LEFT {
                    // How many there are is known to nobody.
                    self.asks.lose(1);
                    self.note(&format!(
                        "the command left more than {MOST_LEFT} orders behind, of which the rest was not looked at"
                    ));
                    return Ok(());
                }
                self.take_order(files, name, tools, true).await?;
            }
        }
    }

    async fn take_order(
        &mut self,
        files: &mut GuestFiles,
        name: String,
        tools: Tools,
        is_last: bool,
    ) -> Result<(), Lost> {
        let path = script::word(&format!("{}/orders/{name}", files.dir));
        let text = self.fetch_order(&path, tools).await?;
        let line = match &text {
            Some(text) => ctl::line_of_file(text),
            None => Err("it is no plain file, or could not be fetched over the console".to_owned()),
        };
        let line = match line {
            Ok(None) if !is_last => return Ok(()),
            Ok(None) => Err("its line has no end".to_owned()),
            Ok(Some(line)) => Ok(line.to_vec()),
            Err(why) => Err(why),
        };
        // First, so that it is not carried out twice.
        let removed = self.line_run(format!("rm -rf {path}")).await?;
        let line = if removed.code == 0 { line } else { Err(format!("it cannot be taken away: {}", removed.text())) };
        match line {
            Ok(line) => {
                if self.asks.ask(name.clone(), &line) == Taken::MuchLater {
                    let taken = script::word(&format!("{}/answers/{}", files.dir, ctl::taken(&name)));
                    self.line_run(format!(": >{taken}")).await?;
                }
            }
            Err(why) => {
                self.note(&format!(
                    "{name:?} in $BELLJAR_CTL_DIR is no order: {}",
                    crate::console::sanitize::sanitize_line(why.as_bytes())
                ));
                self.asks.refuse(name, why);
                if removed.code != 0 {
                    // It would be found again for ever.
                    self.asks.lose(1);
                }
            }
        }
        Ok(())
    }

    /// What is in a plain file, as much as an order has at most and a byte more. Nothing of the kernel's is in it: what decodes is whole, and where nothing
    /// encodes, the same has to come twice.
    async fn fetch_order(&mut self, path: &str, tools: Tools) -> Result<Option<Vec<u8>>, Lost> {
        let take = format!("[ ! -h {path} ]&&[ -f {path} ]&&dd if={path} bs={} count=1 2>/dev/null", MAX_QUESTION + 1);
        let mut before = None;
        for _ in 0..TRIES {
            let (Tools::Base64(program) | Tools::Hex(program)) = tools else {
                let reply = self.line_run(&take).await?;
                // What is fetched as text may have its end taken off.
                let seen = Some((reply.output, reply.code, reply.lost))
                    .filter(|(_, code, lost)| *code == 0 && *lost == 0)
                    .map(|(text, ..)| text);
                if let Some(text) = &seen
                    && before == seen
                {
                    return Ok(Some([text.trim_ascii_end(), b"\n"].concat()));
                }
                before = seen;
                continue;
            };
            let reply = self.line_run(format!("{{ {take};}}|{program}")).await?;
            if let Some(bytes) = tools.decode(&reply.output).filter(|bytes| reply.lost == 0 && !bytes.is_empty()) {
                return Ok(Some(bytes));
            }
        }
        // An empty file is the beginning of one.
        let is_empty = self.line_run(format!("[ -f {path} ]&&[ ! -h {path} ]&&[ ! -s {path} ]")).await?.code == 0;
        Ok(is_empty.then(Vec::new))
    }

    /// Puts an answer there, whole.
    async fn put_answer(&mut self, files: &GuestFiles, name: &str, text: &[u8]) -> Result<(), Lost> {
        let answers = format!("{}/answers", files.dir);
        let new = script::word(&format!("{answers}/.new"));
        self.line_run(format!("rm -rf {new}")).await?;
        // A terminal takes lines of some length only.
        self.write_file(&answers, ".new", text).await?;
        let (to, taken) =
            (script::word(&format!("{answers}/{name}")), script::word(&format!("{answers}/{}", ctl::taken(name))));
        self.line_run(format!("chmod 644 {new};mv -f {new} {to};rm -f {taken}")).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_the_same_without_remarks() {
        let typed = without_remarks(ctl::PROGRAM);
        assert!(typed.starts_with("#!/bin/sh\n") && typed.len() < ctl::PROGRAM.len() && !typed.contains("\n#"));
        let help = |program: &str| {
            std::process::Command::new("sh").args(["-c", program, "belljar-ctl", "help"]).output().unwrap()
        };
        let (whole, typed) = (help(ctl::PROGRAM), help(&typed));
        assert!(whole.status.success() && whole == typed && whole.stdout.starts_with(b"usage: belljar-ctl mark TEXT"));
    }

    #[test]
    fn only_names_that_lead_nowhere_are_taken_from_a_look() {
        let seen = b"abc 0 - 1 1 w\n5\no:ctl-1-1\r\no:../x\no:\n[ 1.2] o:foreign\no:.hidden\no:b\n";
        assert_eq!(names(seen), ["ctl-1-1", "b"]);
        let many: String = (0..40).map(|n| format!("o:n{n}\n")).collect();
        assert_eq!(names(many.as_bytes()).len(), MOST);
    }
}
