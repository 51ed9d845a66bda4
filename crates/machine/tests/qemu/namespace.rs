//! What is seen in the directories that a guest gets, and what is not.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use belljar_machine::qemu::sandbox::hidden::{self, Shared};
use belljar_machine::qemu::sandbox::mounts::MountTable;
use belljar_machine::qemu::sandbox::namespace::{self, Views};

use super::shim;

/// Opens shares without what is hidden; gives their paths in this process.
fn open(shares: &[&Path], hidden: &[PathBuf]) -> (Views, Vec<PathBuf>) {
    let shares: Vec<Shared> = shares.iter().map(|p| Shared { path: p.to_path_buf(), writable: false }).collect();
    let mounts = MountTable::read().unwrap();
    let mut hidden = mounts.seen(&hidden.iter().flat_map(|path| hidden::expand(path)).collect());
    hidden.extend(mounts.kernel());
    let order = hidden::order(&hidden::existing(&shares).unwrap(), &hidden).expect("something is hidden");
    let views = namespace::open(&shim(), &order).expect("this host permits a mount namespace: see `unshare -rm true`");
    let paths = views.dirs.iter().map(|fd| format!("/proc/self/fd/{}", fd.as_raw_fd()).into()).collect();
    (views, paths)
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn what_is_hidden_is_empty_by_every_name_and_all_else_is_as_it_was() {
    let top = tempfile::tempdir().unwrap();
    let home = fs::canonicalize(top.path()).unwrap();
    for dir in ["keys/work", "plain"] {
        fs::create_dir_all(home.join(dir)).unwrap();
    }
    for file in ["keys/id", "keys/work/file", "token", "token.old", "plain/file"] {
        fs::write(home.join(file), file).unwrap();
    }
    symlink("keys/id", home.join("link")).unwrap();
    symlink("plain/file", home.join("secret")).unwrap();
    let (work, hidden) = (home.join("keys/work"), ["keys", "token*", "nothing", "secret"].map(|n| home.join(n)));
    let (views, paths) = open(&[&home, &work], &hidden);
    // Only one of the shares has something in it that is hidden.
    let [view] = &paths[..] else { panic!("{paths:?}") };
    assert_eq!(names(view), ["keys", "link", "plain", "secret", "token", "token.old"]);
    assert_eq!(names(&view.join("keys")), [""; 0]);
    assert!(fs::read(view.join("link")).is_err());
    for file in ["token", "token.old", "plain/file"] {
        assert_eq!(fs::read_to_string(view.join(file)).unwrap(), "", "{file}");
    }
    assert_eq!(fs::read_to_string(work.join("file")).unwrap(), "keys/work/file");
    assert_eq!(fs::read_to_string(home.join("token")).unwrap(), "token", "the host is as it was");
    let (view, host) = (fs::metadata(view).unwrap(), fs::metadata(&home).unwrap());
    assert_eq!((view.ino(), view.uid()), (host.ino(), host.uid()), "owners look as they do on the host");
    drop(views);
}

#[test]
fn nothing_of_the_hosts_state_is_in_its_root_directory() {
    let (_views, paths) = open(&[Path::new("/")], &hidden::defaults([]));
    let root = &paths[0];
    for dir in ["proc", "sys", "dev", "run", "tmp", "var/tmp"] {
        assert_eq!(names(&root.join(dir)), [""; 0], "{dir}");
    }
    assert_eq!(fs::metadata(root.join("etc")).unwrap().ino(), fs::metadata("/etc").unwrap().ino());
    assert_eq!(fs::metadata(root.join("etc/passwd")).unwrap().uid(), fs::metadata("/etc/passwd").unwrap().uid());
    assert!(!names(Path::new("/proc")).is_empty());
}

#[test]
fn a_view_that_cannot_be_had_is_an_error() {
    let order = namespace::Order { shares: vec!["/nowhere/at/all".into()], covers: vec!["/proc".into()] };
    let error = namespace::open(&shim(), &order).unwrap_err().to_string();
    assert!(error.contains("/nowhere/at/all"), "{error}");
}
