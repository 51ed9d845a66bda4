//! The set-up of a suite: its scripts, and what they read where its outcome is kept.

use std::path::PathBuf;

use super::{Found, Roots, look, look_for, quoted};
use crate::{
    config::Suite,
    diagnostic::{Diagnostic, Diagnostics},
};

/// The set-up of a suite.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetUp {
    /// The scripts, in their order.
    pub scripts: Vec<InWorkspace>,
    /// Where the guest is kept as the scripts leave it: what they read beside themselves, sorted. None: they run in each guest.
    pub kept: Option<Vec<InWorkspace>>,
}

/// A file that the guest sees too.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct InWorkspace {
    /// Relative to the workspace, which the guest sees.
    pub in_workspace: PathBuf,
    /// On the host.
    pub path: PathBuf,
}

/// What the suite says of its set-up.
pub(super) fn find(roots: &Roots, suite: &Suite, out: &mut Diagnostics) -> Option<SetUp> {
    let scripts = scripts(roots, suite, out);
    if scripts.is_empty() {
        return None;
    }
    let kept = suite.setup_once.then(|| inputs(roots, suite, out));
    Some(SetUp { scripts, kept })
}

fn inputs(roots: &Roots, suite: &Suite, out: &mut Diagnostics) -> Vec<InWorkspace> {
    let mut files = Vec::new();
    for (pattern, place) in &suite.setup_inputs {
        let before = files.len();
        let mut directory = None;
        for relative in look_for(roots, pattern, place, out) {
            let shown = relative.display().to_string();
            let path = roots.dir.join(&relative);
            let wrong = match look(&path) {
                Found::File { .. } => match path.strip_prefix(&roots.workspace) {
                    Ok(in_workspace) => {
                        files.push(InWorkspace { in_workspace: in_workspace.to_owned(), path: path.clone() });
                        continue;
                    }
                    Err(_) => format!("{shown} is not in the workspace"),
                },
                Found::Directory => {
                    directory = Some(shown);
                    continue;
                }
                Found::Broken => format!("{shown} is a symbolic link that leads nowhere"),
                Found::Special(what) => format!("{shown} is {what}, which cannot be copied"),
                Found::Unreadable(e) => format!("cannot use what a setup script reads: {e}"),
            };
            out.push(Diagnostic::error(wrong).at(place.clone()));
        }
        if let Some(directory) = directory.filter(|_| files.len() == before) {
            let message = format!("{:?} matches only directories: {directory}", pattern.text());
            let help = format!("write {:?} for all that is in them", format!("{}/**", pattern.text()));
            out.push(Diagnostic::error(message).at(place.clone()).help(help));
        }
    }
    files.sort();
    files.dedup();
    files
}

/// Setup scripts must be there, executable and in sight of the guest.
fn scripts(roots: &Roots, suite: &Suite, out: &mut Diagnostics) -> Vec<InWorkspace> {
    let mut scripts = Vec::new();
    for (path, place) in &suite.setup {
        let shown = path.display();
        let (message, help) = match look(path) {
            Found::File { executable: true } => match fs_err::canonicalize(path) {
                Ok(real) => match real.strip_prefix(&roots.workspace) {
                    Ok(in_workspace) => {
                        scripts.push(InWorkspace { path: path.clone(), in_workspace: in_workspace.to_owned() });
                        continue;
                    }
                    Err(_) => (
                        format!("the setup script {shown} is not in the workspace"),
                        format!("the guest sees {} and nothing else", roots.workspace.display()),
                    ),
                },
                Err(e) => (format!("cannot use a setup script: {e}"), "see to its permissions".to_owned()),
            },
            Found::File { executable: false } => (
                format!("the setup script {shown} is not executable"),
                format!("chmod +x {}", quoted(&path.to_string_lossy())),
            ),
            Found::Directory => (format!("the setup script {shown} is a directory"), "name the file".to_owned()),
            Found::Special(what) => (format!("the setup script {shown} is {what}"), "name a file".to_owned()),
            Found::Broken => {
                (format!("the setup script {shown} is a symbolic link that leads nowhere"), "mend it".to_owned())
            }
            Found::Unreadable(e) => {
                (format!("cannot use a setup script: {e}"), "it is relative to belljar.toml".to_owned())
            }
        };
        out.push(Diagnostic::error(message).at(place.clone()).help(help));
    }
    scripts
}
