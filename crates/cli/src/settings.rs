//! From what was typed to what is meant: paths made absolute, little languages read, the environment looked at.

use std::{
    env as std_env,
    ffi::{OsStr, OsString},
    fs::Permissions,
    io::{self, IsTerminal},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use belljar_guest_spec::{Accel, GuestSpec, WorkspaceMode, values};
use belljar_machine::{
    backend::Backends,
    bounds::Bounds,
    host::HostContext,
    lease::Templates,
    qemu::sandbox::Shim,
    spec::{ShareSpec, Workspace},
};
use belljar_report::run::{Level, Style};
use belljar_runner::{
    out_dir,
    run_dir::{self, RunDir},
    suite::history,
};
use etcetera::BaseStrategy;

use crate::{
    args::{ExecArgs, HostArgs, ShareArgs},
    env,
    guest::Named,
    input::is_in_background,
    specs,
};

/// Directories of ended runs that are kept by default.
const KEEP_RUNS: usize = 20;
/// What becomes of the guest's writes to the workspace where nothing is said of it: a command is run to leave something behind.
const WORKSPACE_MODE: WorkspaceMode = WorkspaceMode::Rw;
/// The `PATH` of a guest where this process has none.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Where kernels, initramfs and answers of probes are kept.
pub(crate) fn cache_dir() -> Result<PathBuf, String> {
    match env::path(env::CACHE_DIR) {
        Some(dir) => absolute(&dir),
        None => Ok(base_dirs()?.cache_dir().join("belljar")),
    }
}

fn state_dir() -> Result<PathBuf, String> {
    match env::path(env::STATE_DIR) {
        Some(dir) => absolute(&dir),
        None => {
            let base = base_dirs()?;
            Ok(base.state_dir().unwrap_or_else(|| base.data_dir()).join("belljar"))
        }
    }
}

fn base_dirs() -> Result<etcetera::base_strategy::Xdg, String> {
    etcetera::base_strategy::Xdg::new().map_err(|_| {
        format!("there is no home directory to keep files in; set HOME, or {} and {}", env::CACHE_DIR, env::STATE_DIR)
    })
}

pub(crate) fn absolute(path: &Path) -> Result<PathBuf, String> {
    if path.starts_with("~") && !path.exists() {
        let path = path.display();
        return Err(format!(
            "{path}: there is no such file; a shell takes a ~ within quotes, or behind a =, as it is: write $HOME instead"
        ));
    }
    std::path::absolute(path).map_err(|e| format!("cannot make {} absolute: {e}", path.display()))
}

/// Makes the run's directory, where the user wants it or among the others. `exposed` is the directory that guests can write to, if
/// there is one.
pub(crate) fn run_dir(args: &HostArgs, exposed: Option<&Path>) -> Result<RunDir, String> {
    if args.dry_run {
        // No run, so it is none among the others, and no directory that the user named is touched.
        let temporary = std_env::temp_dir();
        return RunDir::create(&temporary, usize::MAX)
            .map_err(|e| format!("cannot make a directory in {}: {e}\ngive another with TMPDIR", temporary.display()));
    }
    match &args.run_dir {
        Some(dir) if exposed.is_some_and(|exposed| RunDir::lies_in(dir, exposed)) => {
            let exposed = exposed.unwrap_or(Path::new("/"));
            RunDir::aside(dir, exposed, &runs_dir()?, keep_runs()?).map_err(|e| {
                format!("cannot use {} as the run's directory: {e}\ngive an empty one, or a new name", dir.display())
            })
        }
        Some(dir) => RunDir::at(dir).map_err(|e| {
            format!("cannot use {} as the run's directory: {e}\ngive an empty one, or a new name", dir.display())
        }),
        None => new_run_dir(),
    }
}

/// Where runs are kept.
pub(crate) fn runs_dir() -> Result<PathBuf, String> {
    Ok(state_dir()?.join("runs"))
}

/// Where is remembered what this configuration's runs took and came to.
pub(crate) fn history_file(config: &Path) -> Result<PathBuf, String> {
    Ok(state_dir()?.join("history").join(history::file_name(config)))
}

/// Makes a run's directory among the others.
pub(crate) fn new_run_dir() -> Result<RunDir, String> {
    let runs = runs_dir()?;
    let keep = keep_runs()?;
    RunDir::create(&runs, keep).map_err(|e| {
        format!(
            "cannot make a directory for this run in {}: {e}\ngive another with --run-dir, or set {}",
            runs.display(),
            env::STATE_DIR
        )
    })
}

fn keep_runs() -> Result<usize, String> {
    match env::get(env::KEEP_RUNS) {
        None => Ok(KEEP_RUNS),
        Some(text) => text
            .to_str()
            .and_then(|t| t.parse().ok())
            .ok_or_else(|| format!("{}={} is not a number", env::KEEP_RUNS, text.display())),
    }
}

/// The directory that a guest can write to by what was typed, beside its output directory.
pub(crate) fn exposed<'a>(args: &'a ShareArgs, named: Option<&Named>) -> Option<&'a Path> {
    let writable = match args.workspace_mode {
        Some(mode) => mode == WorkspaceMode::Rw,
        None => named.and_then(Named::workspace_mode).unwrap_or(WORKSPACE_MODE) == WorkspaceMode::Rw,
    };
    (writable && args.workspace != Path::new("none")).then_some(&*args.workspace)
}

/// What gives guests.
pub(crate) fn backends(
    qemu: Option<&Path>,
    engine: Option<&Path>,
    accel: Option<Accel>,
    templates: Templates,
) -> Result<Backends, String> {
    Ok(Backends::all(host_context(qemu, engine, accel)?, templates))
}

/// What the host's side of guests stands on.
pub(crate) fn host_context(
    qemu: Option<&Path>,
    engine: Option<&Path>,
    accel: Option<Accel>,
) -> Result<HostContext, String> {
    Ok(HostContext {
        cache_dir: cache_dir()?,
        qemu: qemu.map(Path::to_owned),
        path: env::get("PATH"),
        engine: engine.map(Path::to_owned),
        qemu_img: qemu_img(),
        firmware_dirs: firmware_dirs()?,
        own: vec![state_dir()?],
        home: home(),
        guest_env: guest_env(),
        qemu_env: qemu_env(),
        shim: shim(),
        accel,
    })
}

/// Where the user's own descriptions of firmware are (QEMU's `docs/interop/firmware.json`).
pub(crate) fn firmware_dirs() -> Result<Vec<PathBuf>, String> {
    Ok(vec![base_dirs()?.config_dir().join("qemu/firmware")])
}

/// The user's home directory.
pub(crate) fn home() -> Option<PathBuf> {
    env::path(env::HOME)
}

/// What QEMU gets of the environment: where its parts are, and what the user names besides. A guest that gets at its process, or looks
/// through a share at `/proc`, finds no password there.
fn qemu_env() -> Vec<(OsString, OsString)> {
    let named = env::get(env::QEMU_ENV).unwrap_or_default().into_string().unwrap_or_default();
    let named: Vec<&str> = named.split(',').map(str::trim).filter(|n| !n.is_empty()).collect();
    let wanted = |name: &str| {
        env::FOR_QEMU.contains(&name)
            || named.iter().any(|n| n.strip_suffix('*').map_or(*n == name, |start| name.starts_with(start)))
    };
    std_env::vars_os().filter(|(name, _)| name.to_str().is_some_and(wanted)).collect()
}

/// `qemu-img`, or the bare name for the error that says what to install.
pub(crate) fn qemu_img() -> PathBuf {
    which::which("qemu-img").unwrap_or_else(|_| PathBuf::from("qemu-img"))
}

/// This very program, as the process that becomes QEMU.
pub(crate) fn shim() -> Shim {
    Shim { program: PathBuf::from("/proc/self/exe"), args: vec![crate::EXEC.into()] }
}

/// The environment of a guest that Belljar initialises: of this process's only what says nothing about this session.
fn guest_env() -> Vec<String> {
    let path = env::get("PATH").and_then(|p| p.into_string().ok()).unwrap_or_else(|| DEFAULT_PATH.into());
    let mut vars = vec![format!("PATH={path}"), "HOME=/root".into(), "USER=root".into(), "LOGNAME=root".into()];
    for name in ["LANG", "LC_ALL", "TZ"] {
        if let Some(value) = env::get(name).and_then(|v| v.into_string().ok()) {
            vars.push(format!("{name}={value}"));
        }
    }
    vars
}

/// What the guest sees of the host.
pub(crate) fn share(
    args: &ShareArgs,
    guest: &GuestSpec,
    named: Option<&Named>,
    run_dir: &RunDir,
    dry_run: bool,
) -> Result<ShareSpec, String> {
    let workspace = if args.workspace == Path::new("none") {
        None
    } else {
        let dir = directory("--workspace", &args.workspace)?;
        let mount_at = match &args.mount_at {
            Some(path) => values::mount_at(path).map_err(|why| format!("--mount-at: {path:?} is {why}"))?.to_owned(),
            None => guest.mount_at.clone(),
        };
        let mode = args.workspace_mode.or_else(|| named?.workspace_mode()).unwrap_or(WORKSPACE_MODE);
        Some(Workspace { dir, mode, mount_at })
    };
    let out = args.out.clone().unwrap_or_else(|| run_dir.file(run_dir::OUT));
    if dry_run && !out.exists() {
        let out = std::path::absolute(&out).map_err(|e| format!("--out: {e}"))?;
        let out_wanted = args.out.is_some();
        return Ok(ShareSpec { workspace, out, out_wanted, bounds: Bounds::default(), modules: None });
    }
    fs_err::create_dir_all(&out).map_err(|e| format!("cannot make the output directory: {e}"))?;
    let out = directory("--out", &out)?;
    let access = rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK;
    rustix::fs::access(&out, access).map_err(|e| format!("--out {}: nothing can be put there: {e}", out.display()))?;
    let named = named.map(Named::bounds).unwrap_or_default();
    let bounds = Bounds {
        output: bound("--max-output", args.max_output.as_deref())?.or(named.output),
        disk: bound("--max-disk", args.max_disk.as_deref())?.or(named.disk),
    };
    Ok(ShareSpec { workspace, out, out_wanted: args.out.is_some(), bounds, modules: None })
}

/// Lets every user of the guest leave files in an output directory of ours.
pub(crate) fn open_out(out: &Path) -> Result<(), String> {
    // Nobody else of this host's is to get there.
    if let Some(run_dir) = out.parent() {
        let closed = fs_err::set_permissions(run_dir, Permissions::from_mode(0o700));
        closed.map_err(|e| format!("cannot close the run's directory to other users: {e}"))?;
    }
    out_dir::open_to_all(out).map_err(|e| format!("cannot open the output directory to the guest's users: {e}"))
}

/// Says that a command that does not run as root may not be able to leave files in an output directory that its user named: it keeps its mode, for
/// others of the host's users may get there.
pub(crate) fn note_of_out(out: &Path, user: &str) -> Result<(), String> {
    let mode = fs_err::metadata(out).map_err(|e| format!("--out: {e}"))?.permissions().mode();
    if mode & 0o003 != 0o003 {
        crate::complain_note(&format!(
            "note: {user} may not be able to write to --out {}: in the guest it belongs to root, and only its owner and group may \
             write there; without --out the output directory is open to every user of the guest, or chmod o+rwx it",
            out.display()
        ));
    }
    Ok(())
}

/// The value of an option that limits what a guest may write.
pub(crate) fn bound(option: &str, text: Option<&str>) -> Result<Option<u64>, String> {
    text.map(|text| specs::size(option, text)).transpose()
}

fn directory(option: &str, dir: &Path) -> Result<PathBuf, String> {
    let real = match fs_err::canonicalize(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(format!("{option} {}: there is no such directory; make it, or name another", dir.display()));
        }
        real => real.map_err(|e| format!("{option}: {e}"))?,
    };
    if !real.is_dir() {
        return Err(format!("{option} {}: this is not a directory", dir.display()));
    }
    let of_kernel =
        ["/proc", "/sys", "/dev"].into_iter().find(|top| real.starts_with(top) && !real.starts_with("/dev/shm"));
    match of_kernel {
        None => Ok(real),
        Some(top) => Err(format!(
            "{option} {}: what is in {top} is this host's kernel and its devices, and no files for a guest; name another directory",
            dir.display()
        )),
    }
}

/// The command's variables: the user's, and where the shares are.
pub(crate) fn command_env(args: &ExecArgs, named: Option<&Named>, share: &ShareSpec) -> Result<Vec<Vec<u8>>, String> {
    let mut vars = named.map(Named::env).unwrap_or_default();
    vars.push(format!("BELLJAR_OUT={}", belljar_machine::share::OUT_PATH).into_bytes());
    if let Some(workspace) = &share.workspace {
        vars.push(format!("BELLJAR_WORKSPACE={}", workspace.mount_at).into_bytes());
    }
    for text in &args.env {
        vars.push(specs::variable(text, |name: &OsStr| std_env::var_os(name))?);
    }
    Ok(vars)
}

/// Where in the guest the command runs.
pub(crate) fn cwd(args: &ExecArgs, named: Option<&Named>, share: &ShareSpec) -> Result<Option<Vec<u8>>, String> {
    match args.cwd.as_deref().or(named.and_then(Named::cwd)) {
        Some(path) if path.starts_with('/') => Ok(Some(path.as_bytes().to_vec())),
        Some(path) => match &share.workspace {
            // Relative to where the command would have run.
            Some(workspace) => Ok(Some(format!("{}/{path}", workspace.mount_at).into_bytes())),
            None => Err(format!("--cwd {path}: give an absolute path, as there is no workspace to start from")),
        },
        None => Ok(share.workspace.as_ref().map(|w| w.mount_at.clone().into_bytes())),
    }
}

/// How much is said.
pub(crate) fn level(args: &HostArgs) -> Level {
    match (args.quiet, args.verbose) {
        (true, _) => Level::Quiet,
        (false, 0) => Level::Normal,
        (false, 1) => Level::Verbose,
        (false, _) => Level::Console,
    }
}

/// How the run is told.
pub(crate) fn style(args: &HostArgs) -> Style {
    let terminal = io::stderr().is_terminal();
    // A line that is drawn again and again is in the way of whoever has the terminal.
    let live = terminal && !is_in_background(io::stderr());
    Style { level: level(args), live, color: terminal && env::get(env::NO_COLOR).is_none() }
}
