//! `belljar shell`.

use std::{
    ffi::OsString,
    io::{self, IsTerminal, Write},
    os::unix::ffi::OsStringExt,
};

use belljar_guest_spec::Guards;

use crate::{
    args::ShellArgs,
    run::{Prepared, Stdin},
};

/// Starts the login shell of whoever runs it, with a profile that does not close the terminal on an error.
const LOGIN_SHELL: &str = r#"s=$(sed -n "s|^$(id -un):.*:||p" /etc/passwd 2>/dev/null | head -n 1); \
[ -x "$s" ] || s=$(command -v bash) || s=/bin/sh; exec "$s""#;

/// Opens a terminal in a fresh guest.
pub(crate) fn shell(args: ShellArgs) -> Result<u8, String> {
    let ShellArgs { guest, share, exec, host, command } = args;
    if !host.dry_run && !io::stdin().is_terminal() {
        return Err(
            "belljar shell needs a terminal on standard input; to run commands from a script use belljar run".into()
        );
    }
    let argv: Vec<Vec<u8>> = if command.is_empty() {
        vec![b"/bin/sh".to_vec(), b"-c".to_vec(), LOGIN_SHELL.as_bytes().to_vec()]
    } else {
        command.into_iter().map(OsString::into_vec).collect()
    };
    let prepared = Prepared::new(&guest, &share, &exec, &host, argv, true)?;
    let mut prepared = prepared;
    if let Some(command) = &mut prepared.request.command {
        // Whoever sits there sees it, and a shell is no test.
        command.guards = command.guards.take().map(Guards::softened);
    }
    if host.dry_run {
        return prepared.show();
    }
    if !host.quiet {
        // With standard error closed there is nobody to tell.
        drop(writeln!(io::stderr(), "belljar: leave the shell to end the guest, or press Ctrl-] three times"));
    }
    prepared.go(&host, Stdin::Ours)
}
