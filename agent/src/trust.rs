//! git in a workspace of somebody else: it refuses to work there ("dubious ownership"), and a share's files look as if they belonged
//! to whoever they belong to on the host.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use belljar_proto::message::Mount;

/// Where a git would be, and where that one looks for the system's settings, in which it believes `safe.directory`.
const PROGRAMS: &[(&str, &str)] =
    &[("/usr/bin/git", "/etc/gitconfig"), ("/usr/local/bin/git", "/usr/local/etc/gitconfig")];
const TRUST: &str = "[safe]\n\tdirectory = *\n";

/// Has git work in these directories for a command of this user, if one of them is not that user's own. Without git there is nothing to
/// do, and a guest whose settings cannot be written keeps them.
pub(crate) fn git(shares: &[Mount], uid: u32) {
    let is_foreign = |share: &Mount| rustix::fs::stat(share.path.as_str()).is_ok_and(|stat| stat.st_uid != uid);
    let there = || PROGRAMS.iter().filter(|(program, _)| Path::new(program).exists());
    if there().next().is_some() && shares.iter().any(is_foreign) {
        for (_, settings) in there() {
            let _ = trust(Path::new(settings));
        }
    }
}

fn trust(settings: &Path) -> std::io::Result<()> {
    if fs::read_to_string(settings).is_ok_and(|text| text.ends_with(TRUST)) {
        return Ok(());
    }
    if let Some(dir) = settings.parent() {
        fs::create_dir_all(dir)?;
    }
    let mut file = File::options().append(true).create(true).open(settings)?;
    // On a line of its own, whatever there was before.
    file.write_all(format!("\n{TRUST}").as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_git_was_told_before_stays_and_is_told_once() {
        let dir = tempfile::tempdir().unwrap();
        let settings = dir.path().join("gitconfig");
        fs::write(&settings, "[user]\n\tname = x").unwrap();
        trust(&settings).unwrap();
        trust(&settings).unwrap();
        assert_eq!(fs::read_to_string(&settings).unwrap(), "[user]\n\tname = x\n[safe]\n\tdirectory = *\n");
        trust(&dir.path().join("etc/gitconfig")).unwrap();
        assert!(trust(&settings.join("gitconfig")).is_err());
    }
}
